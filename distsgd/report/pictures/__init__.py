"""What runs say in pictures, one kind per file."""
