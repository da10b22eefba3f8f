"""Drivers: two ways to call an algorithm's rules along a plan, with equal bits.

`interpreted` lets NumPy call a rule on whole vectors; `compiled` lets a generated loop call its
compiled twin per coordinate.
"""
