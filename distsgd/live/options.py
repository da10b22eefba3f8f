"""What a live run runs on: real processes in place of modelled machines.

An experiment describes a fleet once. `Live.like` says how a live run takes after it, and
`LiveFleet` what the run is then started with, and known by.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

from distsgd.algorithm import Algorithm, Start
from distsgd.errors import ConfigError, check_count, check_number, unknown_name
from distsgd.order.fleet import Fleet, StaleReads
from distsgd.order.laws import Law

LiveEngine: TypeAlias = Literal["local", "ray"]
"""Where live runs are: processes of this machine, or a Ray cluster."""
OnLoss: TypeAlias = Literal["replace", "shrink"]
"""What becomes of a lost worker: another one takes its place, or the others go on alone."""
Writes: TypeAlias = Literal["racy", "gathered", "atomic", "locked", "round_robin"]
"""How lock-free workers change a coordinate, see `distsgd.launch`."""
Delay: TypeAlias = Law | Sequence[Law] | Literal["fleet"] | None
"""Time that a worker sleeps in each step."""
Kind: TypeAlias = Literal["local", "shared_memory", "ray"]
"""What a live run ran on, as its settings call it."""

MOST_PROCESSES = 64
"""Workers of a live run on one machine, at most: each is a process."""
FEW_WORKERS = 2
"""Workers of a live run on a fleet that does not say how many it has."""


@dataclass(frozen=True)
class Live:
    """How live runs are made, whatever they run.

    Parameters
    ----------
    workers : int, optional
        Workers of every live run, >= 1. By default as many as the fleet has, and 2 on a fleet of
        sampled staleness, which does not say.
    shards : int, default 1
        Server processes over which the parameters are split, >= 1.
    staleness : int or Law, optional
        Updates that every pull is behind at least [versions]. On a fleet of sampled staleness it is
        the fleet's own law. By default staleness is only what emerges.
    delay : Law, sequence of Law or "fleet", optional
        Time that a worker sleeps in each step [s], one law for all workers or one for each;
        "fleet" takes the fleet's compute times. By default a step takes what it takes.
    on_loss : {"replace", "shrink"}, default "replace"
        Whether a lost worker is replaced, or the others go on without it.
    heartbeat : float, default 1.0
        Time between two signs of life [s], > 0.
    checkpoint_every : float, default 5.0
        Time between two checkpoints of the server [s], > 0.
    writes : {"racy", "gathered", "atomic", "locked", "round_robin"}, default "racy"
        How workers without locks change a coordinate.

    Raises
    ------
    ConfigError
        If a value is out of bounds or unknown.
    """

    workers: int | None = None
    shards: int = 1
    staleness: int | Law | None = None
    delay: Delay = None
    on_loss: OnLoss = "replace"
    heartbeat: float = 1.0
    checkpoint_every: float = 5.0
    writes: Writes = "racy"

    def __post_init__(self) -> None:
        for name in ("workers", "shards"):
            if getattr(self, name) is not None:
                count = check_count(f"live.{name}", getattr(self, name))
                object.__setattr__(self, name, count)
        check_number("live.heartbeat", self.heartbeat, above=0, unit=" s")
        check_number("live.checkpoint_every", self.checkpoint_every, above=0, unit=" s")
        for name, kinds in (("on_loss", OnLoss), ("writes", Writes)):
            if getattr(self, name) not in get_args(kinds):
                raise unknown_name(f"live.{name}", str(getattr(self, name)), get_args(kinds))
        if self.staleness is not None and not isinstance(self.staleness, Law):
            stale = check_count("live.staleness", self.staleness, at_least=0)
            object.__setattr__(self, "staleness", stale)
        object.__setattr__(self, "delay", _checked_delay(self.delay))

    def like(self, fleet: Fleet | StaleReads, engine: LiveEngine) -> "LiveFleet":
        """Return what a live run takes from `fleet`: its number of workers or its staleness.

        Machines of a model take virtual time; a live run takes its own, so that the fleet's compute
        times, link, server and failures are not imposed on it, unless `delay` asks for the former.

        Parameters
        ----------
        fleet : Fleet or StaleReads
            The machines, or the staleness, of the simulated runs.
        engine : {"local", "ray"}
            Where the live runs are.

        Returns
        -------
        LiveFleet
            With every option settled.

        Raises
        ------
        ConfigError
            If there are too many workers for one machine, or the delays do not suit the fleet.
        """
        own = fleet.workers if isinstance(fleet, Fleet) else FEW_WORKERS
        workers = own if self.workers is None else self.workers
        if engine == "local" and workers > MOST_PROCESSES:
            msg = (
                f"a live run has at most {MOST_PROCESSES} workers, each a process, not {workers};"
                " give live.workers, or leave the fleet out"
            )
            raise ConfigError(msg)
        delay = _compute_times(fleet) if isinstance(self.delay, str) else self.delay
        if isinstance(delay, tuple) and len(delay) != workers:
            msg = f"live.delay must have one law per worker ({workers}), not {len(delay)}"
            raise ConfigError(msg)
        staleness = fleet.law if isinstance(fleet, StaleReads) else self.staleness
        return LiveFleet(engine, workers, delay, replace(self, staleness=staleness))


def _checked_delay(delay: Delay) -> Delay:
    """Return `delay` as a value that the caller cannot change later."""
    if delay is None or isinstance(delay, Law) or delay == "fleet":
        return delay
    several = () if isinstance(delay, str) or not hasattr(delay, "__len__") else tuple(delay)
    if several and all(isinstance(one, Law) for one in several):
        return several
    msg = f'live.delay must be a law, one law per worker, or "fleet", not {delay!r}'
    raise ConfigError(msg)


def _compute_times(fleet: Fleet | StaleReads) -> Law | tuple[Law, ...]:
    """Return the laws of a step's time on each machine, whose speeds divide them."""
    plain = isinstance(fleet, Fleet) and Fleet(fleet.workers, fleet.compute, speeds=fleet.speeds)
    if not isinstance(fleet, Fleet) or fleet != plain:
        msg = (
            'live.delay = "fleet" needs a fleet of workers, compute and speeds only; latency,'
            " bandwidth, service, shards, failures and a sampled staleness cannot be slept"
        )
        raise ConfigError(msg)
    if fleet.speeds is None:
        return fleet.laws[0] if len(fleet.laws) == 1 else fleet.laws
    laws = fleet.laws * fleet.workers if len(fleet.laws) == 1 else fleet.laws
    return tuple(law.divided(speed) for law, speed in zip(laws, fleet.speeds, strict=True))


