"""Rules, and loops around them."""
