"""What every live engine is given: a run as the caller asked for it, with every argument checked.

It is sent to processes that fork, so it imports nothing that starts threads.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from distsgd.algorithm import Algorithm, floats, settings
from distsgd.data.partition import SHARED, Partition
from distsgd.live.options import Kind, OnLoss, Writes, fleet_settings
from distsgd.live.ray_options import RayOptions
from distsgd.order.laws import Law
from distsgd.problem import Problem, problem_settings


class Budget(NamedTuple):
    """When a run is done: after this `amount` of updates, gradients, epochs or seconds."""

    unit: str
    amount: float

    def n_gradients(self, batch: int, samples: int) -> int | None:
        """Return the mini-batch gradients of all workers, None if they are not what ends a run."""
        if self.unit == "epochs":
            return math.ceil(self.amount * samples / batch)
        return int(self.amount) if self.unit == "gradients" else None


class Progress(NamedTuple):
    """How far a live run has come."""

    updates: int
    """Updates of the parameters."""
    gradients: int
    """Mini-batch gradients of all workers."""
    wall_seconds: float
    """Time since the start, without evaluations where all workers wait for them [s]."""
    loss: float
    """The newest known, NaN before there is one."""
    staleness: float
    """Mean so far, NaN where it is not known."""
    alive: int
    """Workers at work."""
    lost: int
    """Workers that have been given up, replaced or not."""
    unsaved: int = 0
    """Checkpoints of the servers that could not be written, and were tried again."""
    saved: int | None = None
    """Update of the last one that is known to be complete."""


class Hooks(NamedTuple):
    """What the caller wants to be asked and told while a run goes on; not for other processes."""

    stop: Callable[[], bool] = lambda: False
    """Whether to end now."""
    watch: Callable[[Progress], object] | None = None


@dataclass(frozen=True)
class Launch:
    """A live run before it starts. Arguments have the meaning that `distsgd.launch` gives them."""

    algorithm: Algorithm
    problem: Problem
    workers: int
    budget: Budget
    batch: int = 32
    seed: int = 0
    evaluate_every: int | None = None
    evaluations: int | None = None
    partition: Partition = SHARED
    target: float | None = None
    staleness: int | Law | None = None
    delay: Law | Sequence[Law] | None = None
    shards: int = 1
    on_loss: OnLoss = "replace"
    heartbeat_s: float = 1.0
    checkpoint_s: float = 5.0
    address: str | None = None
    writes: Writes = "racy"
    ray: RayOptions = field(default_factory=RayOptions)

    @property
    def hyper(self) -> Any:  # noqa: ANN401 # the algorithm's own NamedTuple
        """The hyper-parameters as floats, as every engine takes them."""
        return floats(self.algorithm)

    @property
    def delays(self) -> tuple[Law | None, ...]:
        """The delay of each worker."""
        if self.delay is None or isinstance(self.delay, Law):
            return (self.delay,) * self.workers
        return tuple(self.delay)

    def settings(self, kind: Kind) -> dict[str, Any]:
        """Return what identifies the run, as JSON, like the settings of a simulation."""
        writes = self.writes if kind == "shared_memory" else None
        fleet = fleet_settings(
            kind,
            self.workers,
            shards=self.shards,
            staleness=self.staleness,
            delay=self.delay,
            on_loss=self.on_loss,
            writes=writes,
        )
        known = {
            "algorithm": settings(self.algorithm),
            "problem": problem_settings(self.problem),
            "fleet": fleet,
            "batch": self.batch,
            "seed": self.seed,
            "budget": {self.budget.unit: self.budget.amount},
            "evaluate_every": self.evaluate_every,
            "evaluations": self.evaluations,
            "target": self.target,
        }
        return known if self.partition == SHARED else known | {"partition": self.partition.settings}
