"""Processes and folders of one machine."""
