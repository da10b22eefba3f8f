"""Replay: the order of a run that was recorded, folded again.

replay = fold(recorded trace)
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped] # it ships no types

from distsgd.algorithm import Algorithm, settings
from distsgd.data.partition import Partition
from distsgd.errors import ConfigError
from distsgd.fold.fold import DriverName, State
from distsgd.fold.history import evaluation_points
from distsgd.fold.replay_check import check_close, check_equal, check_replayable, check_same
from distsgd.fold.request import NO_HOOKS, partition_settings
from distsgd.fold.simulate import ending, folded, states_of
from distsgd.problem import Exactness, Problem, problem_settings
from distsgd.run import Run, Settings, is_live
from distsgd.trace import Trace

REPLAYED = ("batch", "seed", "partition")
"""Settings that a replay can change, on which the numbers depend."""


def replay(
    recorded: Run | Trace,
    algorithm: Algorithm,
    problem: Problem,
    *,
    batch: int | None = None,
    seed: int | None = None,
    evaluate_every: int | None = None,
    evaluations: int | None = None,
    partition: Partition | None = None,
    driver: DriverName = "auto",
) -> Run:
    """Fold a recorded order again: the same run, bit for bit.

    The replay of a run, simulated or live, is compared with it. That of a live run takes one thread
    for linear algebra, as each of its workers had.

    Parameters
    ----------
    recorded : Run or Trace
        What to replay. A run knows its batch, its seed and its points of evaluation.
    algorithm : Algorithm
        The algorithm that was recorded.
    problem : Problem
        The problem that was recorded.
    batch, seed, evaluate_every, evaluations : int, optional
        As in `simulate`; by default those of the run, whose own points of evaluation are used where
        none are asked for. A trace alone needs `batch` and `seed`.
    partition : Partition, optional
        As in `simulate`; by default that of the run. A trace alone does not know its own.
    driver : {"auto", "interpreted", "compiled"}, default "auto"
        Which code calls the rules. All have the same bits.

    Returns
    -------
    Run
        The run, computed again; its `difference` from the recorded one is 0, or, where the problem
        promises no equal bits, how close it is.

    Raises
    ------
    ConfigError
        If `algorithm` or `problem` is not the one that was recorded, a trace comes alone, or the
        run is lock-free or of another version of distsgd.
    TraceError
        If no server can have served this order, or the replay differs from the run: it says where.
    """
    run = recorded if isinstance(recorded, Run) else None
    known: Settings = {} if run is None else dict(run.settings)
    if run is not None:
        check_replayable(run)
    asked = {"algorithm": settings(algorithm), "problem": problem_settings(problem)}
    for name, value in asked.items():
        check_same(name, value, known.get(name, value))
    given = {"batch": batch, "seed": seed, "evaluate_every": evaluate_every, "evaluations": evaluations}
    if evaluate_every is not None or evaluations is not None:
        known |= {"evaluate_every": None, "evaluations": None}  # those of the run give way
    known |= asked | {name: value for name, value in given.items() if value is not None}
    if partition is not None:
        known.pop("partition", None)
        known |= partition_settings(partition)
    if "batch" not in known or "seed" not in known:
        raise ConfigError("a trace alone does not know its batch and its seed; give both to replay")
    trace = recorded.trace if isinstance(recorded, Run) else recorded
    trace.verify()
    has_own_points = run is not None and evaluate_every is None and evaluations is None
    if run is not None and has_own_points:
        stops, is_over = np.unique(np.append(run.history["update"], trace.n_updates)), None
    else:
        stops = evaluation_points(trace, known.get("evaluate_every"), known.get("evaluations"))
        is_over = ending(None, NO_HOOKS)
    with _threads(known):
        again = folded(algorithm, problem, trace, known, stops=stops, driver=driver, is_over=is_over)
    return again if run is None else _compared(again, run, problem.exactness, has_own_points=has_own_points)


def states(run: Run, algorithm: Algorithm, problem: Problem, stops: NDArray[np.int64]) -> Iterator[State]:
    """Fold the order of `run` again, and yield the parameters after the updates `stops`, int64[n].

    These ascend, and the parameters have the bits that the run had. It is a `ConfigError` if
    `algorithm` or `problem` is not that of the run, or the run is lock-free or of another version
    of distsgd.
    """
    check_replayable(run)
    check_same("algorithm", settings(algorithm), run.settings["algorithm"])
    check_same("problem", problem_settings(problem), run.settings["problem"])
    with _threads(run.settings):
        yield from states_of(algorithm, problem, run.trace, run.settings, stops=stops)


def _compared(again: Run, run: Run, exactness: Exactness, *, has_own_points: bool) -> Run:
    """Return the replay `again` of `run`, once it is known to be that run."""
    if all(again.settings.get(name) == run.settings.get(name) for name in REPLAYED):
        if exactness == "bits":
            check_equal(again, run, has_own_points=has_own_points)
        again = replace(again, difference=check_close(again, run))
    if has_own_points:
        again = replace(again, status=run.status, diverged_at=run.diverged_at)
    return replace(again, source=run.source)


def _threads(known: Settings) -> AbstractContextManager[Any]:
    """Return what limits linear algebra to the threads that a run had."""
    return threadpool_limits(limits=1) if is_live(known) else nullcontext()
