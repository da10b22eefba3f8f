"""The runs of a comparison: each made once, saved as it finishes, and found again.

1. The hash of a run is known before the run. If it is saved already, it is loaded, not made. A run
   that cannot be identified has a hash of its own each time (`distsgd.rules.identity`).
2. A run that ends in an unexpected error is listed, and the others go on.
3. A run comes with its crossing of its problem's target, if there is one. It is looked for where
   the run is made, in a saved run too that does not know it.
4. Live runs are made one at a time, after the others: they need the cores. No two of them have the
   same bits, so that the one that is saved is the one that counts.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from distsgd.errors import ConfigError, check_name, raised
from distsgd.experiment.outcome import Outcome
from distsgd.experiment.pool import n_processes, work
from distsgd.experiment.setup import Job, Setup
from distsgd.fold.crossing import with_crossing
from distsgd.fold.request import NO_HOOKS, Hooks, Progress, RunRequest
from distsgd.fold.simulate import simulated
from distsgd.live.launch import launched
from distsgd.live.options import LiveFleet
from distsgd.live.ray import session as ray_session
from distsgd.live.ray import tasks as ray_tasks
from distsgd.problem import Problem
from distsgd.run import Run, identify, load_as

log = logging.getLogger("distsgd.experiment.runs")

Watch: TypeAlias = Callable[[Outcome], None]
"""What is told of each run as it comes."""
LiveWatch: TypeAlias = Callable[[Job, Progress], None]
"""What is told of a live run on its way, a few times a second."""

Make: TypeAlias = Callable[[RunRequest[Any], Hooks], Run]
"""Makes a run from its request."""

LITTLE = 5_000
"""Number of small gradients that take as long as starting a process."""
SMALL_GRADIENT = 30_000
"""Numbers that a small gradient touches; below that, the step around it takes the time."""


def made(request: RunRequest[Any], hooks: Hooks = NO_HOOKS) -> Run:
    """Make a run on the engine that its fleet asks for."""
    return launched(request, hooks) if isinstance(request.fleet, LiveFleet) else simulated(request, hooks)


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
    """Where modelled runs are made: in processes of this machine, or in tasks of a Ray cluster."""
    make: Make = made
    """Makes a run from its request."""


MACHINES = ("local", "ray")
"""What `Place.on` may be."""
NOWHERE = Place()
"""In this process, saving nothing."""
NO_TARGETS: Mapping[str, float] = MappingProxyType({})


class _Common(NamedTuple):
    setup: Setup
    place: Place


class _Piece(NamedTuple):
    """A run that is to be made or found, and the targets whose crossings it shall know."""

    name: str
    job: Job
    targets: tuple[float, ...]
    is_saved: bool
    """Whether the run itself is there, and lacks crossings only."""


def run_jobs(
    setup: Setup, jobs: Sequence[Job], place: Place, targets: Mapping[str, float] = NO_TARGETS
) -> Iterator[tuple[Job, Run | str]]:
    """Make the runs of `jobs`, or find them, and give each as it comes, or the error that ended it.

    Equal ones are made once. Runs come with their crossings of `targets`, training losses by the
    label of the problem. Settings that turn out not to fit together are a `ConfigError`.
    """
    same: dict[str, list[Job]] = {}
    for job in jobs:
        same.setdefault(identify(setup.request(job).settings), []).append(job)
    missing = []
    for name, own in same.items():
        wanted = {targets[job.problem] for job in own if job.problem in targets}
        saved = None if place.is_fresh else _saved(place.folder, name)
        if saved is None or not wanted <= {one.target for one in saved.crossings}:
            missing.append(_Piece(name, own[0], tuple(sorted(wanted)), saved is not None))
        else:
            yield from ((job, saved) for job in own)
    for piece, done in _all_made(setup, missing, place):
        yield from ((job, done) for job in same[piece.name])


def _is_live(setup: Setup, piece: _Piece) -> bool:
    return isinstance(setup.machines_of(piece.job.fleet), LiveFleet)


def _all_made(setup: Setup, pieces: Sequence[_Piece], place: Place) -> Iterator[tuple[_Piece, Run | str]]:
    modelled, live = ([one for one in pieces if _is_live(setup, one) is so] for so in (False, True))
    quiet = place._replace(watch=None)  # which no other process could call
    if place.on == "local":
        yield from work(_made, _Common(setup, quiet), modelled, processes=n_processes(place.processes))
    else:
        # The nodes of a cluster need not see the folder: the runs come back, and are saved here.
        common = _Common(setup, quiet._replace(folder=None))
        for piece, done in ray_tasks.work(_made, common, modelled, processes=place.processes):
            yield piece, _kept(done, place.folder)
    yield from work(_made, _Common(setup, place), live, processes=1)


@contextlib.contextmanager
def connected(place: Place) -> Iterator[None]:
    """Keep what a usable place needs for as long as the block runs: one Ray for all runs."""
    check_name("place to run on", place.on, MACHINES)
    n_processes(place.processes)
    with ray_session.connected(processes=place.processes) if place.on == "ray" else contextlib.nullcontext():
        yield


def outcome_of(job: Job, done: Run | str) -> Outcome:
    """Return what came of `job`: its run, or the error that ended it."""
    run, error = (None, done) if isinstance(done, str) else (done, "")
    return Outcome(job.label, job.fleet, job.seed, run, error, job.problem)


def run_folder(folder: Path, name: str) -> Path:
    """Return the folder of the run with the hash `name`."""
    return folder / "runs" / name


def _saved(folder: Path | None, name: str) -> Run | None:
    """Return the run that is saved; one that is damaged is named, and counts as missing."""
    if folder is None or not os.path.lexists(path := run_folder(folder, name)):
        return None
    try:
        return load_as(path, name)
    except ConfigError as error:
        log.warning("made again: %s", error)
        return None


def _made(common: _Common, piece: _Piece) -> Run | str:
    try:
        saved = _saved(common.place.folder, piece.name) if piece.is_saved else None
        run = saved or _run(common, piece)
        for target in piece.targets:
            run = with_crossing(run, piece.job.algorithm, common.setup.problems[piece.job.problem], target)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 # whatever ends one run must not end the others
        return raised(error)
    return run if run is saved else _kept(run, common.place.folder)


def _run(common: _Common, piece: _Piece) -> Run:
    run = run_once(common.setup, piece.job, watch=common.place.watch, make=common.place.make)
    if _is_live(common.setup, piece):  # it cannot be made again: it is kept, whatever follows
        _kept(run, common.place.folder)
    return run


def _kept(done: Run | str, folder: Path | None) -> Run | str:
    """Save a run, if there is a folder for it, and return it."""
    if folder is not None and isinstance(done, Run):
        done.save(run_folder(folder, done.hash))
    return done


def run_once(
    setup: Setup,
    job: Job,
    *,
    target: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    watch: LiveWatch | None = None,
    make: Make = made,
) -> Run:
    """Make one run of a comparison; a `ConfigError` names its algorithm and fleet.

    The training loss `target` ends it; `stop` is asked again and again whether to, and `watch` is
    told of a live run on its way.
    """
    told = None if watch is None else partial(watch, job)
    try:
        return make(setup.request(job, target), Hooks(stop, told))
    except ConfigError as error:
        raise ConfigError(f"algorithm {job.label!r} on fleet {job.fleet!r}: {error}") from None


def worthwhile(setup: Setup, n_runs: int) -> int:
    """Return how many processes are worth starting for `n_runs` runs of each problem."""
    if setup.config.budget.unit == "seconds":
        return n_processes()
    gradients = sum(_gradients(setup, problem) for problem in setup.problems.values())
    return n_processes() if n_runs * gradients > LITTLE else 1


def _gradients(setup: Setup, problem: Problem) -> float:
    """Return the work of a run, in small gradients."""
    batch = setup.config.batch
    n_gradients = setup.config.budget.without_epochs(batch, problem.samples).amount
    return n_gradients * max(1.0, problem.dimension * batch / SMALL_GRADIENT)
