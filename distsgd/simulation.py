"""Simulate and replay: the two engines that need one core.

simulate = fold(schedule(...))       replay = fold(recorded trace)
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from distsgd.algorithm import Algorithm, check_algorithm, message_columns, settings
from distsgd.data.partition import SHARED, Partition
from distsgd.errors import ConfigError, check_count, check_number
from distsgd.fleet import Fleet, StaleReads
from distsgd.fold import DriverName, ReadsName, State, check_reads, fold, on_support
from distsgd.problem import Problem
from distsgd.run import HISTORY, Run, Settings, Status
from distsgd.schedule import schedule
from distsgd.trace import PULL, Trace

EVALUATIONS = 50
"""Points of a history where the caller says nothing else."""


class Ending(NamedTuple):
    """When to end before the budget is spent; looked at where the objective is evaluated."""

    target: float | None = None
    """Training loss that is good enough."""
    asked: Callable[[], bool] = lambda: False
    """Whether somebody has asked to stop."""


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
        Hogwild!, for sparse data and workers that wait for nobody (`distsgd.interleave`).
    atomic : bool, default True
        Whether interleaved changes of a coordinate are atomic. Otherwise some overwrite others;
        ``run.counts`` says how many are lost.
    target : float, optional
        Training loss at which to end.
    stop : callable, optional
        Asked at each point of the history whether to end there.
    driver : {"auto", "interpreted", "compiled"}, default "auto"
        Who calls the rules. All have the same bits; "auto" takes the fastest.

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
    check_count("batch", batch)
    budget = {"updates": updates, "gradients": gradients, "epochs": epochs, "seconds": seconds}
    amounts = _scheduled(budget, batch, problem.samples)
    check_reads(reads, driver, is_atomic=atomic)
    pulled, pushed = message_bytes(algorithm, problem, batch)
    trace = schedule(
        algorithm.cycle, fleet, seed=seed, pull_bytes=pulled, push_bytes=pushed, **amounts
    )
    known = run_settings(
        algorithm, problem, fleet, budget, batch=batch, seed=seed, evaluate_every=evaluate_every,
        evaluations=evaluations, partition=partition, reads=reads, atomic=atomic, target=target,
    )  # fmt: skip
    ending = Ending(_target(target), stop)
    return _run(algorithm, problem, trace, known, driver=driver, ending=ending)


def run_settings(
    algorithm: Algorithm, problem: Problem, fleet: Fleet | StaleReads,
    budget: Mapping[str, float | None], *, batch: int, seed: int,
    evaluate_every: int | None = None, evaluations: int | None = None,
    partition: Partition = SHARED, reads: ReadsName = "consistent", atomic: bool = True,
    target: float | None = None,
) -> Settings:  # fmt: skip
    """Return the settings of a run, which identify it before it is made.

    The arguments are those of `simulate`; `budget` holds the one that is given, by its name.

    Raises
    ------
    ConfigError
        If the reads do not suit the fleet.
    """
    return {
        "algorithm": settings(algorithm), "problem": dict(problem.settings),
        "fleet": dict(fleet.settings), "batch": batch, "seed": seed,
        "budget": {name: amount for name, amount in budget.items() if amount is not None},
        "evaluate_every": evaluate_every, "evaluations": evaluations, "target": target,
        **_partition_settings(partition), **_reads_settings(reads, fleet, is_atomic=atomic),
    }  # fmt: skip


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

    Parameters
    ----------
    recorded : Run or Trace
        What to replay. A run knows its batch, its seed and its points of evaluation.
    algorithm : Algorithm
        The algorithm that was recorded.
    problem : Problem
        The problem that was recorded.
    batch, seed, evaluate_every, evaluations : int, optional
        As in `simulate`; by default those of the run. A trace alone needs `batch` and `seed`.
    partition : Partition, optional
        As in `simulate`; by default that of the run. A trace alone does not know its own.
    driver : {"auto", "interpreted", "compiled"}, default "auto"
        Who calls the rules. All have the same bits.

    Returns
    -------
    Run
        The run, computed again.

    Raises
    ------
    ConfigError
        If `algorithm` or `problem` is not the one that was recorded, or a trace comes alone.
    TraceError
        If no server can have served this order.
    """
    known = dict(recorded.settings) if isinstance(recorded, Run) else {}
    asked = {"algorithm": settings(algorithm), "problem": dict(problem.settings)}
    for name, value in asked.items():
        _check_same(name, value, known.get(name, value))
    given = {
        "batch": batch, "seed": seed, "evaluate_every": evaluate_every, "evaluations": evaluations
    }  # fmt: skip
    known |= asked | {name: value for name, value in given.items() if value is not None}
    if partition is not None:
        known.pop("partition", None)
        known |= _partition_settings(partition)
    if "batch" not in known or "seed" not in known:
        msg = "a trace alone does not know its batch and its seed; give both to replay"
        raise ConfigError(msg)
    trace = recorded.trace if isinstance(recorded, Run) else recorded
    trace.verify()
    return _run(algorithm, problem, trace, known, driver=driver, ending=Ending())


