"""What peers tell each other, and how it travels."""
