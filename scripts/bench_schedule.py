"""The order alone, against the same model in SimPy: served pulls and pushes per second."""

import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import simpy
from table import Line

from distsgd.algorithm import Pull, Push, Step
from distsgd.order.fleet import Fleet
from distsgd.order.laws import exponential
from distsgd.order.schedule import schedule

CYCLE = (Pull(), Step(), Push())
RUNS = {10: 5, 1_000: 5, 100_000: 3, 1_000_000: 1}
"""Runs for each number of workers; SimPy takes half a minute to start a million processes."""


def ours(workers: int, updates: int) -> int:
    """Schedule asynchronous SGD; return the number of rows."""
    fleet = Fleet(workers, exponential(1.0))
    return len(schedule(CYCLE, fleet, updates=updates).rows)


def peer(workers: int, updates: int) -> int:
    """Run the same model in SimPy: a process per worker, an instantaneous server, a list."""
    environment = simpy.Environment()
    generator = random.Random(0)
    rows: list[tuple[float, int, bool, int]] = []
    ended = environment.event()
    version = 0

    def worker(w: int) -> Iterator[Any]:
        nonlocal version
        rows.append((environment.now, w, False, version))
        while True:
            yield environment.timeout(generator.expovariate(1.0))
            version += 1
            rows.append((environment.now, w, True, version))
            if version == updates:
                ended.succeed()
            rows.append((environment.now, w, False, version))

    for w in range(workers):
        environment.process(worker(w))
    environment.run(ended)
    return len(rows)


def rate(simulate: Callable[[int, int], int], workers: int, updates: int) -> float:
    """Return the rows per second of one run."""
    start = time.perf_counter()
    rows = simulate(workers, updates)
    return rows / (time.perf_counter() - start)


def measured(workers: int, scale: float) -> Line:
    """Return the medians of interleaved runs with so many workers."""
    rates: tuple[list[float], list[float]] = ([], [])
    for _ in range(RUNS[workers]):
        rates[0].append(rate(ours, workers, int(1_000_000 * scale)))
        rates[1].append(rate(peer, workers, int(100_000 * scale)))
    fast, slow = map(statistics.median, rates)
    return Line(
        what=f"order, {workers:,} workers",
        measured=f"{fast / 1e6:.2f} M rows/s",
        against=f"{slow / 1e6:.2f} of SimPy",
        ratio=f"{fast / slow:.1f} times as fast",
        reach={1_000: "10 M rows/s", 1_000_000: "1 M rows/s"}.get(workers, "-"),
    )


def rows(*, quick: bool = False) -> list[Line]:
    """Return the table's lines; `quick` runs are too short to quote."""
    ours(2, 10)  # compiles, or loads what was compiled
    sizes = (10, 1_000) if quick else (10, 1_000, 100_000, 1_000_000)
    return [measured(workers, 0.02 if quick else 1.0) for workers in sizes]
