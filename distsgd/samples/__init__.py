"""Samples with labels, checked once; how far their scales are apart, how much they overlap."""
