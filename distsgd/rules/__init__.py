"""What a rule or another callable does: formulas and digests."""
