"""Folds of a large network, of which a gradient does not stay near the core, and their memory."""

import numpy as np
from bench_fold import interleaved, last
from table import Line

import distsgd as ds
from distsgd.algorithm import Algorithm
from distsgd.data.stream import Stream
from distsgd.fold.fold import fold
from distsgd.order.schedule import schedule

RATE, BATCH, WORKERS = 0.01, 32, 16


def rows(*, quick: bool = False) -> list[Line]:
    """Return the rows of the table of `scripts/bench`.

    Parameters
    ----------
    quick : bool
        Whether to measure 300,000 parameters instead of 4.2 millions.

    Returns
    -------
    list of Line
        Medians of interleaved repetitions.
    """
    units = 500 if quick else 2000
    problem = ds.problems.network(ds.data.digits(), hidden=(units, units))
    return [
        large_row(ds.algorithms.downpour(RATE), problem, "1.0 times"),
        large_row(ds.algorithms.elastic_averaging(RATE), problem, "0.7 times"),
    ]


def large_row(algorithm: Algorithm, problem: ds.Problem, reach: str) -> Line:
    """Time asynchronous workers against a plain loop over gradients."""
    n_gradients = 200
    trace = schedule(algorithm.cycle, ds.Fleet(WORKERS, ds.exponential(1.0)), gradients=n_gradients)
    stops, folded = np.array([trace.n_updates]), int(trace.gradients[-1])
    ours, peer = interleaved(
        lambda: last(fold(algorithm, problem, trace, stops=stops, batch=BATCH, driver="compiled")),
        lambda: plain_loop(problem, n_gradients),
    )
    return Line(
        f"fold, network of {problem.dimension:,} parameters, {algorithm.name}, {WORKERS} workers",
        f"{folded / ours:,.1f} gradients/s",
        f"{n_gradients / peer:,.1f} of a plain NumPy loop",
        f"{folded / ours / (n_gradients / peer):.2f} times as fast",
        reach,
    )


def plain_loop(problem: ds.Problem, n_gradients: int) -> np.ndarray:
    """Run serial SGD on the problem's own gradients."""
    x = problem.start(0)
    for batch in Stream(problem.samples, BATCH).batches(np.zeros(n_gradients), np.arange(n_gradients)):
        x -= RATE * problem.gradient(x, batch)
    return x
