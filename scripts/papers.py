"""What the scripts of papers' claims share: medians over seeds, and the best rate of a grid."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import distsgd as ds
from distsgd.algorithm import Algorithm
from distsgd.order.fleet import StaleReads
from distsgd.problem import Problem
from distsgd.report.formatting import number
from distsgd.report.terminal import console, print_table

FAILED = float("inf")
"""The loss of a run that diverged: worse than any other."""


class Best(NamedTuple):
    """The best learning rate of a grid, and what it reached."""

    rate: float
    loss: float
    is_at_end: bool
    """Whether it lies at an end of the grid, so that a better one may lie beyond."""

    def __str__(self) -> str:
        """Return the loss and the rate, which is marked at an end of the grid."""
        return f"{number(self.loss)} at {self.rate:g}" + "*" * self.is_at_end


def median(
    algorithm: Algorithm,
    problem: Problem,
    fleet: ds.Fleet | StaleReads,
    seeds: Sequence[int],
    **settings: Any,  # noqa: ANN401 # whatever `simulate` takes
) -> float:
    """Return the median of the final training loss over `seeds`."""
    runs = [ds.simulate(algorithm, problem, fleet, seed=seed, evaluations=1, **settings) for seed in seeds]
    return statistics.median(FAILED if run.status == "diverged" else run.history["loss"][-1] for run in runs)


def tuned(loss: Callable[[float], float], rates: Sequence[float]) -> Best:
    """Return the rate, of ascending `rates`, with the lowest loss."""
    losses = [loss(rate) for rate in rates]
    place = losses.index(min(losses))
    return Best(rates[place], losses[place], place in {0, len(rates) - 1})


def show(title: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; numbers are rounded for the eye."""
    cells = [[number(one) if isinstance(one, float) else str(one) for one in row] for row in rows]
    print_table(title, headings, cells, console())
