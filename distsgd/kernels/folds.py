"""The rows of a plan, folded in compiled code: kernels for each way to hold what workers know.

`shared`: a worker remembers nothing but the version that it pulled, and shares it with whoever
pulled it too. `private`: a worker has a state of its own. Both look ahead: `points` writes where
the gradients of a wave are needed, `steps` takes the steps, `serve` folds the rows. `sparse`:
shared, but a worker reads the support of its batch alone, which is copied when it is pulled; so
there is nothing to look ahead for, and one kernel does it all.

Kernels are built around the loops that are generated for an algorithm (`rules`). Their plan is
trusted: a slot, a worker or a number is an index without question.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.algorithm import At
from distsgd.kernels import specialised
from distsgd.kernels.linear import add_row_gradient
from distsgd.kernels.rules import Halves, Loop, loops
from distsgd.kernels.stream import fill_batches
from distsgd.problem import Support
from distsgd.trace import PULL, PUSH


class Order(NamedTuple):
    """What is known before the numbers."""

    rows: NDArray[np.void]
    """`distsgd.plan.PLAN` rows."""
    workers: int
    factors: NDArray[np.float64]
    """The schedule's factor for a worker at each of its steps."""


class Held(NamedTuple):
    """The numbers of a fold; apart from `h`, NamedTuples of arrays."""

    h: Any
    server: Any
    """float64[d] per column."""
    slots: Any
    """What workers hold: float64[slots, d] per column."""
    round: Any
    """Sum of the messages of the open round: float64[d] per column."""


class Kernels(NamedTuple):
    """What a driver calls for a wave: its points, the steps along its gradients, its rows."""

    points: Loop
    steps: Loop
    serve: Loop


@specialised
def stepping(row, level, order):
    """Return what a worker knows before a step; `level` counts the steps since its last row."""
    n_taken = row.step - row.steps + level
    return At(row.read, 0, order.workers, n_taken, order.factors[n_taken])


@specialised
def receiving(row, order):
    """Return what a worker knows when its pull returns."""
    return At(row.version, 0, order.workers, row.step, order.factors[row.step])


@specialised
def sending(row, order):
    """Return what a worker knows when it sends."""
    return At(row.read, 0, order.workers, row.step, order.factors[row.step])


@specialised
def applying(row, order):
    """Return what the server knows when it applies a round."""
    return At(row.version, row.staleness, order.workers, row.step, row.factor)


@functools.cache
def shared(halves: Halves) -> Kernels:
    """Return the kernels for workers that remember nothing but the version that they pulled."""
    loop = loops(halves).by_name
    keep, point = loop["keep"], loop["point_shared"]
    message, apply_mean = loop["message_shared"], loop["apply_mean"]

    def points(held, order, chosen, level, out):
        for n in range(chosen.size):
            row = order.rows[chosen[n]]
            point(held.h, held.slots, row.slot, stepping(row, level, order), out[n])

    def steps(held, order, chosen, level, gradients):
        pass  # a step is taken when its message is needed, so that it takes no memory before

    def serve(held, order, start, stop, gradients):
        for r in range(start, stop):
            row = order.rows[r]
            if row.verb == PULL:
                if row.fills:
                    keep(held.server, held.slots, row.slot)
            elif row.verb == PUSH:
                at, sent, g = stepping(row, 0, order), sending(row, order), gradients[row.number]
                message(held.h, held.slots, row.slot, at, sent, g, row.first, held.round)
                if row.members > 0:
                    at = applying(row, order)
                    apply_mean(held.h, held.server, held.round, row.members, at)

    return Kernels(specialised(points), specialised(steps), specialised(serve))


@functools.cache
def private(halves: Halves) -> Kernels:
    """Return the kernels for workers with a state of their own."""
    loop = loops(halves).by_name
    receive, point = loop["receive_private"], loop["point_private"]
    step, message = loop["step_private"], loop["message_private"]
    apply_mean = loop["apply_mean"]

    def points(held, order, chosen, level, out):
        for n in range(chosen.size):
            row = order.rows[chosen[n]]
            point(held.h, held.slots, row.slot, stepping(row, level, order), out[n])

    def steps(held, order, chosen, level, gradients):
        for n in range(chosen.size):
            row = order.rows[chosen[n]]
            step(held.h, held.slots, row.slot, stepping(row, level, order), gradients[n])

    def serve(held, order, start, stop, gradients):
        for r in range(start, stop):
            row = order.rows[r]
            if row.verb == PULL:
                receive(held.h, held.server, held.slots, row.slot, receiving(row, order))
            else:  # whoever sent a dropped push does not know that it is dropped
                is_first = row.verb != PUSH or row.first
                message(held.h, held.slots, row.slot, sending(row, order), is_first, held.round)
                if row.members > 0:
                    at = applying(row, order)
                    apply_mean(held.h, held.server, held.round, row.members, at)

    return Kernels(specialised(points), specialised(steps), specialised(serve))


