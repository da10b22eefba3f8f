"""Live runs on this machine."""
