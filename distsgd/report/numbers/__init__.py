"""What runs say in numbers: marks, contrasts, the summary."""
