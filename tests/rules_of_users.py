"""Rules and schedules as users write them, with numbers of their own."""

import functools
import threading
from dataclasses import dataclass, field
from typing import NamedTuple

import distsgd as ds
from distsgd.algorithm import Algorithm
from distsgd.algorithms.parts import Parameters, sgd


def scaled(scale: float, name: str = "mine") -> Algorithm:
    """Return SGD whose rule closes over its step size."""
    apply = lambda h, s, m: Parameters(s.x - scale * m.g)  # noqa: E731 # a rule
    server = sgd._replace(apply=apply)
    return ds.algorithms.serial(0.1)._replace(name=name, server=server)


class Point(NamedTuple):
    """Two numbers, and what is made of them."""

    a: float
    b: float = 1.0

    def __call__(self, epoch: float) -> float:
        """Return the factor."""
        return self.a / (self.b + epoch)


@dataclass
class Decay:
    """A schedule with numbers of its own."""

    rate: float
    steps: list[float] = field(default_factory=list)

    def __call__(self, epoch: float) -> float:
        """Return the factor."""
        return 1.0 / (1.0 + self.rate * epoch)


class Plain:
    """A schedule with attributes, one of which is only remembered."""

    def __init__(self, rate: float) -> None:
        self.rate, self.known = rate, {"a", "b"}

    @functools.cached_property
    def found(self) -> float:
        """Return what takes long to find."""
        return 2.0 * self.rate

    def __call__(self, epoch: float) -> float:
        """Return the factor."""
        return 1.0 / (1.0 + self.rate * epoch)

    def other(self, epoch: float) -> float:
        """Return another factor."""
        return self(2.0 * epoch)


def power(base: float, epoch: float) -> float:
    """Return a factor."""
    return base**epoch


class Locked:
    """A schedule that needs a lock."""

    def __init__(self) -> None:
        self.guard = threading.Lock()

    def __call__(self, epoch: float) -> float:
        """Return the factor."""
        with self.guard:
            return 1.0 + 0.0 * epoch
