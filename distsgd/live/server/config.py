"""What a service goes by, and does not change: the protocol, the budget, the staleness."""

from collections.abc import Callable
from typing import NamedTuple

from distsgd.algorithm import Algorithm
from distsgd.live.server.staleness import InjectedStaleness
from distsgd.order.budget import Limits
from distsgd.rules.cycle import SyncProtocol


class ServiceConfig(NamedTuple):
    """What stays as it is."""

    sync: SyncProtocol
    workers: int
    schedule: Callable[[float], float] | None
    """The algorithm's own: the factor of its learning rate, by epochs."""
    epochs_per_step: float
    limits: Limits
    staleness: InjectedStaleness
    shrinks: bool
    """Whether the run goes on without a lost worker."""

    @classmethod
    def of(
        cls,
        algorithm: Algorithm,
        workers: int,
        limits: Limits,
        epochs_per_step: float,
        *,
        staleness: InjectedStaleness | None = None,
        shrinks: bool = False,
    ) -> "ServiceConfig":
        """Return the config of a run of `algorithm`."""
        sync = SyncProtocol.of(algorithm.cycle, workers)
        staleness = staleness or InjectedStaleness(None, 0, workers)
        return cls(sync, workers, algorithm.schedule, epochs_per_step, limits, staleness, shrinks)
