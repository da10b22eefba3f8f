"""What runs say in numbers: measurements, findings, the summary."""
