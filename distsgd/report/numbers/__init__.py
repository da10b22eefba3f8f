"""What runs say in numbers: measurements, contrasts, the summary."""
