"""A worker's state, and its rules as NumPy or generated loops call them.

1. A worker holds what a fold holds of it, and computes it by the same operations, so that a replay
   has its bits.
2. Small states are computed by NumPy, which calls the rules as they stand. For large ones NumPy's
   intermediate results do not stay near the core: generated loops make one pass each, in place.
3. Gradients are written into a few arrays in turn: never into one that the state holds, since a
   rule may return what it was given.
"""

from typing import Any, NamedTuple

import numpy as np

from distsgd.algorithm import Algorithm, At, Rules, State, floats, is_memoryless
from distsgd.data.stream import Stream
from distsgd.kernels.fold.dense import private_source
from distsgd.kernels.fold.rules import RuleSet, columns, empty_columns, loops
from distsgd.live.messages.columns import Columns
from distsgd.problem import Batch, Problem, Vector
from distsgd.rules.formulas import whole
from distsgd.sparse import Floats

COMPILED_FROM = 65_536
"""Coordinates from which on compiled loops pay: measured with Downpour at 1.1 million, the rules of
a step take 1.3 ms instead of NumPy's 3.7, in float32 0.5 instead of 9; they compile in a second."""
_DRAWN = 16
"""Steps whose samples are drawn together."""


class WorkerCase(NamedTuple):
    """What all workers of a run have in common."""

    algorithm: Algorithm
    problem: Problem
    stream: Stream
    start: Vector
    """The starting point, float[d]."""
    workers: int
    layer_factors: Floats | None = None
    """Factor of each coordinate's layer on the learning rate, float64[d], None if all are 1."""

    @property
    def hyper(self) -> Any:  # noqa: ANN401 # the algorithm's own NamedTuple
        """The hyper-parameters as floats, as every engine takes them."""
        return floats(self.algorithm)

    def warm_up(self) -> None:
        """Evaluate a gradient, so that what it compiles and starts is part of no worker's step."""
        batch, key = Samples(self, 0).of(0)
        self.problem.gradient_into(self.start, batch, np.empty_like(self.start), key)


class Samples:
    """What a worker's steps draw: a batch, and the key of a problem that is random, or else 0.

    Those of `_DRAWN` steps are drawn together, which takes hardly longer than those of one.
    """

    def __init__(self, case: WorkerCase, worker: int) -> None:
        self._stream, self._worker, self._is_random = case.stream, worker, case.problem.is_random
        self._block = -1

    def of(self, step: int) -> tuple[Batch, int]:
        """Return the batch, uint32[b], and the key of a step."""
        block, place = divmod(step, _DRAWN)
        if block != self._block:
            self._block = block
            workers, steps = np.full(_DRAWN, self._worker), block * _DRAWN + np.arange(_DRAWN)
            self._batches = self._stream.batches(workers, steps)
            self._keys = self._stream.keys(workers, steps).tolist() if self._is_random else [0] * _DRAWN
        return self._batches[place], self._keys[place]


class Replica:
    """A worker's state; it takes steps, and what the servers send and get is columns."""

    def __init__(self, case: WorkerCase, worker: int) -> None:
        self._case, self._samples = case, Samples(case, worker)
        kind = _Compiled if case.start.size >= COMPILED_FROM else _Interpreted  # rule 2
        self._rules: _Compiled | _Interpreted = kind(case)
        self._epochs_per_step = case.stream.batch_size / case.problem.samples
        self.begin(case.start, version=0, step=0)

    def begin(self, x: Vector, version: int, step: int) -> None:
        """Begin at the parameters `x` of a version, with `step` steps behind."""
        self._rules.begin(x)
        self._version, self.step = version, step
        self._at = self._known()

    def receive(self, columns: Columns, version: int) -> None:
        """Take what a pull has returned."""
        self._version, self._at = version, self._at._replace(version=version)
        self._rules.receive(columns, self._at)

    def take_step(self) -> None:
        """Evaluate the gradient of the step's batch, and take the step."""
        (batch, key), g = self._samples.of(self.step), self._rules.free_array()
        self._case.problem.gradient_into(self._rules.point(self._at), batch, g, key)
        self._rules.step(g, self._at)
        self.step += 1
        self._at = self._known()

    def send(self) -> Columns:
        """Return the columns of a push, each float[d], until the next step."""
        return self._rules.send(self._at)

    def _known(self) -> At:
        schedule, factor = self._case.algorithm.schedule, 1.0
        if schedule is not None:
            factor = float(schedule(self.step * (self._epochs_per_step * self._case.workers)))
        return At(self._version, 0, self._case.workers, self.step, factor)


