"""Passes over the rows of a trace: what a row needs, and which rows look ahead together.

1. A round is numbered by the version that it finds, so a push belongs to the round of the server's
   version before it; the pushes behind the last update belong to a round that never closes.
2. All steps of a wave start from what is fixed before the wave begins: no row that needs steps has
   its worker's previous row inside, which would change what it starts from.
3. A slot holds one version, from the update that makes it until the next one has been made and the
   last worker that pulled it has pushed. So there are no more slots than versions in use, and one.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from distsgd.kernels import compiled
from distsgd.trace import JOIN, PULL, PUSH

Integers = npt.NDArray[np.int64]
Records = npt.NDArray[np.void]

# a record, so that the columns of a row have names in Python too
PLAN = np.dtype(
    (
        np.record,
        [
            ("verb", "i4"),
            ("worker", "i4"),
            ("steps", "i4"),  # that the worker takes between its previous row and this one
            ("first", "i4"),  # whether this push is the first of its round
            ("members", "i8"),  # pushes in the round that this row closes, or 0
            ("step", "i8"),  # steps that the worker has completed
            ("read", "i8"),  # version that the worker holds while it takes these steps
            ("version", "i8"),  # of the server: pulled, or met by a push when it is applied
            ("staleness", "i8"),  # of the round, which is that of its oldest gradient
            ("factor", "f8"),  # the schedule's factor for the server
        ],
    )
)


class Plan(NamedTuple):
    """Rows to fold, and where updates end."""

    rows: Records
    ends: Integers
    """Number of rows to fold until an update is applied: int64[updates]."""
    workers: int
    worker_factors: npt.NDArray[np.float64]
    """The schedule's factor for a worker at each of its steps: float64[steps + 2]."""
    is_plain: bool = True
    """Whether `Trace.is_plain`, so that a round's pushes stand where it closes."""


@compiled
def survey(served: Records, n_updates: int) -> tuple[Integers, Integers, Integers]:
    """Return the round of each push (-1: no push), and each round's staleness and members."""
    rounds = np.full(served.size, -1, dtype=np.int64)
    staleness = np.zeros(n_updates + 1, dtype=np.int64)
    members = np.zeros(n_updates + 1, dtype=np.int64)
    version = 0
    for k in range(served.size):
        if served[k].verb == PUSH:
            rounds[k] = version  # rule 1: `version` is still that of the row before
            staleness[version] = max(staleness[version], version - served[k].read)
            members[version] += 1
        version = served[k].version
    return rounds, staleness, members


@compiled
def fill(
    served: Records,
    order: Integers,
    rounds: Integers,
    staleness: Integers,
    members: Integers,
    factors: npt.NDArray[np.float64],
    n_workers: int,
    out: Records,
) -> None:
    """Write the rows `order` of a trace into the plan `out`, with all that they need."""
    n_taken = np.zeros(n_workers, dtype=np.int64)
    held = np.zeros(n_workers, dtype=np.int64)
    n_collected = 0
    for k in range(order.size):
        row, to = served[order[k]], out[k]
        worker = row.worker
        to.verb, to.worker, to.step = row.verb, worker, row.step
        # A row that is a pull begins with what its worker held before, and ends with what it reads.
        to.read, to.version = held[worker], row.version
        to.steps = row.step - n_taken[worker]
        n_taken[worker] = row.step
        if row.verb in (PULL, JOIN):
            held[worker] = to.version = row.read
        if row.verb == PUSH:
            update = rounds[order[k]]
            to.version, to.staleness, to.factor = update, staleness[update], factors[update]
            # The pushes of a round stand together in `order`, so counting them is enough.
            to.first = n_collected == 0
            n_collected += 1
            if n_collected == members[update]:
                to.members = n_collected
                n_collected = 0


@compiled
def waves(worker: npt.NDArray[np.int32], steps: npt.NDArray[np.int32], n_workers: int, most: int) -> Integers:
    """Return the first row of each wave, and the number of rows.

    A wave is as many rows in a row as possible. At most `most` of them need steps.
    """
    starts = np.empty(worker.size + 1, dtype=np.int64)
    last = np.full(n_workers, -1, dtype=np.int64)
    n_waves, start, n_stepping = 0, -1, 0
    for k in range(worker.size):
        # Rule 2. A row without steps may follow any other: it starts from nothing.
        if start < 0 or (steps[k] > 0 and (last[worker[k]] >= start or n_stepping == most)):
            starts[n_waves] = start = k
            n_waves += 1
            n_stepping = 0
        n_stepping += steps[k] > 0
        last[worker[k]] = k
    starts[n_waves] = worker.size
    return starts[: n_waves + 1]


@compiled
def version_slots(rows: Records, n_workers: int, n_updates: int) -> tuple[npt.NDArray[np.int32], Any, int]:
    """Return the slot of the version that each row reads, that of each version, and their number.

    A push reads the slot of the version that its worker pulled, int32[n]; -1 for other rows. An
    update reads the slot of the version before it, int32[updates + 1], and writes that of its own.
    """
    last = np.full(n_updates + 1, rows.size, dtype=np.int64)  # rule 3; the last version is kept
    for k in range(rows.size):
        if rows[k].members:
            last[rows[k].version] = k
    for k in range(rows.size):
        if rows[k].verb == PUSH:
            last[rows[k].read] = max(last[rows[k].read], k)
    slots, places = np.full(rows.size, -1, dtype=np.int32), np.zeros(n_updates + 1, dtype=np.int32)
    free = np.arange(n_workers + 2, 0, -1).astype(np.int32)
    n_free, n_slots = free.size, 1
    for k in range(rows.size):
        if rows[k].verb != PUSH:
            continue
        slots[k] = places[rows[k].read]
        if rows[k].members:
            # before a slot is given back: an update writes where nothing that it reads stands
            n_free -= 1
            places[rows[k].version + 1] = free[n_free]
            n_slots = max(n_slots, free[n_free] + 1)
        for version in (rows[k].read, rows[k].version):
            if last[version] == k:
                last[version] = -1  # a push may read the version that it replaces
                free[n_free] = places[version]
                n_free += 1
    return slots, places, n_slots
