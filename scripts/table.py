"""A line of the benchmarks' table."""

from typing import NamedTuple


class Line(NamedTuple):
    """What was measured, the figure, the peer's, how they compare, and what to reach."""

    what: str
    measured: str
    against: str
    ratio: str
    reach: str
