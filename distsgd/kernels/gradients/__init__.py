"""Gradients of linear models and networks."""
