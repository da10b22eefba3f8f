"""The runs of a comparison: each made once, saved as it finishes, and found again.

1. The hash of a run is known before the run. If it is saved already, it is loaded, not made. A run
   that cannot be identified has a hash of its own each time (`distsgd.identity`).
2. A run that ends in an unexpected error is listed, and the others go on.
3. Live runs are made one at a time, after the others: they need the cores. No two of them have the
   same bits, so that the one that is saved is the one that counts.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

from distsgd.errors import ConfigError, unknown_name
from distsgd.live import ray_session, ray_tasks
from distsgd.live.case import Progress
from distsgd.live.fleet import LiveFleet
from distsgd.live.launch import launch
from distsgd.problem import Problem
from distsgd.report.summary import Outcome
from distsgd.run import Run, identify, load
from distsgd.setup import Job, Setup
from distsgd.simulation import simulate
from distsgd.work import n_processes, work

Watch: TypeAlias = Callable[[Outcome], None]
"""What is told of each run as it comes."""
LiveWatch: TypeAlias = Callable[[Job, Progress], None]
"""What is told of a live run on its way, a few times a second."""

LITTLE = 5_000
"""Small gradients that take about as long as it takes to start a process."""
SMALL_GRADIENT = 30_000
"""Numbers that a small gradient touches; below that, the step around it takes the time."""


class Place(NamedTuple):
    """Where runs are made: a folder in which to save and find them, and how many at once.

    Without a folder nothing is saved.
    """

    folder: Path | None = None
    processes: int | None = 1
    """None for one per core, or per CPU of the cluster."""
    is_fresh: bool = False
    """Whether runs are made again that are saved already."""
    watch: LiveWatch | None = None
    """What is told of live runs on their way."""
    on: str = "local"
    """Who makes the modelled runs: processes of this machine, or the tasks of a Ray cluster."""


MACHINES = ("local", "ray")
"""What `Place.on` may be."""
NOWHERE = Place()
"""In this process, saving nothing."""


class _Common(NamedTuple):
    setup: Setup
    folder: Path | None
    watch: LiveWatch | None = None


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
    equal = {id(own[0]): own for own in same.values()}
    for first, done in _all_made(setup, missing, place):
        yield from ((job, done) for job in equal[id(first)])


def _is_live(setup: Setup, job: Job) -> bool:
    return isinstance(setup.machines_of(job.fleet), LiveFleet)


def _all_made(setup: Setup, jobs: Sequence[Job], place: Place) -> Iterator[tuple[Job, Run | str]]:
    modelled, live = ([job for job in jobs if _is_live(setup, job) is one] for one in (False, True))
    yield from _all_modelled(setup, modelled, place)
    yield from work(_made, _Common(setup, place.folder, place.watch), live, processes=1)


def _all_modelled(
    setup: Setup, jobs: Sequence[Job], place: Place
) -> Iterator[tuple[Job, Run | str]]:
    if place.on == "local":
        common, processes = _Common(setup, place.folder), n_processes(place.processes)
        yield from work(_made, common, jobs, processes=processes)
        return
    # The nodes of a cluster need not see the folder: the runs come back, and are saved here.
    for job, done in ray_tasks.work(_made, _Common(setup, None), jobs, processes=place.processes):
        yield job, _kept(done, place.folder)


@contextlib.contextmanager
def connected(place: Place) -> Iterator[None]:
    """Keep what `place` needs for as long as the block runs: one Ray for all of its runs.

    Raises
    ------
    ConfigError
        If there is no such place, or it cannot be used.
    """
    if place.on not in MACHINES:
        raise unknown_name("place to run on", place.on, MACHINES)
    n_processes(place.processes)
    with contextlib.ExitStack() as stack:
        if place.on == "ray":
            stack.enter_context(ray_session.connected(processes=place.processes))
        yield


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
        run = run_once(common.setup, job, watch=common.watch)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 # whatever ends one run must not end the others
        return f"{type(error).__name__}: {error}"
    return _kept(run, common.folder)


def _kept(done: Run | str, folder: Path | None) -> Run | str:
    """Save a run, if there is a folder for it, and return it."""
    if folder is not None and isinstance(done, Run):
        done.save(run_folder(folder, done.hash))
    return done


def run_once(
    setup: Setup, job: Job, *, target: float | None = None,
    stop: Callable[[], bool] = lambda: False, watch: LiveWatch | None = None,
) -> Run:  # fmt: skip
    """Make one run of a comparison.

    Parameters
    ----------
    setup : Setup
        What is compared.
    job : Job
        The run to make.
    target : float, optional
        Training loss that ends the run.
    stop : callable, optional
        Asked again and again whether to end the run.
    watch : callable, optional
        Told of a live run on its way.

    Returns
    -------
    Run
        The run.

    Raises
    ------
    ConfigError
        If settings turn out not to fit together; it names algorithm and fleet.
    """
    machines, ending = setup.machines_of(job.fleet), {"target": target, "stop": stop}
    given = {**setup.budget, "seed": job.seed, **ending}
    problem = setup.problems[job.problem]
    try:
        if not isinstance(machines, LiveFleet):
            return simulate(job.algorithm, problem, machines, **given, **setup.manner)
        told = None if watch is None else partial(watch, job)
        own = machines.arguments(job.algorithm) | setup.live_manner
        return launch(job.algorithm, problem, **given, **own, watch=told)
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
