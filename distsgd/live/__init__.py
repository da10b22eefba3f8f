"""Live runs: the same algorithms on real processes, whose order is recorded.

No other room has sockets, processes of a cluster, or a clock.
"""
