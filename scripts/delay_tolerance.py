"""AdaptiveRevision against AdaGrad, as gradients arrive ever later.

Usage: python scripts/delay_tolerance.py [--quick]

Sparse logistic regression, one pass, one sample per gradient; every gradient is applied a constant
number of updates after its read. First with the rate that is best without delay, then with the best
rate for each delay.

McMahan and Streeter, "Delay-Tolerant Algorithms for Asynchronous Distributed Online Learning", NIPS
2014: from delays of about 1,000 on, AdaptiveRevision beats both forms of asynchronous AdaGrad,
which need a smaller rate for a longer delay, while AdaptiveRevision does not.
"""

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from papers import Best, median, show, tuned

import distsgd as ds
from distsgd.algorithm import Algorithm, Column, Pull, Push, Server, Step, sqrt
from distsgd.algorithms.adaptive_revision import Hyper
from distsgd.algorithms.parts import Gradient, gradient_worker
from distsgd.order.fleet import StaleReads
from distsgd.problem import Problem

PULLED_LATE = (Pull(), Step(), Push())


class Accumulated(NamedTuple):
    """AdaGrad's server: the parameters, and z0 plus the sum of squared gradients."""

    x: Column
    z: Column


def accumulate(h: Hyper, s: Accumulated, m: Gradient) -> Accumulated:
    """Step with the rate of now: AsyncAda-GD."""
    z = s.z + m.g * m.g
    return Accumulated(s.x - h.learning_rate / sqrt(z) * m.g, z)


class Averaged(NamedTuple):
    """Dual averaging's server: parameters, where they began, sums of gradients and of squares."""

    x: Column
    start: Column
    g_sum: Column
    z: Column


def average(h: Hyper, s: Averaged, m: Gradient) -> Averaged:
    """Apply the rate of now to all gradients since the start: AsyncAda-DA."""
    g_sum, z = s.g_sum + m.g, s.z + m.g * m.g
    return Averaged(s.start - h.learning_rate * g_sum / sqrt(z), s.start, g_sum, z)


adagrad_server = Server(lambda h, x: Accumulated(x, 0.0 * x + h.z0), ("x",), accumulate)
averaging_server = Server(lambda h, x: Averaged(x, x, 0.0 * x, 0.0 * x + h.z0), ("x",), average)


def adagrad(learning_rate: float) -> Algorithm:
    """Return AdaGrad on arrival, with AdaptiveRevision's z0 = 1."""
    h = Hyper(learning_rate, 1.0)
    return Algorithm("adagrad", h, adagrad_server, gradient_worker, PULLED_LATE, sparse=True)


def dual_averaging(learning_rate: float) -> Algorithm:
    """Return AdaGrad's dual averaging on arrival, with z0 = 1."""
    h = Hyper(learning_rate, 1.0)
    return Algorithm("averaging", h, averaging_server, gradient_worker, PULLED_LATE, sparse=True)


ALGORITHMS: dict[str, Callable[[float], Algorithm]] = {
    "AdaGrad": adagrad,
    "dual averaging": dual_averaging,
    "AdaptiveRevision": ds.algorithms.adaptive_revision,
}


def best(make: Callable[[float], Algorithm], problem: Problem, delay: int, *, quick: bool) -> Best:
    """Return the best rate of an algorithm at a delay."""
    fleet = ds.stale_reads(ds.constant(float(delay)))
    rates = [2.0**k for k in (range(-2, 4, 2) if quick else range(-4, 5))]
    return tuned(lambda rate: loss(make(rate), problem, fleet, quick=quick), rates)


def loss(algorithm: Algorithm, problem: Problem, fleet: StaleReads, *, quick: bool) -> float:
    """Return the training loss after one pass."""
    return median(algorithm, problem, fleet, range(1 if quick else 3), epochs=1, batch=1)


def rows(problem: Problem, delays: Sequence[int], *, quick: bool) -> list[list[object]]:
    """Return a row for each delay: the losses at the rates of no delay, and at the best rates."""
    undelayed = {name: best(make, problem, 0, quick=quick).rate for name, make in ALGORITHMS.items()}
    table: list[list[object]] = []
    for delay in delays:
        fleet = ds.stale_reads(ds.constant(float(delay)))
        kept = [loss(make(undelayed[name]), problem, fleet, quick=quick) for name, make in ALGORITHMS.items()]
        again = [best(make, problem, delay, quick=quick) for make in ALGORITHMS.values()]
        table.append([f"{delay:,}", *kept, *again])
    return table


def main(arguments: list[str]) -> None:
    """Print the table."""
    quick = "--quick" in arguments
    data = ds.data.sparse(3_000, 600, 10) if quick else ds.data.sparse(100_000, 20_000, 20)
    delays = [0, 1_000] if quick else [0, 1, 10, 100, 1_000, 10_000]
    headings = ["delay", *ALGORITHMS, *(f"{name}, best rate" for name in ALGORITHMS)]
    table = rows(ds.problems.logistic(data), delays, quick=quick)
    show("training loss after one pass, rates tuned without delay", headings, table)


if __name__ == "__main__":
    main(sys.argv[1:])
