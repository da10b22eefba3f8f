"""The compiled drivers: generated loops call each rule per coordinate.

1. `Dense` takes dense gradients. Where workers remember nothing (`distsgd.algorithm.is_memoryless`)
   it keeps the versions that workers hold, otherwise a state for each worker.
2. A version is written once, by the update that makes it. A pull is a reference to it, and where a
   rule evaluates the gradient at a column as it stands, the problem gets that column itself.
3. `OnSupport` takes sparse gradients, and keeps what each worker has in flight on the support of
   its batch.
4. A wave has its gradients when its rows are served, and they are not needed again: a driver keeps
   those of one wave, also between two calls of `advance`, which may end inside a wave.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.algorithm import Rules, point_column
from distsgd.fold.drivers.case import FoldCase, Level, Waves, gradients_at
from distsgd.kernels.fold import dense as folds
from distsgd.kernels.fold import sparse
from distsgd.kernels.fold.plan import version_slots
from distsgd.kernels.fold.rules import Columns, RuleSet, columns, empty_columns
from distsgd.kernels.gradients.linear import compiled_support
from distsgd.problem import Vector
from distsgd.sparse import Support

_ALIGNED = 16
"""Numbers from one version to the next are a multiple of this."""
_KEPT_BYTES = 2**24
"""The C library gives memory back to the system, and takes as long to get it again as a gradient,
unless a larger block has been freed before: gradients of a wave come and go."""
_COMPILED: set[RuleSet] = set()
"""What this process has compiled."""


def is_compiled(case: FoldCase) -> bool:
    """Return whether the loops that `Dense` needs have been compiled in this process."""
    return RuleSet.of(case.algorithm, case.start.dtype) in _COMPILED


class Dense:
    """Folds any algorithm on any problem."""

    def __init__(self, case: FoldCase) -> None:
        np.empty(_KEPT_BYTES, np.uint8)  # what is freed below this size stays with the process
        self._case, self._waves = case, Waves(case)
        self._held: folds.Shared | folds.Private
        rules = RuleSet.of(case.algorithm, case.start.dtype)
        if case.is_memoryless:
            self._held = held = _shared(case, rules, self._waves.numbers)
            self._kernels, state, places = folds.shared_kernels(rules), held.server, held.slot
        else:
            self._held = own = _private(case, rules)
            self._kernels, state, places = folds.private_kernels(rules), own.replicas, case.plan.rows["worker"]
        self._gradients = _Gradients(case, self._computed, state, places)
        # Rule 4; rows that need no gradient may come before the first wave that does.
        self._last = np.empty((0, case.start.size), case.start.dtype)
        self._version = 0
        _COMPILED.add(rules)

    @property
    def x(self) -> Vector:
        """The server's parameters, float[d]: a copy."""
        x: Vector = self._held.server.x
        if isinstance(self._held, folds.Shared):
            x = x[self._held.place[self._version] if len(x) > 1 else 0]
        return np.array(x[: self._case.start.size])

    def advance(self, stop: int) -> None:
        """Fold all rows before `stop`."""
        for start, end, levels in self._waves.until(stop):
            for level in levels:
                self._last = self._gradients.of(level)
                self._kernels.steps(self._held, self._case.plan, level.rows, level.number, self._last)
            self._kernels.serve(self._held, self._case.plan, start, end, self._last)
        self._version = int(np.searchsorted(self._case.plan.ends, stop, side="right"))

    def _computed(self, level: Level) -> Vector:
        """Return the points of a level as the rules compute them, float[m, d]."""
        points = np.empty((level.rows.size, self._case.start.size), self._case.start.dtype)
        self._kernels.points(self._held, self._case.plan, level.rows, level.number, points)
        return points


class _Gradients:
    """Evaluates the gradients of a level: together at copies of the points, or by rule 2."""

    def __init__(
        self,
        case: FoldCase,
        compute: Callable[[Level], Vector],
        state: Any,  # noqa: ANN401 # a NamedTuple of arrays
        places: NDArray[np.int32],
    ) -> None:
        self._problem, self._compute, self._places = case.problem, compute, places
        name = point_column(case.algorithm)
        # views are made once, so that a problem knows again those that it has seen
        self._points = None if name is None else list(getattr(state, name)[:, : case.start.size])
        self._room, self._out = np.empty((0, case.start.size), case.start.dtype), list[Vector]()

    def of(self, level: Level) -> Vector:
        """Return the gradients of a level, float[m, d], until the next call."""
        n_gradients = level.rows.size
        if n_gradients > 1 and self._problem.at_once > 1:
            return gradients_at(self._problem, self._compute(level), level)
        if self._points is None:
            points: Iterable[Vector] = self._compute(level)
        else:
            points = map(self._points.__getitem__, self._places[level.rows].tolist())
        if len(self._out) < n_gradients:
            self._room = np.empty((n_gradients, self._room.shape[1]), self._room.dtype)
            self._out = list(self._room)
        for n, point in enumerate(points):
            self._problem.gradient_into(point, level.batches[n], self._out[n], level.key(n))
        return self._room[:n_gradients]


def _shared(case: FoldCase, rules: RuleSet, numbers: NDArray[np.int64]) -> folds.Shared:
    kinds, reads, d = columns(rules), case.algorithm.server.reads, case.start.size
    slot, place, n_slots = version_slots(case.plan.rows, case.workers, case.plan.ends.size)
    first = Rules.of(case.algorithm, case.start.dtype).server_init(case.hyper, case.start)
    server = empty_columns(kinds.state, (1, 0))
    # each version stands as the first one does, or frameworks could not compute at it in place
    width = d + -d % _ALIGNED
    for name, column in first._asdict().items():
        room = np.empty((n_slots if name in reads else 1, width), case.start.dtype)
        room[0, :d] = column
        server = server._replace(**{name: room})
    return folds.Shared(
        h=kinds.hyper(*case.hyper),
        factors=case.layer_factors,
        server=server,
        round=_round(case, kinds),
        slot=slot,
        place=place,
        number=numbers,
    )


def _private(case: FoldCase, rules: RuleSet) -> folds.Private:
    kinds = columns(rules)
    first = Rules.of(case.algorithm, case.start.dtype).init(case.hyper, case.start)
    return folds.Private(
        h=kinds.hyper(*case.hyper),
        factors=case.layer_factors,
        server=server_columns(case, kinds),
        replicas=_filled(kinds.replica, first, (case.workers, case.start.size), case.start.dtype),
        round=empty_columns(kinds.message, case.start.size, case.start.dtype),
    )


def _round(case: FoldCase, kinds: Columns) -> Any:  # noqa: ANN401 # a NamedTuple of arrays
    """Return room for a sum of messages, none where every round has one."""
    is_alone = case.plan.rows["members"].max(initial=0) <= 1
    return empty_columns(kinds.message, 0 if is_alone else case.start.size, case.start.dtype)


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


def _filled(kind: Any, first: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:  # noqa: ANN401 # NamedTuples
    return kind(*(np.full(shape, column, dtype) for column in first))


def server_columns(case: FoldCase, kinds: Columns) -> Any:  # noqa: ANN401 # a NamedTuple of arrays
    """Return the server's state before the first update."""
    first = Rules.of(case.algorithm, case.start.dtype).server_init(case.hyper, case.start)
    return _filled(kinds.state, first, case.start.shape, case.start.dtype)
