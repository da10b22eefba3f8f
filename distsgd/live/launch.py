"""Launch: the public way to run an algorithm for real. Every argument is checked here."""

import importlib
from collections.abc import Callable, Sequence
from typing import get_args

from distsgd.algorithm import Algorithm, check_algorithm
from distsgd.data.partition import SHARED, Partition
from distsgd.errors import ConfigError, check_name, warn
from distsgd.fold.layers import LayerRates
from distsgd.fold.request import NO_HOOKS, Hooks, Progress, RunConfig, RunRequest
from distsgd.fold.settings_check import doubts
from distsgd.live.options import Kind, LiveEngine, LiveFleet, LiveRequest, OnLoss, Writes
from distsgd.live.ray_options import RayOptions
from distsgd.order.budget import Budget
from distsgd.order.fleet import Fleet
from distsgd.order.laws import Law
from distsgd.problem import Problem
from distsgd.run import Run

_ENGINES = {
    "shared_memory": ("distsgd.live.lock_free.launch", "launch_lock_free"),
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
    layer_rates: LayerRates | None = None,
    layer_norms: bool = False,
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
    layer_rates, layer_norms : optional
        Factors on the learning rate by layer, and whether the history has the norm of each layer's
        gradient, as in `simulate`.
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
    budget = {"updates": updates, "gradients": gradients, "epochs": epochs, "seconds": seconds}
    fleet = LiveFleet(
        _kind(algorithm, on, writes),
        workers,
        shards=shards,
        staleness=staleness,
        delay=delay,
        on_loss=on_loss,
        heartbeat=heartbeat,
        checkpoint_every=checkpoint_every,
        address=address,
        writes=writes,
        ray=_ray(ray, on),
    )
    config = RunConfig(
        Budget.of(budget),
        batch,
        evaluate_every,
        evaluations,
        partition,
        target=target,
        layer_rates=layer_rates,
        layer_norms=layer_norms,
    )
    request = RunRequest(algorithm, problem, fleet, config, seed)
    workers_alone = Fleet(fleet.workers)  # a model of them: what they cost is not known
    warn(doubts(RunRequest(algorithm, problem, workers_alone, config, seed)))
    return launched(request, Hooks(stop, watch))


def launched(request: LiveRequest, hooks: Hooks = NO_HOOKS) -> Run:
    """Make a live run, on what its fleet says, as `launch` does with its arguments."""
    if request.fleet.shards > request.problem.dimension:
        most = request.problem.dimension
        raise ConfigError(f"shards must be <= {most}, the number of parameters, not {request.fleet.shards}")
    module, name = _ENGINES[request.fleet.kind]
    run: Run = getattr(importlib.import_module(module), name)(request, hooks)
    return run


def _kind(algorithm: Algorithm, on: LiveEngine, writes: Writes) -> Kind:
    """Return what `algorithm` runs on there, or raise a `ConfigError` with another place."""
    check_algorithm(algorithm)
    check_name("on", on, get_args(LiveEngine))
    if on == "local" and algorithm.lock_free:
        return "shared_memory"
    if algorithm.lock_free:
        raise ConfigError(
            f"{algorithm.name} needs memory that workers share without locks; use on='local', or downpour on a cluster"
        )
    if writes != "racy" and writes in get_args(Writes):
        raise ConfigError(
            f"writes={writes!r} has a meaning for lock-free algorithms only, which have no server; "
            f"leave it out for {algorithm.name}, or use hogwild"
        )
    return on


def _ray(options: RayOptions | None, on: LiveEngine) -> RayOptions:
    if options is None:
        return RayOptions()
    if on != "ray" or not isinstance(options, RayOptions):
        raise ConfigError(f"ray must be a RayOptions, and has a meaning for on='ray' only, not {options!r}")
    return options