def message_bytes(algorithm: Algorithm, problem: Problem, batch: int) -> tuple[float, float]:
    """Return the sizes of a pull's reply and of a push [bytes], from the columns really sent."""
    pulled, pushed = len(algorithm.server.reads), len(message_columns(algorithm))
    if on_support(algorithm, problem) is None:
        return 8.0 * problem.dimension * pulled, 8.0 * problem.dimension * pushed
    return problem.message_bytes(pulled, batch), problem.message_bytes(pushed, batch)


def _scheduled(budget: dict[str, Any], batch: int, samples: int) -> dict[str, Any]:
    """Return the budget as a schedule takes it: epochs are a number of gradients."""
    given = {name: amount for name, amount in budget.items() if amount is not None}
    if len(given) != 1:
        msg = (
            f"give exactly one of {', '.join(budget)} as the budget, not {sorted(given) or 'none'}"
        )
        raise ConfigError(msg)
    if "epochs" in given:
        epochs = check_number("epochs", given["epochs"], above=0)
        return {"gradients": int(np.ceil(epochs * samples / batch))}
    return given


def _partition_settings(partition: Partition) -> Settings:
    """Return what a run with `partition` adds to its settings: nothing if it is the usual one."""
    if not isinstance(partition, Partition):
        msg = f"partition must be a value such as distsgd.Partition('sharded'), not {partition!r}"
        raise ConfigError(msg)
    return {} if partition == SHARED else {"partition": partition.settings}


def _reads_settings(reads: str, fleet: Fleet | StaleReads, *, is_atomic: bool) -> Settings:
    """Return what a run with `reads` adds to its settings: nothing if they are consistent."""
    if reads == "consistent":
        return {}
    if isinstance(fleet, StaleReads):
        msg = "interleaved reads need the times of a Fleet, which stale_reads has not; use a Fleet"
        raise ConfigError(msg)
    return {"reads": reads, "atomic": bool(is_atomic)}


def _target(target: float | None) -> float | None:
    return None if target is None else check_number("target", target)


def _check_same(name: str, asked: Any, recorded: Any) -> None:  # noqa: ANN401 # JSON
    if asked != recorded:
        msg = f"the {name} to replay must be the recorded one, {recorded}, not {asked}"
        raise ConfigError(msg)


def _run(
    algorithm: Algorithm,
    problem: Problem,
    trace: Trace,
    known: Settings,
    *,
    driver: DriverName,
    ending: Ending,
) -> Run:
    batch, seed = known["batch"], known["seed"]
    stops = evaluation_points(trace, known.get("evaluate_every"), known.get("evaluations"))
    spent = _spent(trace, stops, batch / problem.samples, message_bytes(algorithm, problem, batch))
    partition = Partition(**known.get("partition", {}))
    states = fold(
        algorithm, problem, trace, stops=stops, batch=batch, seed=seed, partition=partition,
        reads=known.get("reads", "consistent"), atomic=known.get("atomic", True), driver=driver,
    )  # fmt: skip
    history: list[tuple[Any, ...]] = []
    status: Status = "done"
    for state, row in zip(states, spent, strict=False):  # whoever ends early leaves the rest
        evaluation = problem.evaluate(state.x)
        history.append((state.update, *row, *evaluation))
        status = _status(state, evaluation.loss, ending)
        if status != "done":
            break
    return Run(
        x=np.array(state.x),
        history=pl.DataFrame(history, schema=HISTORY, orient="row"),
        trace=trace.head(state.update) if state.update < trace.n_updates else trace,
        status=status,
        diverged_at=state.update if status == "diverged" else None,
        settings=known,
        counts=dict(state.counts),
    )


def _spent(
    trace: Trace, stops: NDArray[np.int64], epochs_per_step: float, sizes: tuple[float, float]
) -> Iterator[tuple[int, float, float, float]]:
    """Return gradients, epochs, seconds and bytes until each of the updates `stops`."""
    pulls = np.cumsum(trace.rows["verb"] == PULL)[trace.closing]
    n_bytes = pulls * sizes[0] + (trace.closing + 1 - pulls) * sizes[1]
    columns = [
        np.append(0, column)[stops]
        for column in (trace.gradients, trace.gradients * epochs_per_step, trace.seconds, n_bytes)
    ]
    return zip(*(column.tolist() for column in columns), strict=True)


def evaluation_points(
    trace: Trace, evaluate_every: int | None, evaluations: int | None
) -> NDArray[np.int64]:
    """Return the updates after which to evaluate: the first, the last, and some between."""
    last = trace.n_updates
    if evaluate_every is not None and evaluations is not None:
        msg = "give evaluate_every or evaluations, not both"
        raise ConfigError(msg)
    if evaluate_every is not None:
        between = np.arange(0, last, check_count("evaluate_every", evaluate_every))
    else:
        wanted = EVALUATIONS if evaluations is None else check_count("evaluations", evaluations)
        marks = np.linspace(0, trace.gradients[-1] if last else 0, wanted + 1)[1:-1]
        between = np.minimum(np.searchsorted(trace.gradients, marks) + 1, last)
    return np.unique(np.concatenate([[0], between, [last]]))


def _status(state: State, loss: float, ending: Ending) -> Status:
    if not (np.isfinite(loss) and np.isfinite(state.x).all()):
        return "diverged"
    if ending.target is not None and loss <= ending.target:
        return "target"
    return "stopped" if ending.asked() else "done"
