"""Simulate: the engine that needs one core, and no machines but those of a model.

simulate = fold(schedule(cycle, fleet))
"""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np

from distsgd.algorithm import Algorithm
from distsgd.data.partition import SHARED, Partition
from distsgd.errors import warn
from distsgd.fold.fold import DriverName, State, check_driver, fold
from distsgd.fold.history import Point, evaluation_points, history, message_bytes
from distsgd.fold.layers import LayerRates, gradient_norms
from distsgd.fold.request import NO_HOOKS, Hooks, ModelFleet, ReadsName, RunConfig, RunRequest
from distsgd.fold.settings_check import doubts
from distsgd.order.budget import Budget
from distsgd.order.fleet import Fleet, StaleReads
from distsgd.order.schedule import schedule
from distsgd.problem import Problem
from distsgd.run import Run, Settings
from distsgd.sparse import Integers
from distsgd.status import Status, status_after
from distsgd.trace import Trace

IsOver: TypeAlias = Callable[[State, float], Status]
"""Says how a run ends after an evaluation, "done" if it goes on."""


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
    layer_rates: LayerRates | None = None,
    layer_norms: bool = False,
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
        Hogwild!, for sparse data and workers that never wait (`distsgd.fold.drivers.interleaved`).
    atomic : bool, default True
        Whether interleaved changes of a coordinate are atomic. Otherwise some overwrite others;
        ``run.counts`` says how many are lost.
    target : float, optional
        Training loss at which to end.
    layer_rates : dict of str to float, optional
        Factors on the learning rate by layer (``problem.layers``), for example ``{"head": 10.0}``;
        a name stands also for the layers whose names begin with it and a dot.
    layer_norms : bool, default False
        Whether the history has the norm of each layer's mean gradient, over at most 4,096 samples,
        in the columns ``gradient_norm/<layer>``.
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
    budget = {"updates": updates, "gradients": gradients, "epochs": epochs, "seconds": seconds}
    config = RunConfig(
        Budget.of(budget),
        batch,
        evaluate_every,
        evaluations,
        partition,
        reads,
        atomic,
        target,
        layer_rates,
        layer_norms,
    )
    request = RunRequest(algorithm, problem, fleet, config, seed)
    warn(doubts(request))
    return simulated(request, Hooks(stop), driver)


def simulated(request: RunRequest[ModelFleet], hooks: Hooks = NO_HOOKS, driver: DriverName = "auto") -> Run:
    """Make a run on a model of machines, or raise a `ConfigError`: the order, then the numbers."""
    algorithm, problem, config = request.algorithm, request.problem, request.config
    check_driver(driver, config.reads)
    pulled, pushed = message_bytes(algorithm, problem, config.batch)
    given = request.budget.settings | {"pull_bytes": pulled, "push_bytes": pushed}
    trace = schedule(algorithm.cycle, request.fleet, seed=request.seed, **given)
    points = evaluation_points(trace, config.evaluate_every, config.evaluations)
    is_over = ending(config.target, hooks)
    return folded(algorithm, problem, trace, request.settings, stops=points, driver=driver, is_over=is_over)


def ending(target: float | None, hooks: Hooks) -> IsOver:
    """Return what ends a run at a target, at numbers that are not finite, or where hooks ask."""
    return lambda state, loss: status_after(state.x, loss, target, hooks.stop)


def folded(
    algorithm: Algorithm,
    problem: Problem,
    trace: Trace,
    known: Settings,
    *,
    stops: Integers,
    driver: DriverName = "auto",
    is_over: IsOver | None = None,
) -> Run:
    """Fold `trace`, evaluate after the updates `stops`, int64[n] and ascending, and return the run.

    It is cut where `is_over` ends it; without that the last of `stops` does. `known` are the
    settings of the run, as JSON: how it was sampled, divided and read.
    """
    evaluations: list[Point] = []
    status: Status = "done"
    for state in states_of(algorithm, problem, trace, known, stops=stops, driver=driver):
        evaluation = problem.evaluate(state.x)
        norms = gradient_norms(problem, state.x) if known.get("layer_norms") else ()
        evaluations.append(Point(state.update, *evaluation, norms))
        status = "done" if is_over is None else is_over(state, evaluation.loss)
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


def states_of(
    algorithm: Algorithm,
    problem: Problem,
    trace: Trace,
    known: Settings,
    *,
    stops: Integers,
    driver: DriverName = "auto",
) -> Iterator[State]:
    """Fold `trace` as the settings `known` say, and yield the parameters after each of `stops`."""
    own = {name: known[name] for name in ("batch", "seed", "reads", "atomic", "layer_rates") if name in known}
    partition = Partition(**known.get("partition", {}))
    return fold(algorithm, problem, trace, stops=stops, partition=partition, driver=driver, **own)
