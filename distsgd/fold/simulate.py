"""Simulate and replay: the two engines that need one core.

simulate = fold(schedule(...))       replay = fold(recorded trace)
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped] # it ships no types

from distsgd.algorithm import Algorithm, check_algorithm, settings
from distsgd.data.partition import SHARED, Partition
from distsgd.errors import ConfigError, check_batch, check_budget, check_count, check_number, check_seed, warn
from distsgd.fold.fold import DriverName, ReadsName, State, check_reads, fold
from distsgd.fold.history import Point, evaluation_points, history, message_bytes
from distsgd.fold.replay_check import check_equal, check_replayable, check_same
from distsgd.fold.settings_check import of_fleet, of_problem
from distsgd.order.fleet import Fleet, StaleReads
from distsgd.order.schedule import schedule
from distsgd.problem import Problem, problem_settings
from distsgd.run import Run, Settings, Status, is_live
from distsgd.trace import Trace

REPLAYED = ("batch", "seed", "partition")
"""Settings that a replay can change, on which the numbers depend."""


class Ending(NamedTuple):
    """When to end before the budget is spent; looked at where the objective is evaluated."""

    target: float | None = None
    """Training loss that is good enough."""
    asked: Callable[[], bool] = lambda: False
    """Whether the caller asks to stop."""


def simulate(
    algorithm: Algorithm,
    problem: Problem,
    fleet: Fleet | StaleReads,
    *,
    updates: int | None = None,
    gradients: int | None = None,
    epochs: float | None = None,
    seconds: float | None = None,
    batch: int = 32,
    seed: int = 0,
    evaluate_every: int | None = None,
    evaluations: int | None = None,
    partition: Partition = SHARED,
    reads: ReadsName = "consistent",
    atomic: bool = True,
    target: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    driver: DriverName = "auto",
) -> Run:
    """Run `algorithm` on a model of machines, with real gradients and a virtual clock.

    The order in which the server serves its workers is sampled first; it does not depend on the
    parameters. Then the rules are applied in that order. Evaluation stands outside the clock.

    Parameters
    ----------
    algorithm : Algorithm
        What to run, for example ``distsgd.algorithms.downpour(0.1)``.
    problem : Problem
        What to minimise, for example ``distsgd.problems.softmax(distsgd.data.digits())``.
    fleet : Fleet or StaleReads
        The machines, or the staleness, to run it on.
    updates, gradients, epochs, seconds : number, optional
        The budget, exactly one of them: updates of the server, mini-batch gradients of all workers
        together, passes over the samples by all workers together, or virtual time [s].
    batch : int, default 32
        Samples of one gradient.
    seed : int, default 0
        Seed of machines, samples, their division and starting point; each has streams of its own.
    evaluate_every : int, optional
        Updates between two points of the history.
    evaluations : int, optional
        Points of the history, equally spaced in gradients; 50 by default.
    partition : Partition, optional
        Which samples a worker sees, for example ``Partition("skewed", concentration=0.1)``; by
        default every worker draws from all samples, with replacement.
    reads : {"consistent", "interleaved"}, default "consistent"
        Whether a worker reads one version, or coordinate by coordinate while others write: as in
        Hogwild!, for sparse data and workers that never wait (`distsgd.fold.interleaved`).
    atomic : bool, default True
        Whether interleaved changes of a coordinate are atomic. Otherwise some overwrite others;
        ``run.counts`` says how many are lost.
    target : float, optional
        Training loss at which to end.
    stop : callable, optional
        Asked at each point of the history whether to end there.
    driver : {"auto", "interpreted", "compiled"}, default "auto"
        Which code calls the rules. All have the same bits; "auto" takes the fastest.

    Returns
    -------
    Run
        Parameters, history and trace; its status is "done", "target", "diverged" or "stopped".

    Raises
    ------
    ConfigError
        If an argument is outside its bounds, or the arguments do not fit together.

    Examples
    --------
    >>> import distsgd as ds
    >>> run = ds.simulate(ds.algorithms.serial(0.5), ds.problems.quadratic([1.0]),
    ...                   ds.Fleet(workers=1), updates=3, evaluate_every=1)
    >>> run.history["loss"].to_list()
    [0.5, 0.125, 0.03125, 0.0078125]
    """
    check_algorithm(algorithm)
    batch, seed = check_batch(batch), check_seed(seed)
    doubts = of_problem(problem, batch, target=_target(target), seed=seed)
    budget = {"updates": updates, "gradients": gradients, "epochs": epochs, "seconds": seconds}
    amounts = _scheduled(budget, batch, problem.samples)
    check_reads(reads, driver, is_atomic=atomic)
    pulled, pushed = message_bytes(algorithm, problem, batch)
    trace = schedule(algorithm.cycle, fleet, seed=seed, pull_bytes=pulled, push_bytes=pushed, **amounts)
    known = run_settings(
        algorithm,
        problem,
        fleet,
        budget,
        batch=batch,
        seed=seed,
        evaluate_every=evaluate_every,
        evaluations=evaluations,
        partition=partition,
        reads=reads,
        atomic=atomic,
        target=target,
    )
    doubts += of_fleet(fleet, problem, algorithm, budget, batch=batch, partition=partition)
    warn(doubts)
    return _run(
        algorithm,
        problem,
        trace,
        known,
        stops=_stops(trace, known),
        driver=driver,
        ending=Ending(_target(target), stop),
    )


def run_settings(
    algorithm: Algorithm,
    problem: Problem,
    fleet: Fleet | StaleReads | Mapping[str, Any],
    budget: Mapping[str, float | None],
    *,
    batch: int,
    seed: int,
    evaluate_every: int | None = None,
    evaluations: int | None = None,
    partition: Partition = SHARED,
    reads: ReadsName = "consistent",
    atomic: bool = True,
    target: float | None = None,
) -> Settings:
    """Return the settings of a run, which identify it before it is made.

    The arguments are those of `simulate`; `budget` holds the one that is given, by its name. The
    fleet of a live run is a mapping, which says its kind.

    Raises
    ------
    ConfigError
        If the reads do not suit the fleet.
    """
    points = {"evaluate_every": evaluate_every, "evaluations": evaluations}
    return {
        "algorithm": settings(algorithm),
        "problem": problem_settings(problem),
        "fleet": dict(fleet if isinstance(fleet, Mapping) else fleet.settings),
        "batch": batch,
        "seed": seed,
        "budget": check_budget(budget),
        "target": _target(target),
        **{name: n if n is None else check_count(name, n) for name, n in points.items()},
        **_partition_settings(partition),
        **_reads_settings(reads, fleet, is_atomic=atomic),
    }


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
        The run, computed again.

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
        known |= _partition_settings(partition)
    if "batch" not in known or "seed" not in known:
        msg = "a trace alone does not know its batch and its seed; give both to replay"
        raise ConfigError(msg)
    trace = recorded.trace if isinstance(recorded, Run) else recorded
    trace.verify()
    has_own_points = run is not None and evaluate_every is None and evaluations is None
    own = np.append(run.history["update"], trace.n_updates) if run and has_own_points else None
    with _threads(known):
        again = _run(
            algorithm,
            problem,
            trace,
            known,
            driver=driver,
            stops=_stops(trace, known) if own is None else np.unique(own),
            ending=Ending() if own is None else None,
        )
    return again if run is None else _compared(again, run, has_own_points=has_own_points)


def states(run: Run, algorithm: Algorithm, problem: Problem, stops: NDArray[np.int64]) -> Iterator[State]:
    """Fold the order of `run` again, and yield the parameters after some of its updates.

    Parameters
    ----------
    run : Run
        A run with an order.
    algorithm, problem : Algorithm, Problem
        Those of the run.
    stops : int64[n]
        Updates, ascending.

    Yields
    ------
    State
        Once for each of `stops`, with the bits that the run had there.

    Raises
    ------
    ConfigError
        If `algorithm` or `problem` is not that of the run, or the run is lock-free or of another
        version of distsgd.
    """
    check_replayable(run)
    check_same("algorithm", settings(algorithm), run.settings["algorithm"])
    check_same("problem", dict(problem.settings), run.settings["problem"])
    with _threads(run.settings):
        yield from _folded(algorithm, problem, run.trace, run.settings, stops=stops)


def _compared(again: Run, run: Run, *, has_own_points: bool) -> Run:
    """Return the replay `again` of `run`, once it is known to be that run."""
    if all(again.settings.get(name) == run.settings.get(name) for name in REPLAYED):
        check_equal(again, run, has_own_points=has_own_points)
    if has_own_points:
        again = replace(again, status=run.status, diverged_at=run.diverged_at)
    return replace(again, source=run.source)


def _threads(known: Settings) -> AbstractContextManager[Any]:
    """Return what limits linear algebra to the threads that a run had."""
    return threadpool_limits(limits=1) if is_live(known) else nullcontext()


def _scheduled(budget: dict[str, Any], batch: int, samples: int) -> dict[str, Any]:
    """Return the budget as a schedule takes it: epochs are a number of gradients."""
    given = {name: amount for name, amount in budget.items() if amount is not None}
    if len(given) != 1:
        msg = f"give exactly one of {', '.join(budget)} as the budget, not {sorted(given) or 'none'}"
        raise ConfigError(msg)
    if "epochs" in given:
        epochs = check_number("epochs", given["epochs"], above=0)
        return {"gradients": int(np.ceil(epochs * samples / batch))}
    return check_budget(given)


def _partition_settings(partition: Partition) -> Settings:
    """Return what a run with `partition` adds to its settings: nothing if it is the usual one."""
    if not isinstance(partition, Partition):
        msg = f"partition must be a value such as distsgd.Partition('sharded'), not {partition!r}"
        raise ConfigError(msg)
    return {} if partition == SHARED else {"partition": partition.settings}


def _reads_settings(reads: str, fleet: object, *, is_atomic: bool) -> Settings:
    """Return what a run with `reads` adds to its settings: nothing if they are consistent."""
    if reads == "consistent":
        return {}
    if isinstance(fleet, StaleReads):
        msg = "interleaved reads need the times of a Fleet, which stale_reads has not; use a Fleet"
        raise ConfigError(msg)
    return {"reads": reads, "atomic": bool(is_atomic)}


def _target(target: float | None) -> float | None:
    return None if target is None else check_number("target", target)


def _run(
    algorithm: Algorithm,
    problem: Problem,
    trace: Trace,
    known: Settings,
    *,
    stops: NDArray[np.int64],
    driver: DriverName,
    ending: Ending | None,
) -> Run:
    """Fold `trace`, and evaluate after each of `stops`; without an `ending`, to the last one."""
    evaluations: list[Point] = []
    status: Status = "done"
    for state in _folded(algorithm, problem, trace, known, stops=stops, driver=driver):
        evaluation = problem.evaluate(state.x)
        evaluations.append(Point(state.update, *evaluation))
        status = "done" if ending is None else _status(state, evaluation.loss, ending)
        if status != "done":
            break
    return Run(
        x=np.array(state.x),
        history=history(algorithm, problem, trace, evaluations, known),
        trace=trace.head(state.update) if state.update < trace.n_updates else trace,
        status=status,
        diverged_at=state.update if status == "diverged" else None,
        settings=known,
        counts=dict(state.counts),
    )


def _folded(
    algorithm: Algorithm,
    problem: Problem,
    trace: Trace,
    known: Settings,
    *,
    stops: NDArray[np.int64],
    driver: DriverName = "auto",
) -> Iterator[State]:
    return fold(
        algorithm,
        problem,
        trace,
        stops=stops,
        batch=known["batch"],
        seed=known["seed"],
        partition=Partition(**known.get("partition", {})),
        reads=known.get("reads", "consistent"),
        atomic=known.get("atomic", True),
        driver=driver,
    )


def _stops(trace: Trace, known: Settings) -> NDArray[np.int64]:
    return evaluation_points(trace, known.get("evaluate_every"), known.get("evaluations"))


def _status(state: State, loss: float, ending: Ending) -> Status:
    if not (np.isfinite(loss) and np.isfinite(state.x).all()):
        return "diverged"
    if ending.target is not None and loss <= ending.target:
        return "target"
    return "stopped" if ending.asked() else "done"
