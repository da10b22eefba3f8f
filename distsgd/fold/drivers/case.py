"""What a driver folds: rules, gradients and an order, as checked by `distsgd.fold.fold`."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from distsgd.algorithm import Algorithm, floats, is_memoryless
from distsgd.data.stream import Stream
from distsgd.fold.drivers.plan import Plan
from distsgd.kernels.fold.plan import waves
from distsgd.problem import Problem, Vector
from distsgd.trace import DROP

_WAVE_GRADIENTS, _WAVE_NUMBERS = 256, 2**20
"""Gradients in a wave, and numbers in them, at most: more do not stay near the cores."""


class FoldCase(NamedTuple):
    """One fold, before it begins."""

    algorithm: Algorithm
    problem: Problem
    plan: Plan
    stream: Stream
    start: Vector
    """The starting point, float[d]."""
    workers: int
    layer_factors: NDArray[np.float64] | None = None
    """Factor of each coordinate's layer on the learning rate, float64[d], None if all are 1."""

    @property
    def is_memoryless(self) -> bool:
        """Whether workers remember nothing but what they pulled."""
        return is_memoryless(self.algorithm)

    @property
    def hyper(self) -> Any:  # noqa: ANN401 # the algorithm's own NamedTuple
        """The hyper-parameters as floats, so that no kernel is compiled for whole numbers."""
        return floats(self.algorithm)


class Driver(Protocol):
    """Folds the rows of a plan."""

    @property
    def x(self) -> Vector:
        """The server's parameters, float[d]; a copy, or an array that will not change."""

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
    keys: NDArray[np.uint64] | None = None
    """What they draw from, uint64[m], if the problem is random."""

    def key(self, number: int) -> int:
        """Return what one of them draws from."""
        return 0 if self.keys is None else int(self.keys[number])


def gradients_at(problem: Problem, points: Vector, level: Level) -> Vector:
    """Return the gradients of a level at its points, both float[m, d]."""
    if level.keys is None:
        return problem.gradients(points, level.batches)
    return problem.gradients(points, level.batches, level.keys)


class Waves:
    """Walks through a plan in waves; the caller takes the steps of a wave, and serves its rows.

    All steps that a wave needs start from what is fixed before it begins, so their gradients are
    evaluated as one batch. A dropped push needs none if its worker remembers nothing: no rule would
    be given that gradient.
    """

    def __init__(self, case: FoldCase) -> None:
        rows, dimension = case.plan.rows, case.start.size
        self._rows, self._stream = rows, case.stream
        self._steps = np.where((rows["verb"] == DROP) & case.is_memoryless, 0, rows["steps"])
        most = min(max(_WAVE_NUMBERS // dimension, 1), _WAVE_GRADIENTS)
        self._waves = waves(rows["worker"], self._steps, case.workers, most)
        self._stepping = np.flatnonzero(self._steps)
        self._bounds = np.searchsorted(self._stepping, self._waves)
        self._row, self._wave = 0, 0
        self._is_random = case.problem.is_random

    @property
    def numbers(self) -> NDArray[np.int64]:
        """Place of each row among those of its wave that need steps, int64[n]."""
        is_stepping = (self._steps > 0).astype(np.int64)
        before: NDArray[np.int64] = np.cumsum(is_stepping) - is_stepping
        return before - np.repeat(self._bounds[:-1], np.diff(self._waves))

    def until(self, stop: int) -> Iterator[tuple[int, int, Iterator[Level]]]:
        """Yield ranges of rows up to `stop`, with the levels of steps to take before each."""
        while self._row < stop:
            levels: Iterator[Level] = iter(())
            if self._row == self._waves[self._wave]:
                levels = self._levels(self._wave)
                self._wave += 1
            end = min(stop, int(self._waves[self._wave]))
            yield self._row, end, levels
            self._row = end

    def _levels(self, wave: int) -> Iterator[Level]:
        chosen = self._stepping[self._bounds[wave] : self._bounds[wave + 1]]
        steps = self._steps[chosen]
        for number in range(int(steps.max(initial=0))):
            rows = chosen[steps > number]
            needed = self._rows[rows]
            taken = needed["step"] - needed["steps"] + number
            batches = self._stream.batches(needed["worker"], taken)
            keys = self._stream.keys(needed["worker"], taken) if self._is_random else None
            yield Level(rows, number, batches, keys)
