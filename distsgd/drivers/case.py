"""What a driver folds: rules, gradients and an order, as checked by `distsgd.fold`."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from distsgd.algorithm import Algorithm
from distsgd.data.stream import Stream
from distsgd.plan import Plan
from distsgd.problem import Problem


class Case(NamedTuple):
    """One fold, before it begins."""

    algorithm: Algorithm
    problem: Problem
    plan: Plan
    stream: Stream
    start: NDArray[np.float64]
    """The starting point, float64[d]."""
    workers: int

    @property
    def hyper(self) -> Any:  # noqa: ANN401 # the algorithm's own NamedTuple
        """The hyper-parameters as floats, so that no kernel is compiled for whole numbers."""
        hyper = self.algorithm.hyper
        return type(hyper)(*map(float, hyper))


class Driver(Protocol):
    """Folds the rows of a plan."""

    @property
    def x(self) -> NDArray[np.float64]:
        """The server's parameters, float64[d]; a copy, or an array that will not change."""

    def advance(self, stop: int) -> None:
        """Fold all rows before `stop`."""


class Level(NamedTuple):
    """Steps that can be taken at once, one of each worker, since their inputs are fixed."""

    rows: NDArray[np.int64]
    """Rows of the plan that need these steps, int64[m]."""
    number: int
    """Steps that each of these workers has taken since its row before."""
    batches: NDArray[np.uint32]
    """Their samples, uint32[m, b]."""


class Waves:
    """Walks through the waves of a plan; the caller serves the rows and takes the steps."""

    def __init__(self, plan: Plan, stream: Stream) -> None:
        self._plan, self._stream = plan, stream
        self._stepping = np.flatnonzero(plan.rows["number"] >= 0)
        self._bounds = np.searchsorted(self._stepping, plan.waves)
        self._row, self._wave = 0, 0

    def until(self, stop: int) -> Iterator[tuple[int, int, Iterator[Level]]]:
        """Yield ranges of rows up to `stop`, with the levels of steps to take before each."""
        while self._row < stop:
            levels: Iterator[Level] = iter(())
            if self._row == self._plan.waves[self._wave]:
                levels = self._levels(self._wave)
                self._wave += 1
            end = min(stop, int(self._plan.waves[self._wave]))
            yield self._row, end, levels
            self._row = end

    def _levels(self, wave: int) -> Iterator[Level]:
        chosen = self._stepping[self._bounds[wave] : self._bounds[wave + 1]]
        steps = self._plan.rows["steps"][chosen]
        for number in range(int(steps.max(initial=0))):
            rows = chosen[steps > number]
            needed = self._plan.rows[rows]
            taken = needed["step"] - needed["steps"] + number
            yield Level(rows, number, self._stream.batches(needed["worker"], taken))
