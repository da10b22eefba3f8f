"""Which values tuning tries: pure functions of what has been tried.

Every algorithm gets the same number of trials. The first ones lie on a grid, equally spaced in the
logarithm. Each further one goes where the best one points: beyond the grid if the best lies at its
edge, else between the best and the better one of its neighbours.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
import numpy as np

from distsgd.algorithm import Algorithm
from distsgd.errors import ConfigError, check_count, check_number, check_room, check_seeds, unknown_name, wrong_kind

Values: TypeAlias = dict[str, float]
"""Values of the tuned parameters, by name."""

_TRIAL_BYTES = 10_000.0
"""Of a trial, its runs left out: more than any computer can try."""
TUNE = "tune"
"""What stands in place of a learning rate that is to be tuned."""


class Range(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Where to look for a parameter: from `low` to `high`, whole numbers only if both are whole."""

    low: int | float
    high: int | float

    def __post_init__(self) -> None:
        check_number("low", self.low, above=0)
        if check_number("high", self.high) <= self.low:
            raise ConfigError(f"high must be > low ({self.low:g}), not {self.high!r}; the grid is empty")

    def value(self, logarithm: float) -> float:
        """Return the value that the parameter may have next to the exponential of `logarithm`."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return max(1, round(math.exp(logarithm)))
        return float(f"{math.exp(logarithm):.6g}")


class Tuning(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How the algorithms are tuned, all alike: table ``[tuning]`` of an experiment file.

    `trials` on the grid from `low` to `high` and then `refinements`, each over `seeds`, that the
    comparison may not use; with one seed no order between tuned algorithms is claimed. On the fleet
    `fleet` for all fleets; without one, on each fleet anew.
    """

    trials: int = 7
    refinements: int = 2
    low: float = 0.01
    high: float = 10.0
    seeds: int | list[int] = 3
    fleet: str | None = None

    def __post_init__(self) -> None:
        if check_count("tuning.trials", self.trials) < 2:
            raise ConfigError(f"tuning.trials must be >= 2 to have two ends, not {self.trials}")
        check_count("tuning.refinements", self.refinements, at_least=0)
        check_room("tuning.trials", self.trials + self.refinements, _TRIAL_BYTES)
        for name in ("trials", "refinements"):
            msgspec.structs.force_setattr(self, name, int(getattr(self, name)))
        try:
            Range(self.low, self.high)
        except ConfigError as error:
            raise ConfigError(f"tuning.{error}") from None
        check_count("number of tuning.seeds", len(self.seed_list))

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds: a number of them starts at 1000."""
        return tuple(check_seeds("tuning.seeds", self.seeds, first=1000))

    def settings(self, tunables: Mapping[str, "Tunable"]) -> dict[str, Any]:
        """Return what a reader needs to know, as JSON."""
        return {
            "trials": self.trials,
            "refinements": self.refinements,
            "seeds": list(self.seed_list),
            "fleet": self.fleet or "each",
            "ranges": {
                name: {key: [one.low, one.high] for key, one in tunable.ranges.items()}
                for name, tunable in tunables.items()
            },
        }


@dataclass(frozen=True)
class Tunable:
    """An algorithm with parameters that are to be tuned.

    Parameters
    ----------
    make : callable
        Returns the algorithm for values of all parameters in `ranges`, as keyword arguments.
    ranges : mapping of str to Range
        Where to look for each of them.

    Raises
    ------
    ConfigError
        If no parameter is to be tuned, `make` has no such parameter, or a range is none.
    """

    make: Callable[..., Algorithm]
    ranges: Mapping[str, Range]

    def __post_init__(self) -> None:
        if not callable(self.make):
            raise wrong_kind("make", "the function distsgd.algorithms.downpour", self.make)
        if not isinstance(self.ranges, Mapping):
            example = '{"learning_rate": distsgd.Range(0.01, 1)}'
            raise wrong_kind("ranges", example, self.ranges)
        check_count("number of tuned parameters", len(self.ranges))
        for name, one in self.ranges.items():
            _check_parameter(self.make, name)
            if not isinstance(one, Range):
                raise wrong_kind(f"the range of {name}", _as_range(one), one)

    @property
    def lowest(self) -> Algorithm:
        """The algorithm with the lowest value of each parameter."""
        return self.make(**{name: one.low for name, one in self.ranges.items()})


def _check_parameter(make: Callable[..., Algorithm], name: str) -> None:
    known = inspect.signature(make).parameters
    takes_any = any(one.kind is one.VAR_KEYWORD for one in known.values())
    if name not in known and not takes_any:
        raise unknown_name("tuned parameter", str(name), known)


def _as_range(given: object) -> str:
    """Return how a pair of numbers is written as a range."""
    pair = given if isinstance(given, (tuple, list)) and len(given) == 2 else (0.01, 1)
    return f"distsgd.Range({pair[0]!r}, {pair[1]!r})"


def grid(ranges: Mapping[str, Range], trials: int) -> list[Values]:
    """Return the first values to try, at most `trials` >= 2, without repetitions.

    For one parameter that is a grid with both ends. For several they are the points of a Halton
    sequence, which fill their box evenly: a grid of so few would try two or three values of each.
    """
    if len(ranges) > 1:
        return _unique(_scattered(ranges, trials))
    ((name, one),) = ranges.items()
    places = np.linspace(math.log(one.low), math.log(one.high), trials)
    return _unique({name: one.value(place)} for place in places)


def refined(ranges: Mapping[str, Range], tried: Sequence[Values], losses: Sequence[float]) -> Values | None:
    """Return values that were not tried before, or None; a loss is infinite for a divergence."""
    if len(ranges) > 1:
        proposed = _scattered(ranges, len(tried) + 1)[-1]
    else:
        ((name, one),) = ranges.items()
        place = _next_place([math.log(values[name]) for values in tried], losses)
        proposed = {name: one.value(place)}
    return None if proposed in tried else proposed


def _next_place(places: Sequence[float], losses: Sequence[float]) -> float:
    order = np.argsort(places)
    x, loss = np.asarray(places)[order], np.asarray(losses)[order]
    best, last = int(np.argmin(loss)), len(x) - 1
    if last == 0:
        return float(x[0])
    if best in {0, last}:
        inner = 1 if best == 0 else last - 1
        return float(2 * x[best] - x[inner])
    better = best - 1 if loss[best - 1] <= loss[best + 1] else best + 1
    return float((x[best] + x[better]) / 2)


def _scattered(ranges: Mapping[str, Range], n_points: int) -> list[Values]:
    from scipy.stats import qmc  # noqa: PLC0415 # slow

    points = qmc.Halton(len(ranges), scramble=False).random(n_points)
    return [
        {
            name: one.value(math.log(one.low) + share * math.log(one.high / one.low))
            for (name, one), share in zip(ranges.items(), point, strict=True)
        }
        for point in points
    ]


def _unique(values: Iterable[Values]) -> list[Values]:
    return list({tuple(one.items()): one for one in values}.values())
