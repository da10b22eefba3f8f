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
from numpy.typing import NDArray

from distsgd.algorithm import At, Rules, State
from distsgd.fold.case import FoldCase, Level, Waves
from distsgd.fold.plan import Row, read_rows
from distsgd.rules.formulas import whole
from distsgd.trace import PULL, PUSH


class Interpreted:
    """Folds any algorithm on any problem, without compiling its rules."""

    def __init__(self, case: FoldCase) -> None:
        self._case, self._h = case, case.hyper
        self._rules = Rules.of(case.algorithm)
        self._waves = Waves(case)
        self._server = self._rules.server_init(self._h, case.start)
        # one state for all of them (rule 1)
        self._workers = [self._rules.init(self._h, case.start)] * case.workers
        self._round: State = None
        self._factors = case.plan.worker_factors.tolist()

    @property
    def x(self) -> NDArray[np.float64]:
        """The server's parameters, float64[d]."""
        x: NDArray[np.float64] = whole(self._server.x, self._case.start.size)
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
        points = np.empty((len(stepping), self._case.start.size))
        for place, (worker, at) in enumerate(stepping):
            points[place] = self._rules.at(self._h, self._workers[worker], at)
        # rule 2
        gradients = self._case.problem.gradients(points, level.batches)
        for (worker, at), g in zip(stepping, gradients, strict=True):
            self._workers[worker] = self._rules.step(self._h, self._workers[worker], g, at)

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
            mean = type(message)(*(column / row.members for column in message))
            at = At(row.version, row.staleness, self._case.workers, row.step, row.factor)
            self._server = self._rules.apply(self._h, self._server, mean, at)

    def _at_worker(self, version: int, step: int) -> At:
        return At(version, 0, self._case.workers, step, self._factors[step])
