"""A model of machines: how long steps take, what messages cost, what breaks.

Times are in seconds, sizes in bytes. A message travels for `latency`; the server's inbound and
outbound links each carry one message at a time at `bandwidth`; the server serves one message at a
time, first come, first served, in `service` seconds.
"""

from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from math import inf, isinf
from typing import Any

from distsgd.errors import ConfigError, check_count, check_number, check_room, check_seed, wrong_kind
from distsgd.order.laws import SECONDS, Law, constant

WORKER_BYTES = 250.0
"""Of a worker in a schedule [bytes]."""


@dataclass(frozen=True)
class Failures:
    """Machines that break while they compute.

    The computing time until a failure is exponential. A failure costs the unfinished step: after
    the repair it begins again, and takes as long as it would have taken.

    Parameters
    ----------
    mean_time : float
        Mean computing time between two failures of one worker [s], > 0.
    repair : float
        Time until the worker computes again [s], >= 0.
    """

    mean_time: float
    repair: float

    def __post_init__(self) -> None:
        check_number("failures.mean_time", self.mean_time, above=0, unit=SECONDS)
        check_number("failures.repair", self.repair, at_least=0, unit=SECONDS)


@dataclass(frozen=True)
class Fleet:
    """The machines on which an algorithm is simulated.

    Parameters
    ----------
    workers : int
        Number of workers, >= 1.
    compute : Law or sequence of Law
        Time of one step [s]; one law for all workers, or one for each. Default: 1 s exactly.
    speeds : sequence of float, optional
        ``float64[workers]``, each > 0: a worker's durations are divided by its speed, so that 2 is
        twice as fast.
    latency : float
        One-way time of a message [s], >= 0.
    bandwidth : float
        Of each shard's inbound and outbound link [bytes/s], > 0; ``inf`` is unlimited. A pull's
        request has no size, its reply and a push have that of the columns which they carry.
    service : float
        Time for which the server is busy with one message [s], >= 0.
    shards : int
        Servers, >= 1, over which each message is split evenly. All shards are equal and see the
        same messages in the same order, so that they work as one server whose links carry
        ``bytes / shards`` per message.
    failures : Failures, optional
        Machines that break; none by default.
    slowdown : sequence of float, optional
        ``float64[workers]``, each > 0, instead of `speeds`: a worker's durations are multiplied by
        it, so that 2 is half as fast. It is kept as the speeds ``1 / slowdown``.

    Raises
    ------
    ConfigError
        If a number is out of bounds, a sequence has not one entry per worker, or both `speeds` and
        `slowdown` are given.
    """

    workers: int
    compute: Law | Sequence[Law] = constant(1.0)  # noqa: RUF009 # a frozen value, safe to share
    speeds: Sequence[float] | None = None
    latency: float = 0.0
    bandwidth: float = inf
    service: float = 0.0
    shards: int = 1
    failures: Failures | None = None
    slowdown: InitVar[Sequence[float] | None] = None

    def __post_init__(self, slowdown: Sequence[float] | None) -> None:
        for name in ("workers", "shards"):
            object.__setattr__(self, name, check_count(name, getattr(self, name)))
        check_room("workers", self.workers, WORKER_BYTES)
        check_number("latency", self.latency, at_least=0, unit=SECONDS)
        check_number("bandwidth", self.bandwidth, above=0, unit=" bytes/s", finite=False)
        check_number("service", self.service, at_least=0, unit=SECONDS)
        if not isinstance(self.compute, Law):
            laws = _entries("compute", self.compute, self.workers, "distsgd.exponential(1.0)")
            object.__setattr__(self, "compute", laws)
        speeds = self.speeds if slowdown is None else self._slowed(slowdown)
        if speeds is not None:
            object.__setattr__(self, "speeds", _entries("speeds", speeds, self.workers, "[1, 0.5]"))
        for worker, speed in enumerate(self.speeds or ()):
            check_number(f"speeds[{worker}]", speed, above=0)
        if not isinstance(self.failures, (Failures, type(None))):
            raise ConfigError(f"failures must be Failures(mean_time, repair) or None, not {self.failures!r}")

    def _slowed(self, slowdown: Sequence[float]) -> tuple[float, ...]:
        """Return the speeds of workers that take so many times as long."""
        if self.speeds is not None:
            msg = "give speeds, which divide the durations, or slowdown, which multiplies them"
            raise ConfigError(f"{msg}; not both")
        factors = _entries("slowdown", slowdown, self.workers, "[1, 2]")
        return tuple(
            1.0 / check_number(f"slowdown[{worker}]", factor, above=0) for worker, factor in enumerate(factors)
        )

    @property
    def laws(self) -> tuple[Law, ...]:
        """The compute-time laws: one for all workers, or one for each."""
        return (self.compute,) if isinstance(self.compute, Law) else tuple(self.compute)

    @property
    def settings(self) -> dict[str, Any]:
        """What identifies the fleet, ready for JSON; an unlimited bandwidth is None."""
        failures, laws = self.failures, [str(law) for law in self.laws]
        return {
            "kind": "fleet",
            "workers": int(self.workers),
            "compute": laws if len(laws) > 1 else laws[0],
            "speeds": None if self.speeds is None else [float(speed) for speed in self.speeds],
            "latency": float(self.latency),
            "bandwidth": None if isinf(self.bandwidth) else float(self.bandwidth),
            "service": float(self.service),
            "shards": int(self.shards),
            "failures": failures and [float(failures.mean_time), float(failures.repair)],
        }


@dataclass(frozen=True)
class StaleReads:
    """An order without machines: each gradient was read a sampled number of versions ago.

    Update u applies a gradient that was read at version ``max(0, u - lag)``. Updates are one second
    apart. There are as many workers as gradients are ever in flight at once. The `law` is that of
    the lags [versions], of which samples are rounded down. Their `seed` is not that of a run.
    """

    law: Law
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.law, Law):
            raise ConfigError(f"law must be a law such as exponential(4.0), not {self.law!r}")
        check_seed(self.seed)

    @property
    def settings(self) -> dict[str, Any]:
        """What identifies the order, ready for JSON."""
        return {"kind": "stale_reads", "law": str(self.law), "seed": int(self.seed)}


def fixed_staleness(tau: int) -> Fleet:
    """Return the fleet on which every gradient has the staleness `tau`, >= 0, after start-up.

    `tau` + 1 equal workers take turns. The first updates have the staleness 0, 1, ..., `tau`,
    because all workers start from the same point.
    """
    return Fleet(workers=check_count("tau", tau, at_least=0) + 1)


def stale_reads(law: Law, seed: int = 0) -> StaleReads:
    """Return the order in which each gradient is as stale as `law` [versions] says."""
    return StaleReads(law, seed)


def _entries(name: str, values: Any, workers: int, example: str) -> tuple[Any, ...]:  # noqa: ANN401 # what was given
    """Check a value per worker, and return a tuple: the caller may change a list later."""
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise wrong_kind(name, f"{example}, with one entry per worker", values)
    if len(values) != workers:
        effects = {"speeds": "; they divide durations", "slowdown": "; it multiplies durations"}
        msg = f"{name} must have one entry per worker ({workers}), not {len(values)}"
        raise ConfigError(f"{msg}{effects.get(name, '')}")
    wrong = next((one for one in values if name == "compute" and not isinstance(one, Law)), None)
    if wrong is not None:
        raise wrong_kind(f"each entry of {name}", example, wrong)
    return tuple(values)
