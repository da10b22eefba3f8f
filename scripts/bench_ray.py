"""Many short runs as tasks of a Ray of this machine, against processes of this machine."""

import statistics
import tempfile
import time
from pathlib import Path

from bench_work import QUICK_RUNS, short_runs
from table import Line

from distsgd.experiment.pool import n_processes
from distsgd.experiment.runs import Place, run_jobs
from distsgd.experiment.setup import Job, Setup
from distsgd.live.ray.session import connected

RUNS = 500
REPETITIONS = 5


def seconds(setup: Setup, jobs: list[Job], place: Place) -> float:
    """Return how long all runs take [s]."""
    start = time.perf_counter()
    for _ in run_jobs(setup, jobs, place):
        pass
    return time.perf_counter() - start


def throughput(count: int, repetitions: int, folder: Path) -> Line:
    """Return the runs per second of a sweep that saves them, on Ray and on processes, in turn."""
    setup, jobs = short_runs(count)
    places = [Place(folder, None, is_fresh=True, on=on) for on in ("ray", "local")]
    for place in places:
        seconds(setup, jobs[: 4 * n_processes()], place)  # starts the processes
    found = [[seconds(setup, jobs, place) for place in places] for _ in range(repetitions)]
    ours, pool = (count / statistics.median(times) for times in zip(*found, strict=True))
    ratio = statistics.median(there / here for here, there in found)
    return Line(
        what=f"sweep on Ray, {count:,} short runs",
        measured=f"{ours:,.0f} runs/s",
        against=f"{pool:,.0f} runs/s (processes)",
        ratio=f"{ratio:.2f}",
        reach="0.8",
    )


def rows(*, quick: bool = False) -> list[Line]:
    """Return the table's lines; `quick` runs are too few to quote."""
    start = time.perf_counter()
    with connected(), tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter() - start
        count, repetitions = (QUICK_RUNS, 1) if quick else (RUNS, REPETITIONS)
        line = throughput(count, repetitions, Path(folder))
        start = time.perf_counter()
    ended = time.perf_counter() - start
    cost = Line(
        what="Ray of this machine",
        measured=f"{started:.1f} s to start",
        ratio="-",
        reach="-",
        against=f"{ended:.1f} s to end",
    )
    return [line, cost]
