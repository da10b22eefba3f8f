"""A run before it is made: one value that names it, and from which every engine makes it.

    hash = identify(request.settings)        run = engine(request, hooks)

It is sent to processes that fork, so it imports nothing that starts threads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar, get_args

import msgspec

from distsgd.algorithm import Algorithm, check_algorithm, floats, settings
from distsgd.data.partition import SHARED, Partition
from distsgd.errors import ConfigError, check_batch, check_count, check_name, check_number, check_seed, wrong_kind
from distsgd.fold.layers import LayerRates, check_layer_rates, gradient_norms, layer_factors
from distsgd.order.budget import Budget, Unit
from distsgd.order.fleet import Fleet, StaleReads
from distsgd.problem import Problem, Vector, problem_settings
from distsgd.sparse import Floats

ReadsName: TypeAlias = Literal["consistent", "interleaved"]
EVALUATIONS = 50
"""Points of a history where the caller says nothing else."""
ModelFleet: TypeAlias = Fleet | StaleReads
"""Machines of a model, or an order that is given without them."""


@dataclass(frozen=True)
class RunConfig:
    """How a run is made, whatever runs: the same for all runs of a comparison.

    `simulate` says what each of them means. A value that is out of bounds is a `ConfigError`, as
    are two that do not fit together.
    """

    budget: Budget
    batch: int = 32
    evaluate_every: int | None = None
    evaluations: int | None = None
    partition: Partition = SHARED
    reads: ReadsName = "consistent"
    atomic: bool = True
    target: float | None = None
    layer_rates: LayerRates | None = None
    layer_norms: bool = False

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {"batch": check_batch(self.batch), "atomic": bool(self.atomic)}
        checked["layer_rates"] = check_layer_rates(self.layer_rates) if self.layer_rates else None
        checked["layer_norms"] = bool(self.layer_norms)
        for name in ("evaluate_every", "evaluations"):
            if getattr(self, name) is not None:
                checked[name] = check_count(name, getattr(self, name))
        if self.target is not None:
            checked["target"] = check_number("target", self.target)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.evaluate_every is not None and self.evaluations is not None:
            raise ConfigError("give evaluate_every or evaluations, not both")
        partition_settings(self.partition)
        check_name("reads", self.reads, get_args(ReadsName))
        if self.reads == "consistent" and not self.atomic:
            raise ConfigError("atomic=False needs reads='interleaved': consistent reads and writes are whole")

    @property
    def settings(self) -> dict[str, Any]:
        """What it adds to the settings of a run, as JSON; some only if not the usual."""
        plain = {name: getattr(self, name) for name in ("batch", "target", "evaluate_every", "evaluations")}
        own = plain | {"budget": self.budget.settings} | partition_settings(self.partition)
        own |= {name: value for name in ("layer_rates", "layer_norms") if (value := getattr(self, name))}
        return own if self.reads == "consistent" else own | {"reads": self.reads, "atomic": self.atomic}


def partition_settings(partition: Partition) -> dict[str, Any]:
    """Return what a run with `partition` adds to its settings: nothing if it is the usual one."""
    if not isinstance(partition, Partition):
        raise wrong_kind("partition", "distsgd.Partition('sharded')", partition)
    return {} if partition == SHARED else {"partition": partition.settings}


class RunKeys(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """The keys of an experiment file that say how every run is made, as `RunConfig` means them.

    Exactly one of `epochs`, `updates`, `gradients` and `seconds` is the budget.
    """

    epochs: float | None = None
    updates: int | None = None
    gradients: int | None = None
    seconds: float | None = None
    batch: int = 32
    evaluations: int = 40
    reads: ReadsName = "consistent"
    atomic: bool = True
    layer_rates: dict[str, float] | None = None
    layer_norms: bool = False

    def config(self, partition: Partition) -> RunConfig:
        """Return what they say, with a partition, or raise a `ConfigError`."""
        given = {name: getattr(self, name) for name in RunKeys.__struct_fields__}
        budget = Budget.of({unit: given.pop(unit) for unit in get_args(Unit)})
        return RunConfig(budget, partition=partition, **given)


class _AnyFleet(Protocol):
    @property
    def settings(self) -> dict[str, Any]:
        """What identifies it, as JSON."""


F = TypeVar("F", bound=_AnyFleet)


@dataclass(frozen=True)
class RunRequest(Generic[F]):
    """A run that is wanted; what its `fleet` is says which engine makes it.

    The `seed` is that of machines, samples, their division and starting point. An algorithm or a
    seed that cannot be used is a `ConfigError`, as are reads that do not suit the fleet.
    """

    algorithm: Algorithm
    problem: Problem
    fleet: F
    config: RunConfig
    seed: int = 0

    def __post_init__(self) -> None:
        check_algorithm(self.algorithm)
        _ = self.layer_factors  # names of layers that are none are refused here
        object.__setattr__(self, "seed", check_seed(self.seed))
        if self.config.reads == "interleaved" and isinstance(self.fleet, StaleReads):
            raise ConfigError("interleaved reads need the times of a Fleet, which stale_reads has not; use a Fleet")

    @property
    def settings(self) -> dict[str, Any]:
        """What identifies the run before it is made, as JSON."""
        return {
            "algorithm": settings(self.algorithm),
            "problem": problem_settings(self.problem),
            "fleet": self.fleet.settings,
            "seed": self.seed,
            **self.config.settings,
        }

    @property
    def budget(self) -> Budget:
        """The budget; one of epochs is a number of gradients."""
        return self.config.budget.without_epochs(self.config.batch, self.problem.samples)

    @cached_property
    def layer_factors(self) -> Floats | None:
        """Factor of each coordinate's layer on the learning rate, float64[d], None if all are 1."""
        return layer_factors(self.problem, self.config.layer_rates)

    def norms(self, x: Vector) -> Sequence[float]:
        """Return the norm of each layer's gradient at `x`, float[d]; none if not asked for."""
        return gradient_norms(self.problem, x) if self.config.layer_norms else ()

    @cached_property
    def hyper(self) -> Any:  # noqa: ANN401 # the algorithm's own NamedTuple
        """The hyper-parameters as floats, as every engine takes them."""
        return floats(self.algorithm)


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
    """Told of a live run on its way."""


NO_HOOKS = Hooks()
