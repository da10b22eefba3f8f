"""What it costs when workers see different classes, by what they exchange.

Usage: python scripts/skew.py [--quick]

Softmax on digits, 8 workers. Each class is divided over the workers in Dirichlet proportions: the
smaller the concentration, the fewer classes a worker sees. Downpour pushes gradient sums, elastic
averaging pulls parameters together, both every 10 steps; synchronous SGD averages gradients at
every step. Each has the best rate of one grid; a star marks a rate at an end of the grid.
"""

import sys
from collections.abc import Callable

from papers import Best, median, show, tuned

import distsgd as ds
from distsgd.algorithm import Algorithm
from distsgd.data.partition import class_histogram
from distsgd.problem import Problem

WORKERS, PERIOD = 8, 10
FLEET = ds.Fleet(WORKERS, compute=ds.lognormal(1.0, 0.3))
MAKERS: dict[str, Callable[[float], Algorithm]] = {
    "synchronous": ds.algorithms.synchronous,
    "Downpour": lambda rate: ds.algorithms.downpour(rate, PERIOD, PERIOD),
    "EASGD": lambda rate: ds.algorithms.elastic_averaging(rate, 0.9 / WORKERS, PERIOD),
}
SKEWED = ds.Partition("skewed", "reshuffled", 0.1)
PARTITIONS = {
    "shared": ds.Partition(sampler="reshuffled"),
    "sharded": ds.Partition("sharded", "reshuffled"),
    "skewed, 1": ds.Partition("skewed", "reshuffled", 1.0),
    "skewed, 0.1": SKEWED,
}


def best(make: Callable[[float], Algorithm], problem: Problem, partition: ds.Partition, *, quick: bool) -> Best:
    """Return the best rate of an algorithm on a partition."""
    rates = [0.05, 0.8] if quick else [0.0125 * 2**k for k in range(12)]
    seeds, epochs = range(1 if quick else 3), 2 if quick else 20

    def loss(rate: float) -> float:
        return median(make(rate), problem, FLEET, seeds, epochs=epochs, batch=8, partition=partition)

    return tuned(loss, rates)


def main(arguments: list[str]) -> None:
    """Print which worker owns which class, and the losses."""
    quick, data = "--quick" in arguments, ds.data.digits()
    problem = ds.problems.softmax(data, l2=1e-3)
    parts = SKEWED.divide(data, WORKERS, seed=0)
    histogram = class_histogram(parts, data.y)
    owned = [[worker, *counts] for worker, counts in enumerate(histogram.counts.tolist())]
    show("samples of each digit, skewed, 0.1, seed 0", ["worker", *map(str, range(10))], owned)
    table = [
        [name, *(best(make, problem, partition, quick=quick) for make in MAKERS.values())]
        for name, partition in PARTITIONS.items()
    ]
    show("training loss after equal gradients, and its rate", ["parts", *MAKERS], table)


if __name__ == "__main__":
    main(sys.argv[1:])
