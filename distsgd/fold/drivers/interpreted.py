"""The interpreted driver: NumPy calls each rule on whole vectors.

1. Rules are pure, so a pull is a reference to the arrays of that version, and a version lives as
   long as a worker holds it. Nothing here writes into an array of a state.
2. All gradients of a level are evaluated at once: they have the bits of single ones, which
   `distsgd.fold.problem_check` demands of a problem.
3. Messages of a round are added in the order of the plan, the first to nothing, and divided by
   their number, one too: the compiled drivers do the same.
"""

from typing import Any

import numpy as np

from distsgd.algorithm import At, Rules, State
from distsgd.fold.drivers.case import FoldCase, Level, Waves, gradients_at
from distsgd.fold.drivers.plan import Row, read_rows
from distsgd.problem import Vector
from distsgd.rules.formulas import FLOAT64, whole
from distsgd.trace import PULL, PUSH


class Interpreted:
    """Folds any algorithm on any problem, without compiling its rules."""

    def __init__(self, case: FoldCase) -> None:
        self._case, self._h = case, case.hyper
        self._rules = Rules.of(case.algorithm, case.start.dtype)
        self._waves = Waves(case)
        self._server = self._rules.server_init(self._h, case.start)
        # one state for all of them (rule 1)
        self._workers = [self._rules.init(self._h, case.start)] * case.workers
        self._round: State = None
        self._factors = case.plan.worker_factors.tolist()

    @property
    def x(self) -> Vector:
        """The server's parameters, float[d]."""
        x: Vector = whole(self._server.x, self._case.start.size)
        return x

    def advance(self, stop: int) -> None:
        """Fold all rows before `stop`."""
        for start, end, levels in self._waves.until(stop):
            for level in levels:
                self._step(level)
            for row in read_rows(self._case.plan.rows[start:end]):
                self._serve(row)

    def _step(self, level: Level) -> None:
        stepping = [
            (row.worker, self._at_worker(row.read, row.step - row.steps + level.number))
            for row in read_rows(self._case.plan.rows[level.rows])
        ]
        points = [self._rules.at(self._h, self._workers[worker], at) for worker, at in stepping]
        gradients = self._gradients([whole(point, self._case.start.size) for point in points], level)
        for (worker, at), g in zip(stepping, gradients, strict=True):
            self._workers[worker] = self._rules.step(self._h, self._workers[worker], g, at)

    def _gradients(self, points: list[Vector], level: Level) -> Vector:
        problem = self._case.problem
        if problem.at_once > 1:  # rule 2
            return gradients_at(problem, np.stack(points), level)
        # new room each time: a rule may keep a gradient as it stands
        out = np.empty((len(points), self._case.start.size), self._case.start.dtype)
        for n, point in enumerate(points):
            problem.gradient_into(point, level.batches[n], out[n], level.key(n))
        return out

    def _serve(self, row: Row) -> None:
        state = self._workers[row.worker]
        if row.verb == PULL:
            columns, at = self._read(row.version), self._at_worker(row.version, row.step)
            self._workers[row.worker] = self._rules.receive(self._h, state, *columns, at)
        else:
            at = self._at_worker(row.read, row.step)
            self._workers[row.worker], message = self._rules.send(self._h, state, at)
            if row.verb == PUSH:
                self._collect(message, row)

    def _read(self, version: int) -> list[Any]:  # noqa: ARG002 # a plain pull reads the newest one
        """Return the server's columns that a pull returns."""
        return [getattr(self._server, name) for name in self._case.algorithm.server.reads]

    def _collect(self, message: State, row: Row) -> None:
        if not row.first:  # rule 3, and a new array by rule 1: the worker may hold its message
            message = type(message)(*map(np.add, self._round, message))
        self._round = message
        if row.members:
            # rule 3: of float32 too the mean is float64
            mean = type(message)(*(np.divide(column, row.members, dtype=FLOAT64) for column in message))
            at = At(row.version, row.staleness, self._case.workers, row.step, self._layered(row.factor))
            self._server = self._rules.apply(self._h, self._server, mean, at)

    def _at_worker(self, version: int, step: int) -> At:
        return At(version, 0, self._case.workers, step, self._layered(self._factors[step]))

    def _layered(self, factor: float) -> Any:  # noqa: ANN401 # a number, or float64[d]
        layers = self._case.layer_factors
        return factor if layers is None else factor * layers
