"""The driver of orders in which workers leave and join, or pulls return older versions.

1. Rows stand as they were served, so messages are kept until their round closes: the worker that
   sent one may begin another life before that.
2. The columns of a version are kept from the update that makes them to the last pull of them.
3. A round is averaged in worker order, and two lives of one worker in the order of service
   (`distsgd.trace`, rule 9), so that a recorded run has the bits that its server had.
"""

from typing import Any

import numpy as np

from distsgd.algorithm import State
from distsgd.fold.drivers.case import FoldCase
from distsgd.fold.drivers.interpreted import Interpreted
from distsgd.fold.drivers.plan import Row
from distsgd.trace import JOIN, LEAVE, PULL


class Recorded(Interpreted):
    """Folds any algorithm on any problem, in any order that `Trace.verify` accepts."""

    def __init__(self, case: FoldCase) -> None:
        super().__init__(case)
        pulls = case.plan.rows[case.plan.rows["verb"] == PULL]
        self._n_pulls = np.bincount(pulls["version"], minlength=case.plan.ends.size + 1)
        self._versions: dict[int, list[Any]] = {}
        self._held: list[tuple[Row, State]] = []
        self._keep(0)

    def _keep(self, version: int) -> None:
        if self._n_pulls[version]:
            self._versions[version] = super()._read(version)

    def _read(self, version: int) -> list[Any]:
        columns = self._versions[version]
        # rule 2: memory for each version of a long run would be that of the whole run
        self._n_pulls[version] -= 1
        if not self._n_pulls[version]:
            del self._versions[version]
        return columns

    def _serve(self, row: Row) -> None:
        if row.verb == JOIN:
            # Its messages that are held stay where they are (rule 1); its state does not.
            self._workers[row.worker] = self._rules.init(self._h, self._server.x)
        elif row.verb != LEAVE:
            super()._serve(row)
        if row.members:  # a push, or a `LEAVE` that no other worker is waited for
            self._close(row)

    def _collect(self, message: State, row: Row) -> None:
        self._held.append((row, message))

    def _close(self, row: Row) -> None:
        """Apply the round as if its pushes had come in worker order, the last one closing it."""
        # rule 3: the sort is stable
        members = sorted(self._held, key=lambda one: one[0].worker)
        for number, (push, message) in enumerate(members, start=1):
            n_collected = row.members if number == row.members else 0
            super()._collect(message, row._replace(first=number == 1, members=n_collected, step=push.step))
        self._held.clear()
        self._keep(row.version + 1)