def prepare(case: WorkerCase) -> None:
    """Compile what the workers of a run need, once for all processes that are forked afterwards."""
    if case.start.size >= COMPILED_FROM:
        number, at = np.zeros(1, case.start.dtype), At(0, 0, case.workers, 0, 1.0)
        factors = None if case.layer_factors is None else case.layer_factors[:1]
        one = _Compiled(case._replace(start=number, layer_factors=factors))
        one.receive([number] * len(case.algorithm.server.reads), at)
        one.step(one.point(at), at)
        one.send(at)


class _Interpreted:
    """The rules as NumPy calls them: new arrays, or those that were given."""

    def __init__(self, case: WorkerCase) -> None:
        self._h, self._start, self._factors = case.hyper, case.start, case.layer_factors
        self._rules = Rules.of(case.algorithm, case.start.dtype)
        self._keeps_views = is_memoryless(case.algorithm)
        self._gradients: list[Vector] = []

    def begin(self, x: Vector) -> None:
        self._state: State = self._rules.init(self._h, x)

    def receive(self, columns: Columns, at: At) -> None:
        # a worker that remembers nothing needs no copy
        kept = columns if self._keeps_views else [np.array(column) for column in columns]
        self._state = self._rules.receive(self._h, self._state, *kept, self._told(at))

    def point(self, at: At) -> Vector:
        point: Vector = whole(self._rules.at(self._h, self._state, self._told(at)), self._start.size)
        return point

    def free_array(self) -> Vector:
        for g in self._gradients:
            if id(g) not in map(id, self._state):  # rule 3
                return g
        self._gradients.append(np.empty_like(self._start))
        return self._gradients[-1]

    def step(self, g: Vector, at: At) -> None:
        self._state = self._rules.step(self._h, self._state, g, self._told(at))

    def send(self, at: At) -> Columns:
        self._state, message = self._rules.send(self._h, self._state, self._told(at))
        return [whole(column, self._start.size) for column in message]

    def _told(self, at: At) -> At:
        return at if self._factors is None else at._replace(factor=at.factor * self._factors)


class _Compiled:
    """The generated loops around the rules; they store into arrays of their own."""

    def __init__(self, case: WorkerCase) -> None:
        rules, size, dtype = RuleSet.of(case.algorithm, case.start.dtype), case.start.size, case.start.dtype
        self._kinds, self._loops = columns(rules), loops(rules, private_source)
        self._hyper, self._init = case.hyper, Rules.of(case.algorithm, dtype).init
        self._h, self._factors, self._reads = self._kinds.hyper(*case.hyper), case.layer_factors, rules.names.reads
        self._state = empty_columns(self._kinds.replica, (1, size), dtype)
        self._message = empty_columns(self._kinds.message, size, dtype)
        self._x, self._g = np.empty(size, dtype), np.empty(size, dtype)

    def begin(self, x: Vector) -> None:
        for column, first in zip(self._state, self._init(self._hyper, x), strict=True):
            column[...] = first

    def receive(self, columns: Columns, at: At) -> None:
        read = dict(zip(self._reads, columns, strict=True))
        # the loop reads no other column, but asks x for its size
        server = self._kinds.state(*(read.get(name, self._x) for name in self._kinds.state._fields))
        self._loops["pull"](self._h, server, self._state, 0, at, self._factors)

    def point(self, at: At) -> Vector:
        self._loops["point"](self._h, self._state, 0, at, self._factors, self._x)
        return self._x

    def free_array(self) -> Vector:
        return self._g

    def step(self, g: Vector, at: At) -> None:
        self._loops["take_step"](self._h, self._state, 0, at, self._factors, g)

    def send(self, at: At) -> Columns:
        self._loops["message"](self._h, self._state, 0, at, self._factors, True, self._message)
        return list(self._message)
