"""Live runs against the bare loop that they distribute, and how long they take to start."""

import statistics
import time

from bench_fold import interleaved
from table import Line
from threadpoolctl import threadpool_limits

import distsgd as ds
from distsgd.data.stream import Stream
from distsgd.problem import Problem

RATE, SEED = 0.01, 0
CASES = [(1, 32), (10, 32), (40, 32), (1, 256), (1, 1024)]
"""Steps between two exchanges, and samples of a step."""


def rows(*, quick: bool = False) -> list[Line]:
    """Return the rows of the table of `scripts/bench`.

    Parameters
    ----------
    quick : bool
        Whether to measure a tenth of the gradients, once.

    Returns
    -------
    list of Line
        Medians of interleaved repetitions.
    """
    problem = ds.problems.network(ds.data.digits())
    n_gradients, repetitions = (2_000, 1) if quick else (20_000, 7)
    return [*(rate_row(problem, *case, n_gradients, repetitions) for case in CASES), start_row(problem, repetitions)]


def rate_row(problem: Problem, period: int, batch: int, n_gradients: int, repetitions: int) -> Line:
    """Measure the gradients per second of one live worker, and of the bare loop."""
    n_gradients = n_gradients * 32 // batch
    pairs = [
        (live_rate(problem, period, batch, n_gradients), bare_rate(problem, batch, n_gradients))
        for _ in range(repetitions)
    ]
    ours, peer = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    return Line(
        f"live Downpour, 1 worker, network on digits, batch {batch}, exchange every {period}",
        f"{ours:,.0f} gradients/s",
        f"{peer:,.0f} of the bare loop",
        # of each pair, since both were measured at the same time
        f"{statistics.median(live / bare for live, bare in pairs):.0%} of it",
        "80 %",
    )


def live_rate(problem: Problem, period: int, batch: int, n_gradients: int) -> float:
    """Return the gradients per second of a live run, between its first and its last update."""
    run = ds.launch(
        ds.algorithms.downpour(RATE, period, period),
        problem,
        workers=1,
        gradients=n_gradients,
        batch=batch,
        seed=SEED,
        evaluations=1,
    )
    gradients, seconds = run.trace.gradients, run.trace.seconds
    return (gradients[-1] - gradients[0]) / (seconds[-1] - seconds[0])


def bare_rate(problem: Problem, batch: int, n_gradients: int) -> float:
    """Return the gradients per second of serial SGD, each step with its update."""
    stream, x = Stream(problem.samples, batch, SEED), problem.start(SEED)
    with threadpool_limits(1):
        start = time.perf_counter()
        for step in range(n_gradients):
            x = x - RATE * problem.gradient(x, stream.batch(0, step))
        return n_gradients / (time.perf_counter() - start)


def start_row(problem: Problem, repetitions: int) -> Line:
    """Measure a run of one update from its call to its return, with everything that it starts."""
    algorithm = ds.algorithms.downpour(RATE)
    (seconds,) = interleaved(
        lambda: ds.launch(algorithm, problem, workers=4, updates=1, evaluations=1), repetitions=repetitions
    )
    return Line(
        "live run of 4 workers: start, first update, end", f"{seconds:.2f} s", "-", "-", "first update under 3 s"
    )
