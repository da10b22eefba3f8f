"""Loops that race on shared memory."""
