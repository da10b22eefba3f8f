"""A plan: the rows of a trace arranged for folding, with all that is known before the numbers.

1. A push that the server holds has no effect before its round closes. So it stands where the round
   closes, in worker order: that is the order in which a round is averaged. Its worker has no row
   between, since it waits to be released.
2. Rows behind the last update change nothing, and are left out.
3. Where workers leave, join or read old versions, rows stand as they were served: the worker of a
   held push may begin another life before the round closes. Then the row that closes the round has
   its `members`, be it a push or a `LEAVE`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from distsgd.algorithm import Algorithm
from distsgd.kernels.fold import plan as kernels
from distsgd.kernels.fold.plan import PLAN, Plan
from distsgd.trace import ROW, Trace

__all__ = ["PLAN", "Plan", "Row", "plan", "read_rows"]


class Row(NamedTuple):
    """A row of `PLAN` as Python numbers."""

    verb: int
    worker: int
    steps: int
    first: int
    members: int
    step: int
    read: int
    version: int
    staleness: int
    factor: float


def read_rows(rows: npt.NDArray[np.void]) -> Iterator[Row]:
    """Return rows of `PLAN` as Python numbers, which are read faster than records."""
    return map(Row._make, rows.tolist())


def plan(algorithm: Algorithm, trace: Trace, epochs_per_step: float) -> Plan:
    """Arrange `trace` for folding `algorithm`; `epochs_per_step` is batch size over samples."""
    served = trace.rows.view(np.dtype((np.record, ROW)))
    rounds, staleness, members = kernels.survey(served, trace.n_updates)
    order = _order(trace, rounds)
    rows = np.zeros(order.size, dtype=PLAN)
    server_factors = _server_factors(algorithm, trace, epochs_per_step)
    kernels.fill(served, order, rounds, staleness, members, server_factors, trace.workers, rows)
    if not trace.is_plain:  # Rule 3: the kernel counts pushes that stand together, and here they do not.
        updates = np.arange(trace.n_updates)
        known = {"version": updates, "staleness": staleness, "factor": server_factors, "members": members}
        rows["members"] = 0
        for name, values in known.items():
            rows[name][trace.closing] = values[: trace.n_updates]
    steps = np.arange(rows["step"].max(initial=0) + 2)  # a kernel evaluates the step behind a pull
    factors = _factors(algorithm, steps * (epochs_per_step * trace.workers))
    return Plan(rows, np.flatnonzero(rows["members"]) + 1, trace.workers, factors, trace.is_plain)


def _order(trace: Trace, rounds: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    closing = trace.closing
    # rule 2
    place = np.arange(closing[-1] + 1 if closing.size else 0)
    is_push = rounds[: place.size] >= 0
    if np.count_nonzero(is_push) == closing.size or not trace.is_plain:
        return place
    # Rule 1: a round's pushes get the place of the row that closes it, and sort by worker there.
    place[is_push] = closing[rounds[: place.size][is_push]]
    return np.lexsort((trace.rows["worker"][: place.size], place))


def _server_factors(algorithm: Algorithm, trace: Trace, epochs_per_step: float) -> npt.NDArray[np.float64]:
    if algorithm.schedule is None:
        return np.ones(trace.n_updates + 1)
    # an update's epoch is what has been served before it
    return _factors(algorithm, np.append(0, trace.gradients) * epochs_per_step)


def _factors(algorithm: Algorithm, epochs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if algorithm.schedule is None:
        return np.ones(epochs.size)
    return np.array([algorithm.schedule(epoch) for epoch in epochs.tolist()])
