"""The compiled drivers: generated loops call each rule per coordinate.

1. `Dense` takes dense gradients. Where workers remember nothing (`distsgd.algorithm.is_memoryless`)
   it keeps the versions that workers hold, otherwise a state for each worker.
2. `OnSupport` takes sparse gradients, and keeps what each worker has in flight on the support of
   its batch.
3. A wave has its gradients when its rows are served, and they are not needed again: a driver keeps
   those of one wave, also between two calls of `advance`, which may end inside a wave.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.algorithm import Rules
from distsgd.fold.case import FoldCase, Level, Waves
from distsgd.kernels.fold import dense as folds
from distsgd.kernels.fold import sparse
from distsgd.kernels.fold.plan import share_versions
from distsgd.kernels.fold.rules import Columns, RuleSet, columns, empty_columns
from distsgd.kernels.gradients.linear import compiled_support
from distsgd.sparse import Support


class Dense:
    """Folds any algorithm on any problem."""

    def __init__(self, case: FoldCase) -> None:
        self._case, self._waves = case, Waves(case)
        self._held: folds.Shared | folds.Private
        rules = RuleSet.of(case.algorithm)
        if case.is_memoryless:
            self._held, self._kernels = _shared(case, self._waves.numbers), folds.shared_kernels(rules)
        else:
            self._held, self._kernels = _private(case), folds.private_kernels(rules)
        # Rule 3; rows that need no gradient may come before the first wave that does.
        self._gradients = np.empty((0, case.start.size))

    @property
    def x(self) -> NDArray[np.float64]:
        """The server's parameters, float64[d]: a copy."""
        return np.array(self._held.server.x)

    def advance(self, stop: int) -> None:
        """Fold all rows before `stop`."""
        for start, end, levels in self._waves.until(stop):
            for level in levels:
                self._step(level)
            self._kernels.serve(self._held, self._case.plan, start, end, self._gradients)

    def _step(self, level: Level) -> None:
        points = np.empty((level.rows.size, self._case.start.size))
        self._kernels.points(self._held, self._case.plan, level.rows, level.number, points)
        self._gradients = self._case.problem.gradients(points, level.batches)
        self._kernels.steps(self._held, self._case.plan, level.rows, level.number, self._gradients)


def _shared(case: FoldCase, numbers: NDArray[np.int64]) -> folds.Shared:
    kinds = columns(RuleSet.of(case.algorithm))
    slot, fills, n_slots = share_versions(case.plan.rows, case.workers)
    return folds.Shared(
        h=kinds.hyper(*case.hyper),
        server=server_columns(case, kinds),
        versions=empty_columns(kinds.reads, (n_slots, case.start.size)),
        round=empty_columns(kinds.message, case.start.size),
        slot=slot,
        fills=fills,
        number=numbers,
    )


def _private(case: FoldCase) -> folds.Private:
    kinds = columns(RuleSet.of(case.algorithm))
    first = Rules.of(case.algorithm).init(case.hyper, case.start)
    return folds.Private(
        h=kinds.hyper(*case.hyper),
        server=server_columns(case, kinds),
        replicas=_filled(kinds.replica, first, (case.workers, case.start.size)),
        round=empty_columns(kinds.message, case.start.size),
    )


class OnSupport:
    """Folds memoryless algorithms on sparse problems at the cost of the batches' supports."""

    def __init__(self, case: FoldCase, support: Support) -> None:
        rules, dimension = RuleSet.of(case.algorithm), case.start.size
        self._space = sparse.workspace(case.workers, support.rows, case.stream.batch_size)
        kinds, most = columns(rules), self._space.most
        self._numbers = sparse.Numbers(
            h=kinds.hyper(*case.hyper),
            server=server_columns(case, kinds),
            read=empty_columns(kinds.reads, most),
            point=np.empty(most),
            gradient=np.empty(most),
            messages=empty_columns(kinds.message, (case.workers, most)),
            round=empty_columns(kinds.message, dimension),
        )
        self._support = compiled_support(support)
        self._serve = sparse.sparse_kernel(rules)
        self._plan, self._sampling, self._row = case.plan, case.stream.sampling, 0

    @property
    def x(self) -> NDArray[np.float64]:
        """The server's parameters, float64[d]: a copy."""
        return np.array(self._numbers.server.x)

    def advance(self, stop: int) -> None:
        """Fold all rows before `stop`."""
        known = self._plan, self._support, self._space, self._sampling
        self._serve(self._numbers, *known, self._row, stop)
        self._row = stop


def _filled(kind: Any, first: Any, shape: tuple[int, ...]) -> Any:  # noqa: ANN401 # NamedTuples
    return kind(*(np.full(shape, column) for column in first))


def server_columns(case: FoldCase, kinds: Columns) -> Any:  # noqa: ANN401 # a NamedTuple of arrays
    """Return the server's state before the first update."""
    first = Rules.of(case.algorithm).server_init(case.hyper, case.start)
    return _filled(kinds.state, first, case.start.shape)
