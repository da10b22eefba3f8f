"""The server's columns in one shard, and what decisions do to them.

1. The numbers are those of a fold: pushes are added in worker order and in their own type, divided
   by their number in float64, and given to the server's rule with what is known at that update.
2. Small slices are updated by NumPy, which calls the rule as it stands. For large ones NumPy's
   intermediate results do not stay near the core: a generated loop makes one pass, in place.
3. A push that is held is a view of the memory or of the frames in which it came. It is copied only
   if its worker is given up, since the next process of that worker writes there.
"""

from collections import deque
from collections.abc import Mapping
from operator import itemgetter
from typing import Any

import numpy as np

from distsgd.algorithm import Algorithm, At, Contract, Push, Rules, State, floats, verb
from distsgd.kernels.fold.dense import server_source
from distsgd.kernels.fold.rules import RuleSet, columns, loops
from distsgd.live.messages.columns import Columns, Layout
from distsgd.live.server.decisions import Decision
from distsgd.problem import Vector
from distsgd.rules.formulas import whole
from distsgd.sparse import Floats

COMPILED_FROM = 65_536
"""Numbers of a slice from which on the compiled loop pays: measured, it takes a quarter of NumPy's
100 us for plain SGD there, a twentieth at a million, and less than a second to compile."""


class Store:
    """The columns of one shard.

    They begin at its slice of the starting point, float[n], and have its type, or go on from
    `columns` of the state, float[n] each, at a version; `n_past` versions are kept beside the
    newest one. Layers may have factors on the learning rate, float64[n].
    """

    def __init__(
        self,
        algorithm: Algorithm,
        start: Vector,
        workers: int,
        *,
        n_past: int = 0,
        columns: Mapping[str, Vector] | None = None,
        version: int = 0,
        layer_factors: Floats | None = None,
    ) -> None:
        self._workers, self.version = workers, version
        h = floats(algorithm)
        self._state: State = _state(algorithm, h, start, columns or {})
        kind = _Compiled if start.size >= COMPILED_FROM else _Interpreted  # rule 2
        self._apply: _Compiled | _Interpreted = kind(algorithm, h, start.dtype, layer_factors)
        self._reads = algorithm.server.reads
        self._held: list[tuple[int, Columns]] = []
        self._past: deque[tuple[int, Columns]] = deque(maxlen=n_past + 1)
        self._keep()

    @property
    def columns(self) -> dict[str, Vector]:
        """The state by column."""
        return dict(self._state._asdict())

    @property
    def x(self) -> Vector:
        """The model: a view, until the next update."""
        x: Vector = self._state.x
        return x

    def hold(self, worker: int, columns: Columns) -> None:
        """Keep a push for its round."""
        self._held.append((worker, columns))

    def detach(self, worker: int) -> None:
        """Copy what a worker has pushed, since its out-box will be written again."""
        self._held = [  # rule 3
            (one, [np.array(column) for column in columns] if one == worker else columns) for one, columns in self._held
        ]

    def close(self, decision: Decision) -> None:
        """Apply the mean of what is held, and raise the version."""
        members = self._held
        if len(members) > 1:  # rule 1; two pushes of one worker stay in the order in which they came
            members.sort(key=itemgetter(0))
        at = At(decision.version, decision.staleness, self._workers, decision.step, decision.factor)
        self._state = self._apply(self._state, [columns for _, columns in members], at)
        self._held = []
        self.version = decision.version + 1
        self._keep()

    def read(self, version: int) -> Columns:
        """Return the columns of a pull at a version that is kept: views, until the next update."""
        return self._past[version - self.version - 1][1]

    def _keep(self) -> None:
        columns: Columns = [getattr(self._state, name) for name in self._reads]
        # a loop in place would write over versions that are kept for pulls of the past
        if self._apply.is_in_place and self._past.maxlen != 1:
            columns = [np.array(column) for column in columns]
        self._past.append((self.version, columns))


def prepare(algorithm: Algorithm, layout: Layout, layer_factors: Floats | None = None) -> None:
    """Compile what the shards of a run need, once for all processes that are forked afterwards."""
    factors = None if layer_factors is None else layer_factors[:1]
    largest = -(-layout.dimension // layout.shards)
    if largest >= COMPILED_FROM:
        h, number = floats(algorithm), np.zeros(1, layout.dtype)
        state = _state(algorithm, h, number, {})
        message, at = [number] * layout.n_message, At(0, 0, layout.workers, 1, 1.0)
        for n_members in {1, verb(algorithm.cycle, Push).quorum_of(layout.workers)}:
            _Compiled(algorithm, h, layout.dtype, factors)(state, [message] * n_members, at)


class _Interpreted:
    """The server's rule as NumPy calls it: new arrays, so that those that are kept never change."""

    is_in_place = False

    def __init__(self, algorithm: Algorithm, h: Any, dtype: np.dtype[Any], factors: Floats | None) -> None:  # noqa: ANN401 # a NamedTuple
        self._h, self._rule, self._factors = h, Rules.of(algorithm, dtype).apply, factors
        self._message = Contract.of(algorithm).message

    def __call__(self, state: State, members: list[Columns], at: At) -> State:
        total = members[0]
        for message in members[1:]:
            total = [np.add(one, other) for one, other in zip(total, message, strict=True)]
        mean = self._message(*(np.divide(column, len(members), dtype=np.float64) for column in total))  # rule 1
        if self._factors is not None:
            at = at._replace(factor=at.factor * self._factors)
        found = self._rule(self._h, state, mean, at)
        return type(found)(*(whole(column, state.x.size) for column in found))


class _Compiled:
    """The generated loop around the rule; it stores into the arrays of the state."""

    is_in_place = True

    def __init__(self, algorithm: Algorithm, h: Any, dtype: np.dtype[Any], factors: Floats | None) -> None:  # noqa: ANN401 # as above
        self._factors, rules = factors, RuleSet.of(algorithm, dtype)
        kinds, self._loops = columns(rules), loops(rules, server_source)
        self._h, self._state, self._message = kinds.hyper(*h), kinds.state, kinds.message

    def __call__(self, state: State, members: list[Columns], at: At) -> State:
        if len(members) > 1:
            total = [np.array(column) for column in members[0]]  # rule 3: not into an out-box
            for message in members[1:]:
                for column, other in zip(total, message, strict=True):
                    np.add(column, other, out=column)
            mean = self._message(*total)
            self._loops["apply_mean"](self._h, self._state(*state), mean, len(members), at, self._factors)
        else:
            one = self._message(*members[0])
            self._loops["apply_one"](self._h, self._state(*state), one, at, self._factors)
        return state


def _state(
    algorithm: Algorithm,
    h: Any,  # noqa: ANN401 # a NamedTuple
    start: Vector,
    known: Mapping[str, Vector],
) -> State:
    first = Rules.of(algorithm, start.dtype).server_init(h, start)
    columns = {**first._asdict(), **known}.values()
    return type(first)(*(np.full(start.size, column, start.dtype) for column in columns))
