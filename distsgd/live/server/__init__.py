"""The server: who is served when, the columns, and checkpoints."""
