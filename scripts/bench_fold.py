"""Folds against plain serial loops, dense and sparse; 100,000 workers with numbers."""

import multiprocessing
import re
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
from table import Line

import distsgd as ds
from distsgd.data import Data
from distsgd.data.stream import Stream
from distsgd.fold.fold import fold
from distsgd.kernels.gradients.linear import compiled_slope
from distsgd.order.schedule import schedule
from distsgd.problems.linear import logistic_slope

RATE = 0.1
MANY_WORKERS = 100_000


def rows(*, quick: bool = False) -> list[Line]:
    """Return the rows of the table of `scripts/bench`.

    Parameters
    ----------
    quick : bool
        Whether to measure a tenth of the updates, and 10,000 workers instead of 100,000.

    Returns
    -------
    list of Line
        Medians of interleaved repetitions.
    """
    return [
        *(dense_row(law, quick=quick) for law in (ds.lognormal(1.0, 0.3), ds.exponential(1.0))),
        *(sparse_row(workers, quick=quick) for workers in (8, 256)),
        memory_row(MANY_WORKERS // 10 if quick else MANY_WORKERS),
    ]


def dense_row(compute: ds.Law, *, quick: bool) -> Line:
    """Time 256 asynchronous workers against a loop of single gradients."""
    n_updates = 2_000 if quick else 20_000
    problem, algorithm = ds.problems.softmax(ds.data.digits()), ds.algorithms.downpour(RATE)
    fleet = ds.Fleet(workers=256, compute=compute)
    trace = schedule(algorithm.cycle, fleet, updates=n_updates)
    ours, peer = interleaved(
        lambda: last(fold(algorithm, problem, trace, stops=np.array([n_updates]), driver="compiled")),
        lambda: plain_softmax(problem.data, n_updates),
    )
    return Line(
        f"fold, softmax on digits, batch 32, 256 workers, {compute}",
        f"{n_updates / ours:,.0f} updates/s",
        f"{n_updates / peer:,.0f} of a serial NumPy loop",
        f"{peer / ours:.2f} times as fast",
        "2 times",
    )


def plain_softmax(data: Data, n_updates: int) -> np.ndarray:
    """Run serial SGD as one would write it in NumPy: one gradient after the other."""
    batch, rng = 32, np.random.default_rng(0)
    labels, x = np.eye(10)[data.y], np.zeros(650)
    for _ in range(n_updates):
        chosen = rng.integers(0, len(data.x), batch)
        weights, biases = x[:640].reshape(64, 10), x[640:]
        features = data.x[chosen]
        scores = features @ weights + biases
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        slopes = (scores / scores.sum(axis=1, keepdims=True) - labels[chosen]) / batch
        x = x - RATE * np.concatenate([(features.T @ slopes).ravel(), slopes.sum(axis=0)])
    return x


def sparse_row(workers: int, *, quick: bool) -> Line:
    """Time asynchronous workers on single sparse samples against a compiled serial epoch."""
    samples, features = (20_000, 47_236) if quick else (200_000, 47_236)
    problem = ds.problems.logistic(ds.data.sparse(samples, features, 75))
    algorithm, fleet = ds.algorithms.downpour(RATE), ds.Fleet(workers, ds.exponential(1.0))
    trace = schedule(algorithm.cycle, fleet, updates=samples)
    order = Stream(samples, 1, 0).batches(np.zeros(samples), np.arange(samples))[:, 0]
    slope, support = compiled_slope(logistic_slope), problem.support
    ours, peer = interleaved(
        lambda: last(fold(algorithm, problem, trace, stops=np.array([samples]), batch=1)),
        lambda: serial_epoch(support.rows, support.labels, slope, order, problem.start(0)),
    )
    return Line(
        f"fold, sparse logistic, 75 non-zeros, batch 1, {workers} workers",
        f"{ours / samples * 1e9:,.0f} ns/sample",
        f"{peer / samples * 1e9:,.0f} of a compiled serial epoch",
        f"{ours / peer:.2f} times its time",
        "at most 1.5 times",
    )


@numba.njit
def serial_epoch(data, labels, slope, order, x):  # noqa: ANN001, ANN201 # compiled
    """Run serial SGD over the samples `order`: no worker, no version, no message."""
    for sample in order:
        first, end = data.starts[sample], data.starts[sample + np.uint64(1)]
        margin = 0.0
        for entry in range(first, end):
            margin += data.values[entry] * x[data.columns[entry]]
        change = RATE * slope(margin, labels[sample])
        for entry in range(first, end):
            x[data.columns[entry]] -= change * data.values[entry]
    return x


def memory_row(workers: int) -> Line:
    """Measure the peak memory of many workers with numbers, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        before, after, seconds = pool.apply(many_workers, (workers,))
    return Line(
        f"{workers:,} workers with numbers (softmax on digits), peak memory",
        f"{after / 1e9:.2f} GB in {seconds:.0f} s",
        f"{before / 1e9:.2f} GB before; {workers * 650 * 8 / 1e9:.2f} GB of versions",
        f"{(after - before) / (workers * 650 * 8):.2f} of the versions",
        "well under 2 GB",
    )


def many_workers(workers: int) -> tuple[float, float, float]:
    """Return the peak memory before and after two updates per worker [bytes], and the time [s]."""
    problem, algorithm = ds.problems.softmax(ds.data.digits()), ds.algorithms.downpour(RATE)
    fleet = ds.Fleet(workers=workers, compute=ds.exponential(1.0))
    warnings.simplefilter("ignore", ds.DistsgdWarning)  # the loops are compiled, and no more
    ds.simulate(algorithm, problem, fleet, updates=10, driver="compiled")
    before, start = peak_bytes(), time.perf_counter()
    ds.simulate(algorithm, problem, fleet, updates=2 * workers, evaluations=2)
    return before, peak_bytes(), time.perf_counter() - start


def peak_bytes() -> float:
    """Return this process's peak memory so far [bytes]."""
    # VmHWM, since ru_maxrss starts from the process that this one was forked from
    status = Path("/proc/self/status").read_text()
    return 1024.0 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def interleaved(*actions: Callable[[], object], repetitions: int = 5) -> list[float]:
    """Return the median time of each action [s]; the first call of each is not counted."""
    times: list[list[float]] = [[] for _ in actions]
    for repetition in range(repetitions + 1):
        for action, measured in zip(actions, times, strict=True):
            start = time.perf_counter()
            action()
            if repetition:
                measured.append(time.perf_counter() - start)
    return [statistics.median(measured) for measured in times]


def last(states: object) -> object:
    """Return the last of the states of a fold."""
    return list(states)[-1]
