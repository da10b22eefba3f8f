"""What `from_torch` makes a problem of: its checks, the module on a vector, and the problem."""
