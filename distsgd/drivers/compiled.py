"""The compiled drivers: generated loops call each rule per coordinate.

`Dense` takes dense gradients. Where workers remember nothing (`distsgd.algorithm.is_memoryless`) it
keeps the versions that somebody holds, otherwise a state for each worker. `OnSupport` takes sparse
gradients, and keeps what each worker has in flight on the support of its batch.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.algorithm import is_memoryless
from distsgd.drivers.case import Case, Level, Waves
from distsgd.kernels import folds
from distsgd.kernels.linear import compiled_slope
from distsgd.kernels.rules import Halves, loops
from distsgd.problem import Support


class Dense:
    """Folds any algorithm on any problem."""

    def __init__(self, case: Case) -> None:
        halves, shape = Halves.of(case.algorithm), (case.plan.n_slots, case.start.size)
        generated, server = loops(halves), case.algorithm.server.init(case.hyper, case.start)
        if is_memoryless(case.algorithm):
            self._kernels = folds.shared(halves)
            slots = _empty(generated.reads, shape)
        else:
            self._kernels = folds.private(halves)
            first = case.algorithm.worker.init(case.hyper, case.start)
            slots = _filled(generated.replica, first, shape)
        self._held = folds.Held(
            h=generated.hyper(*case.hyper),
            server=_filled(generated.state, server, case.start.shape),
            slots=slots,
            round=_empty(generated.message, case.start.shape),
        )
        self._case, self._order = case, _order(case)
        self._waves = Waves(case.plan, case.stream)
        self._gradients = np.empty((0, case.start.size))

    @property
    def x(self) -> NDArray[np.float64]:
        """The server's parameters, float64[d]: a copy."""
        x: NDArray[np.float64] = self._held.server.x.copy()
        return x

    def advance(self, stop: int) -> None:
        """Fold all rows before `stop`."""
        for start, end, levels in self._waves.until(stop):
            for level in levels:
                self._step(level)
            self._kernels.serve(self._held, self._order, start, end, self._gradients)

    def _step(self, level: Level) -> None:
        points = np.empty((level.rows.size, self._case.start.size))
        self._kernels.points(self._held, self._order, level.rows, level.number, points)
        self._gradients = self._case.problem.gradients(points, level.batches)
        self._kernels.steps(self._held, self._order, level.rows, level.number, self._gradients)


class OnSupport:
    """Folds memoryless algorithms on sparse problems at the cost of the batches' supports."""

    def __init__(self, case: Case, support: Support) -> None:
        halves, dimension = Halves.of(case.algorithm), case.start.size
        generated, server = loops(halves), case.algorithm.server.init(case.hyper, case.start)
        n_entries = int(support.rows.lengths.max(initial=0)) * case.stream.batch_size
        n_columns = min(n_entries, dimension)
        self._flight = folds.Flight(
            h=generated.hyper(*case.hyper),
            server=_filled(generated.state, server, case.start.shape),
            read=_empty(generated.reads, n_columns),
            messages=_empty(generated.message, (case.workers, n_columns)),
            round=_empty(generated.message, dimension),
            memory=folds.memory(case.workers, dimension, n_entries, case.stream.batch_size),
            support=support._replace(slope=compiled_slope(support.slope)),
            seed=case.stream.seed,
        )
        self._serve, self._order, self._row = folds.sparse(halves), _order(case), 0

    @property
    def x(self) -> NDArray[np.float64]:
        """The server's parameters, float64[d]: a copy."""
        x: NDArray[np.float64] = self._flight.server.x.copy()
        return x

    def advance(self, stop: int) -> None:
        """Fold all rows before `stop`."""
        self._serve(self._flight, self._order, self._row, stop)
        self._row = stop


def _order(case: Case) -> folds.Order:
    return folds.Order(case.plan.rows, case.workers, case.plan.worker_factors)


def _empty(columns: Any, shape: int | tuple[int, ...]) -> Any:  # noqa: ANN401 # a NamedTuple class
    return columns(*(np.empty(shape) for _ in columns._fields))


def _filled(columns: Any, first: Any, shape: tuple[int, ...]) -> Any:  # noqa: ANN401 # NamedTuples
    return columns(*(np.full(shape, column) for column in first))