@dataclass(frozen=True)
class LiveFleet:
    """The processes of a live run, made by `Live.like`.

    Parameters
    ----------
    engine : {"local", "ray"}
        Where they are.
    workers : int
        How many work.
    delay : Law, sequence of Law or None
        Time that they sleep in each step [s], for all or one for each.
    options : Live
        How they are started; its staleness is the one that holds here.
    """

    engine: LiveEngine
    workers: int
    delay: Law | Sequence[Law] | None
    options: Live

    def arguments(self, algorithm: Algorithm) -> dict[str, Any]:
        """Return what `distsgd.launch` is told of the processes for `algorithm`.

        Only what has a meaning for it: workers without locks pull nothing that could be stale.
        An algorithm that never starts its other workers has a single one, the first, which reads
        what is newest, as in a simulation.
        """
        options = self.options
        workers = self.workers_of(algorithm)
        where = {"workers": workers, "on": self.engine}
        if algorithm.lock_free and self.engine == "local":
            return where | {"writes": options.writes}
        delay = self.delay
        if isinstance(delay, tuple):
            delay = delay[:workers]
        staleness = None if _is_alone(algorithm) else options.staleness
        return where | {
            "shards": options.shards,
            "staleness": staleness,
            "delay": delay,
            "on_loss": options.on_loss,
            "heartbeat": options.heartbeat,
            "checkpoint_every": options.checkpoint_every,
        }

    def workers_of(self, algorithm: Algorithm) -> int:
        """Return how many processes work for `algorithm`: one if the others would never start."""
        return 1 if _is_alone(algorithm) else self.workers

    def kind_for(self, algorithm: Algorithm) -> Kind:
        """Return what a run of `algorithm` is on here, as its settings call it."""
        return "shared_memory" if "writes" in self.arguments(algorithm) else self.engine

    @property
    def settings(self) -> dict[str, Any]:
        """What describes the processes, ready for JSON."""
        options = self.options
        return fleet_settings(
            self.engine,
            self.workers,
            shards=options.shards,
            staleness=options.staleness,
            delay=self.delay,
            on_loss=options.on_loss,
        )


def _is_alone(algorithm: Algorithm) -> bool:
    starts = [verb for verb in algorithm.cycle if isinstance(verb, Start)]
    return any(math.isinf(verb.others_after) for verb in starts)


def fleet_settings(
    kind: Kind,
    workers: int,
    *,
    shards: int = 1,
    staleness: int | Law | None = None,
    delay: Law | Sequence[Law] | None = None,
    on_loss: OnLoss = "replace",
    writes: Writes | None = None,
) -> dict[str, Any]:
    """Return the settings ``fleet`` of a live run, ready for JSON.

    The arguments are those of `distsgd.launch`; `kind` is "shared_memory" for workers without locks
    on one machine, which alone have `writes`.
    """
    several = None if delay is None or isinstance(delay, Law) else [str(law) for law in delay]
    return {
        "kind": kind,
        "workers": int(workers),
        "shards": int(shards),
        "staleness": None if staleness is None else str(staleness),
        "delay": several if several is not None else delay and str(delay),
        "on_loss": on_loss,
        **({} if writes is None else {"writes": writes}),
    }
