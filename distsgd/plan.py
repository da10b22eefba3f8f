"""A plan: the rows of a trace arranged for folding, with all that is known before the numbers.

1. A push that the server holds has no effect before its round closes. So it stands where the round
   closes, in worker order: that is the order in which a round is averaged.
2. Rows behind the last update change nothing, and are left out.
3. The rows fall into waves. All steps that a wave needs start from what is fixed before it begins,
   so their gradients are evaluated as one batch; then its rows are served one after the other.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from distsgd.algorithm import Algorithm, is_memoryless
from distsgd.kernels import plan as kernels
from distsgd.trace import DROP, PULL, PUSH, Trace

PLAN = np.dtype(
    [
        ("verb", "i4"),
        ("worker", "i4"),
        ("steps", "i4"),  # steps that the worker takes between its previous row and this one
        ("number", "i4"),  # place among the rows of its wave that need steps, or -1
        ("slot", "i4"),  # memory of the worker's state, or of the version that it pulled
        ("fills", "i4"),  # whether this pull is the first one of its version
        ("first", "i4"),  # whether this push is the first of its round
        ("members", "i4"),  # pushes in the round that this push closes, or 0
        ("step", "i8"),  # steps that the worker has completed
        ("read", "i8"),  # version that the worker holds while it takes these steps
        ("version", "i8"),  # of the server: returned by a pull, or met by a push when it is applied
        ("staleness", "i8"),  # of the round, which is that of its oldest gradient
        ("factor", "f8"),  # the schedule's factor for the server
    ]
)


class Row(NamedTuple):
    """A row of `PLAN` as Python numbers."""

    verb: int
    worker: int
    steps: int
    number: int
    slot: int
    fills: int
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


class Plan(NamedTuple):
    """Rows to fold, and where their waves and their updates end."""

    rows: npt.NDArray[np.void]
    waves: npt.NDArray[np.int64]
    """First row of each wave, and the number of rows: int64[waves + 1]."""
    ends: npt.NDArray[np.int64]
    """Number of rows to fold until an update is applied: int64[updates]."""
    n_slots: int
    """Slots of memory that the rows name."""
    worker_factors: npt.NDArray[np.float64]
    """The schedule's factor for a worker at each of its steps: float64[steps + 1]."""


def plan(algorithm: Algorithm, trace: Trace, *, epochs_per_step: float, most: int) -> Plan:
    """Arrange `trace` for folding `algorithm`.

    Parameters
    ----------
    algorithm : Algorithm
        What will be folded: it says whether workers that pulled one version share its memory.
    trace : Trace
        The order of service.
    epochs_per_step : float
        Batch size over the number of samples.
    most : int
        Gradients to evaluate as one batch, at most.

    Returns
    -------
    Plan
        The same order, with what each row needs.
    """
    rounds = _rounds(trace)
    order = _order(trace, rounds)
    rows = np.zeros(order.size, dtype=PLAN)
    for name in ("verb", "worker", "step", "version"):
        rows[name] = trace.rows[name][order]
    pulled = np.where(rows["verb"] == PULL, rows["version"], -1)
    previous, steps, rows["read"] = kernels.link(
        rows["worker"], rows["step"], pulled, trace.workers
    )
    _fill_rounds(rows, rounds[order], trace)
    _fill_factors(rows, algorithm, trace.gradients * epochs_per_step)
    rows["slot"], n_slots = rows["worker"], trace.workers
    if is_memoryless(algorithm):
        steps[rows["verb"] == DROP] = 0  # nobody would see that gradient
        rows["slot"], rows["fills"], n_slots = kernels.share_versions(
            rows["worker"], pulled, trace.workers
        )
    rows["steps"] = steps
    waves = kernels.waves(previous, steps, most)
    rows["number"] = kernels.number_within(waves, steps > 0)
    own_epochs = np.arange(rows["step"].max(initial=0) + 1) * (epochs_per_step * trace.workers)
    ends = np.flatnonzero(rows["members"]) + 1
    return Plan(rows, waves, ends, n_slots, _factors(algorithm, own_epochs))


def _rounds(trace: Trace) -> npt.NDArray[np.int64]:
    """Return the update in which each row's push is applied, or -1; the last ones may miss it."""
    rounds = np.full(trace.rows.size, -1)
    pushes = np.flatnonzero(trace.rows["verb"] == PUSH)
    rounds[pushes] = np.searchsorted(trace.closing, pushes)
    return rounds


def _order(trace: Trace, rounds: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    if not trace.n_updates:
        return np.empty(0, dtype=np.int64)
    n_folded = int(trace.closing[-1]) + 1
    place = np.arange(n_folded)
    is_push = rounds[:n_folded] >= 0
    place[is_push] = trace.closing[rounds[:n_folded][is_push]]
    return np.lexsort((trace.rows["worker"][:n_folded], place))


def _fill_rounds(rows: npt.NDArray[np.void], rounds: npt.NDArray[np.int64], trace: Trace) -> None:
    pushes = np.flatnonzero(rounds >= 0)
    members = np.bincount(rounds[pushes], minlength=trace.n_updates)
    last = np.cumsum(members) - 1
    rows["first"][pushes[last - members + 1]] = True
    rows["members"][pushes[last]] = members
    rows["version"][pushes] = rounds[pushes]
    rows["staleness"][pushes] = trace.staleness[rounds[pushes]]


def _fill_factors(
    rows: npt.NDArray[np.void], algorithm: Algorithm, epochs: npt.NDArray[np.float64]
) -> None:
    before = np.append(0.0, epochs)[:-1]  # an update's epoch is what has been served before it
    closing = rows["members"] > 0
    rows["factor"][closing] = _factors(algorithm, before)


def _factors(algorithm: Algorithm, epochs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if algorithm.schedule is None:
        return np.ones(epochs.size)
    return np.array([algorithm.schedule(epoch) for epoch in epochs.tolist()])
