"""What calls the rules along a plan, by NumPy or in compiled loops: all have the same bits."""
