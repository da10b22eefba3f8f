"""A problem that counts the gradients of a worker, so that one of them can be another one."""

import os
from collections.abc import Callable

import numpy as np

from distsgd.problem import Problem


class DisturbedProblem:
    """The members of `problem`, with gradients of its own; it is checked where it is made."""

    problem: Problem
    disturb: Callable[..., None]
    """A method of the subclass: what disturbs a worker in its gradient number `step`, from 1 on."""

    def __init__(self) -> None:
        self._steps, self._home = 0, os.getpid()

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.problem, name)

    def gradient(self, x: np.ndarray, batch: np.ndarray) -> np.ndarray:
        """Return the gradient, unless something comes in between."""
        self._steps += os.getpid() != self._home  # here it is only checked
        self.disturb(self._steps)
        return self.problem.gradient(x, batch)

    def gradient_into(self, x: np.ndarray, batch: np.ndarray, out: np.ndarray, key: int = 0) -> None:  # noqa: ARG002 # nothing is drawn
        """Write the gradient into `out`, unless something comes in between."""
        out[...] = self.gradient(x, batch)
