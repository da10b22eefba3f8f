"""Launch: the public way to run an algorithm for real. Every argument is checked here."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from distsgd.algorithm import Algorithm, check_algorithm
from distsgd.data.partition import SHARED, Partition
from distsgd.errors import ConfigError, check_batch, check_count, check_number, check_seed, unknown_name, warn
from distsgd.fold.settings_check import of_fleet, of_problem
from distsgd.live.options import MOST_PROCESSES, LiveEngine, OnLoss, Writes
from distsgd.live.ray_options import RayOptions
from distsgd.live.request import Budget, Hooks, Launch, Progress
from distsgd.order.fleet import Fleet
from distsgd.order.laws import Law
from distsgd.problem import Problem
from distsgd.run import Run

_ENGINES = {
    "lock_free": ("distsgd.live.lock_free.launch", "launch_lock_free"),
    "local": ("distsgd.live.local.launch", "launch_local"),
    "ray": ("distsgd.live.ray.launch", "launch_ray"),
}
"""Where each engine is; it is imported when it is needed."""


def launch(
    algorithm: Algorithm,
    problem: Problem,
    *,
    workers: int = 4,
    on: LiveEngine = "local",
    updates: int | None = None,
    gradients: int | None = None,
    epochs: float | None = None,
    seconds: float | None = None,
    batch: int = 32,
    seed: int = 0,
    evaluate_every: int | None = None,
    evaluations: int | None = None,
    partition: Partition = SHARED,
    target: float | None = None,
    staleness: int | Law | None = None,
    delay: Law | Sequence[Law] | None = None,
    shards: int = 1,
    on_loss: OnLoss = "replace",
    heartbeat: float = 1.0,
    checkpoint_every: float = 5.0,
    address: str | None = None,
    writes: Writes = "racy",
    ray: RayOptions | None = None,
    stop: Callable[[], bool] = lambda: False,
    watch: Callable[[Progress], object] | None = None,
) -> Run:
    """Run `algorithm` for real: with processes, wall time, and an order that reality chooses.

    Most algorithms run on a parameter server, whose order of service is recorded: `replay` computes
    the run again, bit for bit. A lock-free one (`hogwild`) runs on memory that its workers share;
    there is no server, so there is no order to record.

    Parameters
    ----------
    algorithm : Algorithm
        What to run, for example ``distsgd.algorithms.downpour(0.1)``.
    problem : Problem
        What to minimise, for example ``distsgd.problems.softmax(distsgd.data.digits())``.
    workers : int, default 4
        Processes that compute gradients, >= 1.
    on : {"local", "ray"}, default "local"
        Processes of this machine, or of a Ray cluster.
    updates, gradients, epochs, seconds : number, optional
        The budget, exactly one of them: updates of the parameters, mini-batch gradients of all
        workers together, passes over the samples by all workers together, or wall time [s].
    batch : int, default 32
        Samples of one gradient. Hogwild!'s paper has 1.
    seed : int, default 0
        Seed of samples, their division and starting point.
    evaluate_every : int, optional
        Updates between two points of the history.
    evaluations : int, optional
        Points of the history.
    partition : Partition, optional
        Which samples a worker sees; by default every worker draws from all, with replacement.
    target : float, optional
        Training loss at which to end.
    staleness : int or Law, optional
        Updates that every pull is behind at least [versions].
    delay : Law or sequence of Law, optional
        Time that a worker sleeps in each step [s]; one law for all workers, or one for each.
    shards : int, default 1
        Server processes over which the parameters are split, >= 1.
    on_loss : {"replace", "shrink"}, default "replace"
        Whether a lost worker is replaced, or the others go on without it.
    heartbeat : float, default 1.0
        Time between two signs of life [s], > 0. A worker that misses five of them is lost.
    checkpoint_every : float, default 5.0
        Time between two checkpoints of the server [s], > 0.
    address : str, optional
        Where the server listens; by default where only this user's processes reach it. On Ray the
        cluster, as HOST:PORT or "auto"; by default what RAY_ADDRESS says, else a Ray of our own.
    writes : {"racy", "gathered", "atomic", "locked", "round_robin"}, default "racy"
        How lock-free workers change a coordinate. "racy": load, change and store, so that some
        changes overwrite others. "gathered", for batches of 1: racy, but each of several workers
        changes a copy of the popular coordinates, which it exchanges with the others every ``64 //
        (workers - 1)`` steps, so that about 64 more of their updates are unseen there; the samples
        are in memory twice. "atomic": no change is lost. "locked": all coordinates of an
        update are locked around it (the paper's AIG). "round_robin": workers take turns, so that
        staleness is ``workers - 1`` exactly.
    ray : RayOptions, optional
        What the processes reserve on a Ray cluster, and where their state is kept.
    stop : callable, optional
        Asked a few times a second whether to end. The run so far is returned.
    watch : callable, optional
        Told a few times a second how far the run has come, as a `Progress`.

    Returns
    -------
    Run
        Parameters, history in wall seconds, and trace; its status is "done", "target", "diverged"
        or "stopped".

    Raises
    ------
    ConfigError
        If an argument is outside its bounds, or has no meaning where the algorithm runs.
    WorkerLost
        If workers are lost again and again.

    References
    ----------
    Niu, Recht, Re and Wright, "Hogwild!: A Lock-Free Approach to Parallelizing Stochastic Gradient
    Descent", NIPS 2011, for `writes`.
    """
    check_algorithm(algorithm)
    batch, seed = check_batch(batch), check_seed(seed)
    least = None if target is None else check_number("target", target)
    doubts = of_problem(problem, batch, target=least, seed=seed)
    budget = {"updates": updates, "gradients": gradients, "epochs": epochs, "seconds": seconds}
    every, points = _check_evaluations(evaluate_every, evaluations)
    case = Launch(
        algorithm=algorithm,
        problem=problem,
        workers=_workers(workers, on),
        budget=_budget(budget),
        batch=batch,
        seed=seed,
        evaluate_every=every,
        evaluations=points,
        partition=_partition(partition),
        staleness=_staleness(staleness),
        target=least,
        delay=_delay(delay, workers),
        shards=_shards(shards, problem.dimension),
        on_loss=_one_of("on_loss", on_loss, OnLoss),
        writes=_one_of("writes", writes, Writes),
        heartbeat_s=check_number("heartbeat", heartbeat, above=0, unit=" s"),
        checkpoint_s=check_number("checkpoint_every", checkpoint_every, above=0, unit=" s"),
        address=address,
        ray=_ray(ray, on),
    )
    workers_alone = Fleet(case.workers)  # a model of them: what they cost is not known
    warn(doubts + of_fleet(workers_alone, problem, algorithm, budget, batch=batch, partition=partition))
    module, name = _ENGINES[_engine(algorithm, on, writes)]
    run: Run = getattr(importlib.import_module(module), name)(case, Hooks(stop, watch))
    return run


def _engine(algorithm: Algorithm, on: LiveEngine, writes: Writes) -> str:
    """Return the name of the engine for `algorithm`, or raise a `ConfigError` with another one."""
    if on == "local" and algorithm.lock_free:
        return "lock_free"
    if algorithm.lock_free:
        msg = (
            f"{algorithm.name} needs memory that workers share without locks; use on='local', or downpour on a cluster"
        )
        raise ConfigError(msg)
    if writes != "racy":
        msg = (
            f"writes={writes!r} has a meaning for lock-free algorithms only, which have no server; "
            f"leave it out for {algorithm.name}, or use hogwild"
        )
        raise ConfigError(msg)
    return on


def _workers(workers: int, on: LiveEngine) -> int:
    n_workers = check_count("workers", workers)
    if _one_of("on", on, LiveEngine) == "local" and n_workers > MOST_PROCESSES:
        msg = (
            f"workers must be <= {MOST_PROCESSES} on one machine, where each is a process, not "
            f"{workers}; use on='ray', or simulate"
        )
        raise ConfigError(msg)
    return n_workers


def _budget(amounts: Mapping[str, float | None]) -> Budget:
    given: dict[str, Any] = {unit: n for unit, n in amounts.items() if n is not None}
    if len(given) != 1:
        msg = f"give exactly one of {', '.join(amounts)} as the budget, not {sorted(given) or 'none'}"
        raise ConfigError(msg)
    ((unit, amount),) = given.items()
    if unit in ("updates", "gradients"):
        return Budget(unit, check_count(unit, amount))
    return Budget(unit, check_number(unit, amount, above=0))


def _check_evaluations(evaluate_every: int | None, evaluations: int | None) -> tuple[int | None, int | None]:
    if evaluate_every is not None and evaluations is not None:
        msg = "give evaluate_every or evaluations, not both"
        raise ConfigError(msg)
    return (
        None if evaluate_every is None else check_count("evaluate_every", evaluate_every),
        None if evaluations is None else check_count("evaluations", evaluations),
    )


def _partition(partition: Partition) -> Partition:
    if isinstance(partition, Partition):
        return partition
    msg = f"partition must be a value such as distsgd.Partition('sharded'), not {partition!r}"
    raise ConfigError(msg)


def _staleness(staleness: int | Law | None) -> int | Law | None:
    if staleness is None or isinstance(staleness, Law):
        return staleness
    return check_count("staleness", staleness, at_least=0)


def _delay(delay: Law | Sequence[Law] | None, workers: int) -> Law | tuple[Law, ...] | None:
    if delay is None or isinstance(delay, Law):
        return delay
    laws = () if isinstance(delay, str) or not hasattr(delay, "__len__") else tuple(delay)
    if not laws or not all(isinstance(law, Law) for law in laws):
        msg = f"delay must be a law such as exponential(0.1), or one per worker, not {delay!r}"
        raise ConfigError(msg)
    if len(laws) != workers:
        msg = f"delay must have one law per worker ({workers}), not {len(laws)}"
        raise ConfigError(msg)
    return laws


def _shards(shards: int, dimension: int) -> int:
    if check_count("shards", shards) > dimension:
        msg = f"shards must be <= {dimension}, the number of parameters, not {shards}"
        raise ConfigError(msg)
    return int(shards)


def _ray(options: RayOptions | None, on: LiveEngine) -> RayOptions:
    if options is None:
        return RayOptions()
    if on != "ray" or not isinstance(options, RayOptions):
        msg = f"ray must be a RayOptions, and has a meaning for on='ray' only, not {options!r}"
        raise ConfigError(msg)
    return options


def _one_of(name: str, value: Any, names: Any) -> Any:  # noqa: ANN401 # one of a Literal's texts
    if value not in get_args(names):
        raise unknown_name(name, str(value), get_args(names))
    return value
