"""The runs of a comparison: each made once, saved as it finishes, and found again.

1. The hash of a run is known before the run. If it is saved already, it is loaded, not made.
2. A run that ends in an unexpected error is listed, and the others go on.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from distsgd.errors import ConfigError
from distsgd.problem import Problem
from distsgd.report.summary import Outcome
from distsgd.run import Run, identify, load
from distsgd.setup import Job, Setup
from distsgd.simulation import simulate
from distsgd.work import n_processes, work

Watch: TypeAlias = Callable[[Outcome], None]
"""What is told of each run as it comes."""

LITTLE = 5_000
"""Small gradients that take about as long as it takes to start a process."""
SMALL_GRADIENT = 30_000
"""Numbers that a small gradient touches; below that, the step around it takes the time."""


class Place(NamedTuple):
    """Where runs are made: a folder in which to save and find them, and how many processes.

    Without a folder nothing is saved.
    """

    folder: Path | None = None
    processes: int = 1
    is_fresh: bool = False
    """Whether runs are made again that are saved already."""


NOWHERE = Place()
"""In this process, saving nothing."""


class _Common(NamedTuple):
    setup: Setup
    folder: Path | None


def run_jobs(setup: Setup, jobs: Sequence[Job], place: Place) -> Iterator[tuple[Job, Run | str]]:
    """Make the runs of `jobs`, or find them, and give each as it comes.

    Parameters
    ----------
    setup : Setup
        What is compared.
    jobs : sequence of Job
        Runs to make. Those that are equal are made once.
    place : Place
        Where.

    Yields
    ------
    tuple
        A job, and its run or the error that ended it.

    Raises
    ------
    ConfigError
        If settings turn out not to fit together.
    """
    same: dict[str, list[Job]] = {}
    for job in jobs:
        same.setdefault(identify(setup.run_settings(job)), []).append(job)
    missing = []
    for name, own in same.items():
        saved = None if place.is_fresh else _saved(place.folder, name)
        if saved is None:
            missing.append(own[0])
        else:
            yield from ((job, saved) for job in own)
    common = _Common(setup, place.folder)
    for first, done in work(_made, common, missing, processes=place.processes):
        yield from ((job, done) for job in same[identify(setup.run_settings(first))])


def outcome_of(job: Job, done: Run | str) -> Outcome:
    """Return what came of `job`: its run, or the error that ended it."""
    run, error = (None, done) if isinstance(done, str) else (done, "")
    return Outcome(job.label, job.fleet, job.seed, run, error, job.problem)


def run_folder(folder: Path, name: str) -> Path:
    """Return the folder of the run with the hash `name`."""
    return folder / "runs" / name


def _saved(folder: Path | None, name: str) -> Run | None:
    """Return the run that is saved; one that is damaged or half written counts as missing."""
    if folder is None or not run_folder(folder, name).is_dir():
        return None
    try:
        return load(run_folder(folder, name))
    except ConfigError:
        return None


def _made(common: _Common, job: Job) -> Run | str:
    try:
        run = run_once(common.setup, job)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 # whatever ends one run must not end the others
        return f"{type(error).__name__}: {error}"
    if common.folder is not None:
        run.save(run_folder(common.folder, run.hash))
    return run


def run_once(setup: Setup, job: Job, *, target: float | None = None) -> Run:
    """Make one run of a comparison.

    Parameters
    ----------
    setup : Setup
        What is compared.
    job : Job
        The run to make.
    target : float, optional
        Training loss that ends the run.

    Returns
    -------
    Run
        The run.

    Raises
    ------
    ConfigError
        If settings turn out not to fit together; it names algorithm and fleet.
    """
    try:
        return simulate(
            job.algorithm, setup.problems[job.problem], setup.fleets[job.fleet], **setup.budget,
            seed=job.seed, target=target, **setup.manner,
        )  # fmt: skip
    except ConfigError as error:
        msg = f"algorithm {job.label!r} on fleet {job.fleet!r}: {error}"
        raise ConfigError(msg) from None


def worthwhile(setup: Setup, n_runs: int) -> int:
    """Return how many processes are worth starting for `n_runs` runs of each problem."""
    if "seconds" in setup.budget:
        return n_processes()
    gradients = sum(_gradients(setup, problem) for problem in setup.problems.values())
    return n_processes() if n_runs * gradients > LITTLE else 1


def _gradients(setup: Setup, problem: Problem) -> float:
    """Return the work of a run, in small gradients."""
    ((name, amount),) = setup.budget.items()
    n_gradients = amount * problem.samples / setup.batch if name == "epochs" else amount
    return float(n_gradients) * max(1.0, problem.dimension * setup.batch / SMALL_GRADIENT)
