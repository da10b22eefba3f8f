"""What a live run runs on: real processes in place of modelled machines.

An experiment describes a fleet once. `Live.like` says how a live run takes after it, and
`LiveFleet` what the run is then started with, and known by.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

from distsgd.algorithm import Algorithm, Start
from distsgd.errors import ConfigError, check_count, check_name, check_number
from distsgd.fold.request import RunRequest
from distsgd.live.ray_options import RayOptions
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
        if self.workers is not None:
            object.__setattr__(self, "workers", check_count("live.workers", self.workers))
        checked = _checked("live.", self)
        if self.delay != "fleet":
            checked["delay"] = _checked_delay("live.", self.delay)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

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
        delay = _compute_times(fleet) if isinstance(self.delay, str) else self.delay
        workers = own if self.workers is None else self.workers
        _check_delays("live.", delay, workers)
        names = ("shards", "on_loss", "heartbeat", "checkpoint_every", "writes")
        return LiveFleet(
            engine,
            workers,
            staleness=fleet.law if isinstance(fleet, StaleReads) else self.staleness,
            delay=delay,
            **{name: getattr(self, name) for name in names},
        )


def _checked(of: str, given: "Live | LiveFleet") -> dict[str, Any]:
    """Return options that a live run has whatever runs, or raise a `ConfigError` that names one."""
    stale = given.staleness
    if stale is not None and not isinstance(stale, Law):
        stale = check_count(f"{of}staleness", stale, at_least=0)
    for name, kinds in (("on_loss", OnLoss), ("writes", Writes)):
        check_name(f"{of}{name}", getattr(given, name), get_args(kinds))
    times = ("heartbeat", "checkpoint_every")
    checked = {name: check_number(f"{of}{name}", getattr(given, name), above=0, unit=" s") for name in times}
    return {**checked, "shards": check_count(f"{of}shards", given.shards), "staleness": stale}


def _checked_delay(of: str, delay: Delay) -> Law | tuple[Law, ...] | None:
    """Return `delay` as a value that the caller cannot change later."""
    if delay is None or isinstance(delay, Law):
        return delay
    several = () if isinstance(delay, str) or not hasattr(delay, "__len__") else tuple(delay)
    if several and all(isinstance(one, Law) for one in several):
        return several
    or_fleet = ', or "fleet"' if of else ""
    msg = f"{of}delay must be a law such as exponential(0.1), or one per worker{or_fleet}, not {delay!r}"
    raise ConfigError(msg)


def _check_delays(of: str, delay: object, workers: int) -> None:
    if isinstance(delay, tuple) and len(delay) != workers:
        raise ConfigError(f"{of}delay must have one law per worker ({workers}), not {len(delay)}")


def _compute_times(fleet: Fleet | StaleReads) -> Law | tuple[Law, ...]:
    """Return the laws of a step's time on each machine, whose speeds divide them."""
    plain = isinstance(fleet, Fleet) and Fleet(fleet.workers, fleet.compute, speeds=fleet.speeds)
    if not isinstance(fleet, Fleet) or fleet != plain:
        raise ConfigError(
            'live.delay = "fleet" needs a fleet of workers, compute and speeds only; latency,'
            " bandwidth, service, shards, failures and a sampled staleness cannot be slept"
        )
    if fleet.speeds is None:
        return fleet.laws[0] if len(fleet.laws) == 1 else fleet.laws
    laws = fleet.laws * fleet.workers if len(fleet.laws) == 1 else fleet.laws
    return tuple(law.divided(speed) for law, speed in zip(laws, fleet.speeds, strict=True))


@dataclass(frozen=True)
class LiveFleet:
    """The processes of a live run, and how they are kept; `distsgd.launch` explains the options.

    Their `kind` says whether they are with a server ("local") or without one on this machine, or on
    a Ray cluster. An option that is out of bounds or unknown is a `ConfigError`.
    """

    kind: Kind
    workers: int
    shards: int = 1
    staleness: int | Law | None = None
    delay: Law | Sequence[Law] | None = None
    on_loss: OnLoss = "replace"
    heartbeat: float = 1.0
    checkpoint_every: float = 5.0
    address: str | None = None
    writes: Writes = "racy"
    ray: RayOptions = field(default_factory=RayOptions)

    def __post_init__(self) -> None:
        checked = _checked("", self)
        checked |= {"workers": check_count("workers", self.workers), "delay": _checked_delay("", self.delay)}
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.kind != "ray" and self.workers > MOST_PROCESSES:
            raise ConfigError(
                f"workers must be <= {MOST_PROCESSES} on one machine, where each is a process, not"
                f" {self.workers}; use fewer (live.workers in an experiment), Ray, or simulate"
            )
        _check_delays("", self.delay, self.workers)

    def of(self, algorithm: Algorithm) -> "LiveFleet":
        """Return the processes that `algorithm` has here.

        Only what has a meaning for it: workers without locks pull nothing that could be stale.
        An algorithm that never starts its other workers has a single one, the first, which reads
        what is newest, as in a simulation.
        """
        workers = self.workers_of(algorithm)
        if algorithm.lock_free and self.kind == "local":
            return LiveFleet("shared_memory", workers, writes=self.writes)
        delay = self.delay[:workers] if isinstance(self.delay, tuple) else self.delay
        staleness = None if _is_alone(algorithm) else self.staleness
        return replace(self, workers=workers, staleness=staleness, delay=delay, writes="racy")

    def workers_of(self, algorithm: Algorithm) -> int:
        """Return how many processes work for `algorithm`: one if the others would never start."""
        return 1 if _is_alone(algorithm) else self.workers

    @property
    def delays(self) -> tuple[Law | None, ...]:
        """The delay of each worker."""
        if self.delay is None or isinstance(self.delay, Law):
            return (self.delay,) * self.workers
        return tuple(self.delay)

    @property
    def settings(self) -> dict[str, Any]:
        """What identifies a run on them, as JSON."""
        delay = self.delay
        several = None if delay is None or isinstance(delay, Law) else [str(law) for law in delay]
        return {
            "kind": self.kind,
            "workers": self.workers,
            "shards": self.shards,
            "staleness": None if self.staleness is None else str(self.staleness),
            "delay": several if several is not None else delay and str(delay),
            "on_loss": self.on_loss,
            **({"writes": self.writes} if self.kind == "shared_memory" else {}),
        }


def _is_alone(algorithm: Algorithm) -> bool:
    starts = [verb for verb in algorithm.cycle if isinstance(verb, Start)]
    return any(math.isinf(verb.others_after) for verb in starts)


LiveRequest: TypeAlias = RunRequest[LiveFleet]
"""A live run that is wanted."""
