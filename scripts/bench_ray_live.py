"""Live runs on Ray nodes of this machine, against the same runs by local processes.

All nodes share the cores of one machine, so that more of them are no faster: this measures what
actors and TCP cost, and encryption where it is on, as it is between machines. Gradients per second
count from the first update to the last.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from table import Line

import distsgd as ds
from distsgd.live.ray.session import connected, ensure_token, package
from distsgd.problem import Problem
from distsgd.run import Run

RATE, WORKERS, SEED = 0.01, 2, 0
CASES = [(1, 32), (10, 32), (1, 256)]
"""Steps between two exchanges, and samples of a step."""
GRADIENTS, QUICK_GRADIENTS = 10_000, 500
REPETITIONS = 3
MEMORY_BYTES = 100 * 2**20


class Nodes:
    """A Ray cluster on this machine, which grows."""

    def __init__(self) -> None:
        self._cluster: Any = package("ray.cluster_utils").Cluster()

    @property
    def address(self) -> str:
        """Where the cluster is."""
        return str(self._cluster.address)

    def grow(self, count: int) -> None:
        """Have so many nodes, each with room for the whole run."""
        while len(self._cluster.list_all_nodes()) < count:
            self._cluster.add_node(num_cpus=WORKERS + 2, object_store_memory=MEMORY_BYTES)

    def end(self) -> None:
        """End all nodes."""
        for node in self._cluster.list_all_nodes()[::-1]:
            self._cluster.remove_node(node, allow_graceful=False)


@contextmanager
def nodes() -> Iterator[Nodes]:
    """Give a cluster, of which nothing is left afterwards."""
    ensure_token()
    os.environ.setdefault("RAY_worker_niceness", "0")  # by default others would be served first
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as name:
        Path(name, "ray").mkdir()  # where the address of the cluster is written
        usual, os.environ["RAY_TMPDIR"] = os.environ.get("RAY_TMPDIR"), name
        cluster = Nodes()
        try:
            yield cluster
        finally:
            cluster.end()
            del os.environ["RAY_TMPDIR"]
            if usual is not None:
                os.environ["RAY_TMPDIR"] = usual


def launched(problem: Problem, on: str, period: int, **options: int) -> Run:
    """Make a run of Downpour that is evaluated at its start and its end only."""
    algorithm = ds.algorithms.downpour(RATE, period, period)
    return ds.launch(algorithm, problem, workers=WORKERS, on=on, seed=SEED, evaluations=1, **options)


def rate(problem: Problem, on: str, period: int, batch: int, n_gradients: int) -> float:
    """Return the gradients per second of a run."""
    run = launched(problem, on, period, batch=batch, gradients=n_gradients)
    gradients, seconds = run.trace.gradients, run.trace.seconds
    return float((gradients[-1] - gradients[0]) / (seconds[-1] - seconds[0]))


def rate_row(problem: Problem, count: int, case: tuple[int, int], *, quick: bool, how: str = "") -> Line:
    """Measure a case on so many nodes and by local processes, in turn."""
    period, batch = case
    n_gradients = (QUICK_GRADIENTS if quick else GRADIENTS) * 32 // batch
    found = [
        [rate(problem, on, period, batch, n_gradients) for on in ("ray", "local")]
        for _ in range(1 if quick else REPETITIONS)
    ]
    ours, local = (statistics.median(rates) for rates in zip(*found, strict=True))
    ratio = statistics.median(there / here for there, here in found)
    return Line(
        f"live on {count} Ray nodes{how}, {WORKERS} workers, network, batch {batch}, exchange every {period}",
        f"{ours:,.0f} gradients/s",
        f"{local:,.0f} (local)",
        f"{ratio:.2f}",
        "0.7",
    )


def encrypted_rows(problem: Problem) -> list[Line]:
    """Measure all cases as between machines."""
    with patch("distsgd.live.ray.processes.is_one_machine", return_value=False):
        return [rate_row(problem, 3, case, quick=False, how=", encrypted") for case in CASES]


def start_row(problem: Problem, what: str, repetitions: int) -> Line:
    """Measure a run of one update, with everything that it starts and ends."""
    times: dict[str, list[float]] = {"ray": [], "local": []}
    for _ in range(repetitions):
        for on, found in times.items():
            start = time.perf_counter()
            launched(problem, on, 1, updates=1)
            found.append(time.perf_counter() - start)
    ours, local = (statistics.median(found) for found in times.values())
    return Line(
        f"run of 1 update, {WORKERS} workers, {what}",
        f"{ours:.1f} s",
        f"{local:.1f} s (local)",
        f"{ours / local:.1f}",
        "-",
    )


def rows(*, quick: bool = False) -> list[Line]:
    """Return the table's lines; `quick` runs are too few to quote."""
    problem, found = ds.problems.network(ds.data.digits()), []
    if not quick:
        found.append(start_row(problem, "on a Ray of its own", 3))
    with nodes() as cluster:
        for count in (1,) if quick else (1, 2, 3):
            cluster.grow(count)
            with connected(cluster.address):
                found += [rate_row(problem, count, case, quick=quick) for case in (CASES[:1] if quick else CASES)]
                if count == 3:
                    found += encrypted_rows(problem)
                if count == 1:
                    found.append(start_row(problem, "on a cluster", 1 if quick else 3))
    return found
