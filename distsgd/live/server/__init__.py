"""The server: the order of service, the columns, and checkpoints."""
