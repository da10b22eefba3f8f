"""An algorithm and a problem of one's own: gradients count the less, the staler they are."""

from typing import NamedTuple

import numpy as np

import distsgd as ds
from distsgd.algorithm import Algorithm, At, Column, Pull, Push, Server, Step, maximum
from distsgd.algorithms.parts import Gradient, gradient_worker

POINTS = np.random.default_rng(0).standard_t(df=1.5, size=(500, 3)) + 3.0


class Location(ds.Problem):
    """Where the middle of points with outliers is: the mean of sqrt(1 + distance ** 2) is least."""

    samples, dimension = POINTS.shape

    def loss(self, x: np.ndarray) -> float:
        """Return the objective at `x`."""
        return float(np.mean(np.sqrt(1 + np.sum((x - POINTS) ** 2, axis=1))))

    def gradient(self, x: np.ndarray, batch: np.ndarray) -> np.ndarray:
        """Return the mean gradient of some points."""
        away = x - POINTS[batch]
        return np.mean(away / np.sqrt(1 + np.sum(away**2, axis=1, keepdims=True)), axis=0)


class Rate(NamedTuple):
    """The algorithm's only number."""

    learning_rate: float


class State(NamedTuple):
    """What the server keeps: the parameters."""

    x: Column


def init(_: Rate, x: Column) -> State:
    """Begin with the problem's starting point."""
    return State(x)


def apply(h: Rate, s: State, m: Gradient, at: At) -> State:
    """Divide the learning rate by the staleness of the gradient."""
    return State(s.x - h.learning_rate / maximum(1.0, at.staleness) * m.g)


def damped(learning_rate: float) -> Algorithm:
    """Return the algorithm: pull, step, push, and the rule above."""
    server = Server(init, reads=("x",), apply=apply)
    return Algorithm("damped", Rate(learning_rate), server, gradient_worker, (Pull(), Step(), Push()))


found = ds.compare(
    {"damped": damped(1.0), "Downpour": ds.algorithms.downpour(1.0)},
    Location(),
    {"staleness 0": ds.fixed_staleness(0), "staleness 16": ds.fixed_staleness(16)},
    updates=600,
    batch=8,
    seeds=3,
)
print(found)
