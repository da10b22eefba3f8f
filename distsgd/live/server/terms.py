"""What an order goes by, and does not change: the cycle, the round, the budget."""

from collections.abc import Callable
from typing import NamedTuple

from distsgd.algorithm import Algorithm, Pull, Push, Start, verb
from distsgd.live.peers.cycle import Turns
from distsgd.live.server.lags import Lags
from distsgd.order.budget import Limits


class Terms(NamedTuple):
    """What stays as it is."""

    turns: Turns
    workers: int
    quorum: int
    drops_late: bool
    bound: float
    """Steps that a worker may be ahead of the slowest when it pulls; often unlimited."""
    others_after: float
    schedule: Callable[[float], float] | None
    epochs_per_step: float
    budget: Limits
    lags: Lags
    shrinks: bool
    """Whether the run goes on without a lost worker."""

    @classmethod
    def of(
        cls,
        algorithm: Algorithm,
        workers: int,
        budget: Limits,
        epochs_per_step: float,
        *,
        lags: Lags | None = None,
        shrinks: bool = False,
    ) -> "Terms":
        """Return the terms of a run of `algorithm`."""
        cycle = algorithm.cycle
        pull, push, start = verb(cycle, Pull), verb(cycle, Push), verb(cycle, Start)
        return cls(
            turns=Turns.of(cycle, workers),
            workers=workers,
            quorum=push.quorum_of(workers),
            drops_late=push.quorum is None and push.backup > 0,
            bound=float("inf") if pull.bound is None else pull.bound,
            others_after=start.others_after,
            schedule=algorithm.schedule,
            epochs_per_step=epochs_per_step,
            budget=budget,
            lags=lags or Lags(None, 0, workers),
            shrinks=shrinks,
        )
