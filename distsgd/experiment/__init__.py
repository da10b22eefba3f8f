"""From a file to many runs."""
