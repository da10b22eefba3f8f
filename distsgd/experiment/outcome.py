"""One run of a comparison: its labels, and either the run or the error that ended it."""

from typing import NamedTuple

from distsgd.run import Run


class Outcome(NamedTuple):
    """One run of a comparison: its labels, and either the run or the error that ended it."""

    algorithm: str
    fleet: str
    seed: int
    run: Run | None = None
    error: str = ""
    problem: str = ""
