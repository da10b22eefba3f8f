"""Downpour against elastic averaging, as workers communicate ever more rarely.

Usage: python scripts/period.py [--quick]

A small network on digits, 4 workers, equal numbers of gradients. Each algorithm has the best rate
of one grid for each period; a star marks a rate at an end of the grid.

Zhang, Choromanska and LeCun, "Deep learning with Elastic Averaging SGD", NIPS 2015: Downpour is
best at periods 1 and 4 and very unstable at 16 and 64, elastic averaging with momentum beats it at
every period, and elastic averaging without momentum improves with a larger period.
"""

import sys
from collections.abc import Callable

from papers import Best, median, show, tuned

import distsgd as ds
from distsgd.algorithm import Algorithm
from distsgd.problem import Problem

WORKERS = 4
FLEET = ds.Fleet(WORKERS, compute=ds.lognormal(1.0, 0.3))
MOVING_RATE = 0.9 / WORKERS
MOMENTUM = 0.9

MAKERS: dict[str, Callable[[float, int], Algorithm]] = {
    "Downpour": lambda rate, period: ds.algorithms.downpour(rate, period, period),
    "EASGD": lambda rate, period: ds.algorithms.elastic_averaging(rate, MOVING_RATE, period),
    "EAMSGD": lambda rate, period: ds.algorithms.elastic_averaging(rate, MOVING_RATE, period, momentum=MOMENTUM),
}


def best(name: str, problem: Problem, period: int, *, quick: bool) -> Best:
    """Return the best rate of an algorithm at a period."""
    rates = [0.8 * 2.0**k for k in (range(-6, 1, 3) if quick else range(-10, 2))]
    seeds, epochs = range(1 if quick else 3), 2 if quick else 20

    def loss(rate: float) -> float:
        return median(MAKERS[name](rate, period), problem, FLEET, seeds, epochs=epochs)

    return tuned(loss, rates)


def main(arguments: list[str]) -> None:
    """Print the table."""
    quick = "--quick" in arguments
    problem = ds.problems.network(ds.data.digits(), hidden=(8,) if quick else (32,))
    periods = [1, 16] if quick else [1, 4, 16, 64]
    table = [[period, *(best(name, problem, period, quick=quick) for name in MAKERS)] for period in periods]
    show("training loss after equal gradients, and its rate", ["period", *MAKERS], table)


if __name__ == "__main__":
    main(sys.argv[1:])
