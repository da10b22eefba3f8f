"""Many short runs: how busy the cores are, and what a run costs beside its numbers."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from table import Line

import distsgd as ds
from distsgd.experiment.pool import n_processes, work
from distsgd.experiment.runs import Place, outcome_of, run_folder, run_jobs, run_once
from distsgd.experiment.setup import Job, Setup
from distsgd.fold.request import RunConfig
from distsgd.order.budget import Budget
from distsgd.report.comparison import Comparison
from distsgd.run import Run, identify

RUNS, QUICK_RUNS = 1_000, 20
REPETITIONS = 3
SPIN_S = 1.0


def short_runs(count: int) -> tuple[Setup, list[Job]]:
    """Return so many runs of 2 epochs of softmax on digits, about 10 ms each."""
    algorithm = ds.algorithms.downpour(0.5)
    setup = Setup(
        {"Downpour": algorithm},
        ds.problems.softmax(ds.data.digits()),
        {"machines": ds.Fleet(8, ds.exponential(1.0))},
        RunConfig(Budget("epochs", 2.0), evaluations=40),
        seeds=range(count),
        target=0.5,
    )
    return setup, [Job("softmax", "machines", "Downpour", seed, algorithm) for seed in setup.seeds]


def run_and_save(common: tuple[Setup, Path], job: Job) -> float:
    """Make and save a run; return the processor time that it took [s]."""
    setup, folder = common
    start = time.process_time()
    run = run_once(setup, job)
    run.save(run_folder(folder, run.hash))
    return time.process_time() - start


def spin(_: object, seconds: float) -> float:
    """Use the processor for so long; return the processor time that it took [s]."""
    start = time.process_time()
    while time.process_time() < start + seconds:
        pass
    return time.process_time() - start


def cores(do: Callable[[Any, Any], float], common: object, pieces: list[Any]) -> float:
    """Return how many cores the work had on average."""
    start = time.perf_counter()
    used = sum(done for _, done in work(do, common, pieces, processes=n_processes()))
    return used / (time.perf_counter() - start)


def busy(count: int, folder: Path) -> Line:
    """Return how many cores many short runs have, beside loops that do nothing else."""
    setup, jobs = short_runs(count)
    common, loops = (setup, folder), [SPIN_S] * n_processes()
    cores(run_and_save, common, jobs[: 2 * n_processes()])  # starts the processes
    found = [(cores(run_and_save, common, jobs), cores(spin, None, loops)) for _ in range(REPETITIONS)]
    ours, free = (statistics.median(values) for values in zip(*found, strict=True))
    return Line(
        what=f"cores at work, {count:,} short runs",
        measured=f"{ours:.2f}",
        against=f"{free:.2f} (loops)",
        ratio=f"{ours / free:.2f}",
        reach="0.9",
    )


def beside(count: int, folder: Path) -> Line:
    """Return what hash, saving and statistics cost, beside the run itself."""
    setup, jobs = short_runs(count)
    runs = [run for _, run in run_jobs(setup, jobs, Place()) if isinstance(run, Run)]
    found = [outcome_of(*pair) for pair in zip(jobs, runs, strict=True)]
    alone = median_s(lambda job: run_once(setup, job), jobs)
    ours = median_s(lambda job: identify(setup.request(job).settings), jobs)
    ours += median_s(lambda run: run.save(run_folder(folder, run.hash)), runs)
    ours += median_s(lambda one: Comparison(one, found).summary, [setup.settings]) / count
    return Line(
        what="hash, save, statistics of a run",
        measured=f"{ours * 1e3:.1f} ms",
        against=f"{alone * 1e3:.1f} ms (the run)",
        ratio=f"{ours / alone:.2f}",
        reach="10 ms",
    )


def median_s(do: Callable[[Any], object], pieces: list[Any]) -> float:
    """Return the median time that `do` takes for a piece [s]."""
    times = []
    for piece in pieces:
        start = time.perf_counter()
        do(piece)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def rows(*, quick: bool = False) -> list[Line]:
    """Return the table's lines; `quick` runs are too few to quote."""
    count = QUICK_RUNS if quick else RUNS
    with tempfile.TemporaryDirectory() as folder:
        return [busy(count, Path(folder, "busy")), beside(max(QUICK_RUNS, count // 10), Path(folder, "beside"))]