class Memory(NamedTuple):
    """What a sparse fold keeps: each worker's support and message, and room to work."""

    columns: NDArray[np.uint32]
    """The support of each worker's batch, uint32[workers, most]."""
    n_columns: NDArray[np.int64]
    """Its size, int64[workers]."""
    batch: NDArray[np.uint32]
    """The samples of one step, uint32[1, b]."""
    place: NDArray[np.uint32]
    """Place in the support of each non-zero of a batch, uint32[most non-zeros]."""
    position: NDArray[np.uint32]
    """Place in the support of each coordinate, if it is in it, uint32[d]."""
    point: NDArray[np.float64]
    """float64[most]"""
    gradient: NDArray[np.float64]
    """float64[most]"""
    touched: NDArray[np.uint32]
    """Coordinates that the pushes of an open round touch, uint32[d]."""
    is_touched: NDArray[np.bool_]
    """bool[d]"""
    n_touched: NDArray[np.int64]
    """int64[1]"""


class Flight(NamedTuple):
    """The numbers of a sparse fold; apart from `h`, NamedTuples of arrays."""

    h: Any
    server: Any
    """float64[d] per column."""
    read: Any
    """What one worker has read: float64[most] per column."""
    messages: Any
    """Every worker's next message: float64[workers, most] per column."""
    round: Any
    """Sum of the messages of the open round: float64[d] per column."""
    memory: Memory
    support: Support
    """Its slope is compiled."""
    seed: int


def memory(n_workers: int, dimension: int, n_entries: int, batch: int) -> Memory:
    """Return room for batches of up to `n_entries` non-zeros."""
    n_columns = min(n_entries, dimension)
    return Memory(
        columns=np.empty((n_workers, n_columns), dtype=np.uint32),
        n_columns=np.zeros(n_workers, dtype=np.int64),
        batch=np.empty((1, batch), dtype=np.uint32),
        place=np.empty(n_entries, dtype=np.uint32),
        position=np.zeros(dimension, dtype=np.uint32),
        point=np.empty(n_columns),
        gradient=np.empty(n_columns),
        touched=np.empty(dimension, dtype=np.uint32),
        is_touched=np.zeros(dimension, dtype=np.bool_),
        n_touched=np.zeros(1, dtype=np.int64),
    )


@specialised
def find_support(data, batch, columns, place, position):
    """Write the columns that `batch` touches and the place of each non-zero; return their number.

    A column is in the support already if its `position` is inside and names it, so that `position`
    is never cleared. The row of a single sample is its own support.
    """
    n_columns = n_places = 0
    for i in range(batch.size):
        for entry in range(data.starts[batch[i]], data.starts[batch[i] + np.uint64(1)]):
            column = data.columns[entry]
            at = n_places if batch.size == 1 else position[column]
            if at >= n_columns or columns[at] != column:
                at = n_columns
                columns[at] = column
                position[column] = at
                n_columns += 1
            place[n_places] = at
            n_places += 1
    return n_columns


@specialised
def support_gradient(support, batch, place, point, out):
    """Write the mean gradient of `batch` on its support into `out`, laid out like `point`."""
    out[:] = 0.0
    n_places = np.int64(0)
    for i in range(batch.size):
        row = np.uint64(batch[i])
        length = np.int64(support.rows.starts[row + np.uint64(1)] - support.rows.starts[row])
        add_row_gradient(support, row, place[n_places : n_places + length], point, out)
        n_places += length
    for p in range(out.size):
        out[p] /= batch.size


@functools.cache
def sparse(halves: Halves) -> Loop:
    """Return the kernel for workers that remember nothing and read the support of their batch."""
    loop = loops(halves).by_name
    point, message = loop["point_support"], loop["message_support"]
    apply, add, apply_touched = loop["apply_support"], loop["add_support"], loop["apply_touched"]

    @specialised
    def read(flight, order, row):
        h, support, memory = flight.h, flight.support, flight.memory
        who, when = np.array([row.worker]), np.array([row.step])
        fill_batches(flight.seed, support.labels.size, who, when, memory.batch)
        batch, columns = memory.batch[0], memory.columns[row.worker]
        n = find_support(support.rows, batch, columns, memory.place, memory.position)
        memory.n_columns[row.worker] = n
        at, g = receiving(row, order), memory.gradient[:n]
        point(h, flight.server, columns[:n], at, flight.read, memory.point)
        support_gradient(support, batch, memory.place, memory.point, g)
        sent = At(at.version, 0, at.workers, at.step + 1, order.factors[at.step + 1])
        message(h, flight.read, at, sent, g, flight.messages, row.worker)

    @specialised
    def collect(flight, order, row, columns):
        memory = flight.memory
        n_touched = add(columns, flight, row.worker, memory.n_touched[0])
        memory.n_touched[0] = n_touched
        if row.members > 0:
            touched, at = memory.touched[:n_touched], applying(row, order)
            apply_touched(flight, touched, row.members, at)
            memory.n_touched[0] = 0

    def serve(flight, order, start, stop):
        for r in range(start, stop):
            row = order.rows[r]
            columns = flight.memory.columns[row.worker, : flight.memory.n_columns[row.worker]]
            if row.verb == PULL:
                read(flight, order, row)
            elif row.first and row.members == 1:
                at = applying(row, order)
                apply(flight.h, flight.server, columns, flight.messages, row.worker, at)
            elif row.verb == PUSH:
                collect(flight, order, row, columns)

    return specialised(serve)
