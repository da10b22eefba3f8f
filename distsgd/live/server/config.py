"""What a service goes by, and does not change: the protocol, the budget, the staleness."""

from collections.abc import Callable
from typing import NamedTuple

from distsgd.algorithm import Algorithm
from distsgd.live.options import LiveFleet
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
        cls, algorithm: Algorithm, fleet: LiveFleet, limits: Limits, epochs_per_step: float, seed: int
    ) -> "ServiceConfig":
        """Return the config of a run of `algorithm`; the seed is that of injected staleness."""
        workers, shrinks = fleet.workers, fleet.on_loss == "shrink"
        sync, staleness = SyncProtocol.of(algorithm.cycle, workers), InjectedStaleness(fleet.staleness, seed, workers)
        return cls(sync, workers, algorithm.schedule, epochs_per_step, limits, staleness, shrinks)
