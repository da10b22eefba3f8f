"""The rows of a plan, folded on sparse data by compiled code.

A worker that remembers nothing needs no more of a version than the support of its batch. So a pull
copies that, and evaluates gradient and message at once: both follow from what was read. The push
brings the message to the server's coordinates. Nothing is left to look ahead for.

The kernel takes its arrays apart before the loop and not in it: a NamedTuple of arrays that is
passed on in every row would cost more than the arithmetic.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.algorithm import At
from distsgd.kernels import compiled, specialised
from distsgd.kernels.draws.stream import draw_batch
from distsgd.kernels.fold.dense import applying, receiving
from distsgd.kernels.fold.rules import Halves, Loop, loops
from distsgd.kernels.gradients.linear import add_row_gradient
from distsgd.trace import PULL, PUSH


class Flight(NamedTuple):
    """The numbers of a sparse fold."""

    h: Any
    server: Any
    """float64[d] per column."""
    read: Any
    """What the worker at hand has read: float64[most] per column."""
    point: NDArray[np.float64]
    """Where its gradient is taken, float64[most]."""
    gradient: NDArray[np.float64]
    """float64[most]"""
    messages: Any
    """The message of each worker: float64[workers, most] per column."""
    round: Any
    """Sum of the messages of the open round: float64[d] per column."""


class Room(NamedTuple):
    """Where the numbers belong, and room to find out."""

    batch: NDArray[np.uint32]
    """Samples of each worker's step, uint32[workers, b]."""
    columns: NDArray[np.uint32]
    """Support of each worker's batch, uint32[workers, most]."""
    n_columns: NDArray[np.int64]
    """Its size, int64[workers]."""
    place: NDArray[np.uint32]
    """Place in the support of each non-zero of a batch, uint32[non-zeros]."""
    position: NDArray[np.uint32]
    """Place in the support of each coordinate, if it is there at all, uint32[d]."""
    touched: NDArray[np.uint32]
    """Coordinates that the messages of an open round touch, uint32[d]."""
    is_touched: NDArray[np.bool_]
    """bool[d]"""


def room(n_workers: int, dimension: int, n_entries: int, batch: int) -> Room:
    """Return room for batches of up to `n_entries` non-zeros."""
    most = min(n_entries, dimension)
    return Room(
        batch=np.zeros((n_workers, batch), dtype=np.uint32),
        columns=np.empty((n_workers, most), dtype=np.uint32),
        n_columns=np.zeros(n_workers, dtype=np.int64),
        place=np.empty(n_entries, dtype=np.uint32),
        position=np.zeros(dimension, dtype=np.uint32),
        touched=np.empty(dimension, dtype=np.uint32),
        is_touched=np.zeros(dimension, dtype=np.bool_),
    )


@compiled
def find_support(data, batch, columns, place, position):
    """Write the columns that `batch` touches and the place of each non-zero; return their number.

    A column is in the support already if its `position` is inside and names it, so that `position`
    is never cleared.
    """
    n_columns = n_places = 0
    for i in range(batch.size):
        row = np.uint64(batch[i])
        for entry in range(data.starts[row], data.starts[row + np.uint64(1)]):
            column = data.columns[entry]
            at = position[column]
            if at >= n_columns or columns[at] != column:
                at = n_columns
                position[column], columns[at] = at, column
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
    """Return the kernel for workers that remember nothing but what they have read."""
    loop = loops(halves).by_name
    point, message = loop["point_support"], loop["message_support"]
    margin_single, message_single = loop["margin_single"], loop["message_single"]
    apply, add, apply_touched = loop["apply_support"], loop["add_support"], loop["apply_touched"]

    def serve(flight, order, support, room, sampling, start, stop):
        h, S, R, x, gradient, B, M = flight
        data, labels, shrink, slope = support
        values, all_columns, starts = data.values, data.columns, data.starts
        batches, columns, n_columns, place, position, touched, is_touched = room
        n_touched = 0
        for r in range(start, stop):
            row = order.rows[r]
            worker = row.worker
            if row.verb == PULL:
                batch = batches[worker]
                draw_batch(sampling, worker, row.step, batch)
                at = receiving(row, order)
                sent = At(at.version, 0, at.workers, at.step + 1, order.factors[at.step + 1])
                if batch.size == 1:
                    sample = np.uint64(batch[0])
                    first, end = starts[sample], starts[sample + np.uint64(1)]
                    entries, here = values[first:end], columns[worker, : end - first]
                    for p in range(here.size):  # assigning a slice would take longer
                        here[p] = all_columns[first + np.uint64(p)]
                    change = slope(margin_single(h, S, here, at, R, x, entries), labels[sample])
                    message_single(h, R, at, sent, here, entries, change, shrink, x, B, worker)
                else:
                    n = find_support(data, batch, columns[worker], place, position)
                    here, g = columns[worker, :n], gradient[:n]
                    point(h, S, here, at, R, x)
                    support_gradient(support, batch, place, x, g)
                    message(h, R, at, sent, g, B, worker)
                n_columns[worker] = here.size
                continue
            here = columns[worker, : n_columns[worker]]
            if row.members == 1 and row.first:
                apply(h, S, here, B, worker, applying(row, order))
            elif row.verb == PUSH:
                n_touched = add(here, B, worker, M, is_touched, touched, n_touched)
                if row.members > 0:
                    at = applying(row, order)
                    apply_touched(h, S, touched[:n_touched], M, is_touched, row.members, at)
                    n_touched = 0

    return specialised(serve)
