"""The rows of a plan, folded on sparse data by compiled code.

1. A worker that remembers nothing needs no more of a version than the support of its batch. So a
   pull copies that, and evaluates gradient and message at once: both follow from what was read. The
   push brings the message to the server's coordinates. Nothing is left to look ahead for.
2. Pull and push of such a worker alternate, so it has one message in flight, and one row of
   `messages` and `columns` for it.
3. A call ends where an update does, so no round is open between two calls.
4. The bits are those of the dense kernels: every sum has the same terms in the same order.
5. The kernel takes its arrays apart before the loop and not in it: a NamedTuple of arrays that is
   passed on in every row would cost more than the arithmetic.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.kernels import compiled, specialised
from distsgd.kernels.draws.stream import draw_batch
from distsgd.kernels.fold.dense import applying, receiving, sending_next
from distsgd.kernels.fold.rules import Loop, Names, RuleSet, applied, loops, received, stores
from distsgd.kernels.gradients.linear import add_row_gradient
from distsgd.sparse import Sparse
from distsgd.trace import PULL, PUSH


class Numbers(NamedTuple):
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


class Workspace(NamedTuple):
    """Where the numbers belong, and memory to find out."""

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

    @property
    def most(self) -> int:
        """Coordinates of the largest support."""
        return self.columns.shape[1]


def workspace(n_workers: int, rows: Sparse, batch: int) -> Workspace:
    """Return a workspace for batches of `rows`, the largest of which is as many longest rows."""
    n_entries = int(rows.lengths.max(initial=0)) * batch
    most = min(n_entries, rows.features)
    return Workspace(
        batch=np.zeros((n_workers, batch), dtype=np.uint32),
        columns=np.empty((n_workers, most), dtype=np.uint32),
        n_columns=np.zeros(n_workers, dtype=np.int64),
        place=np.empty(n_entries, dtype=np.uint32),
        position=np.zeros(rows.features, dtype=np.uint32),
        touched=np.empty(rows.features, dtype=np.uint32),
        is_touched=np.zeros(rows.features, dtype=np.bool_),
    )


@compiled
def find_support(data, batch, columns, place, position):
    """Write the columns that `batch` touches, and the places of non-zeros; return their number."""
    n_columns = n_places = 0
    for i in range(batch.size):
        row = np.uint64(batch[i])
        for entry in range(data.starts[row], data.starts[row + np.uint64(1)]):
            column = data.columns[entry]
            at = position[column]
            # What another batch left in `position` is either outside of this support or names
            # another column. So it is never cleared, which would cost the whole dimension.
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


def message_source(names: Names) -> str:
    """Return the loops that take a worker from its pull to its message, on a support.

    A single sample is its own support, and its margin and its gradient need no loop of their own.
    """
    read = received(names, "R.{}[p]")
    point = f"""
        {stores(names.reads, "R.{0}[p] = S.{0}[support[p]]")}
        out[p] = position(h, {read}, at)"""
    message = f"""
        w, m = send(h, step(h, {read}, g, at), sent)
        {stores(names.message, "B.{0}[worker, p] = m.{0}")}"""
    return f"""
def point_support(h, S, support, at, R, out):
    for p in range(support.size):{point}

def message_support(h, R, at, sent, gradient, B, worker):
    for p in range(gradient.size):
        g = gradient[p]{message}

def margin_single(h, S, support, at, R, out, row):
    margin = 0.0
    for p in range(support.size):{point}
        margin += row[p] * out[p]
    return margin

def message_single(h, R, at, sent, support, row, slope, shrink, x, B, worker):
    for p in range(support.size):
        g = slope * row[p]
        if shrink.size > 0:
            g += shrink[support[p]] * x[p]
        g = 0.0 + g  # as in a sum over samples, where -0.0 becomes 0.0{message}
"""


def support_source(names: Names) -> str:
    """Return the loops that bring messages to the server; what no support has is never touched."""
    return f"""
def apply_support(h, S, support, B, worker, at):
    for p in range(support.size):
        i = support[p]
        {applied(names, "B.{}[worker, p]")}

def add_support(support, B, worker, M, is_touched, touched, n_touched):
    for p in range(support.size):
        i = support[p]
        if is_touched[i]:
            {stores(names.message, "M.{0}[i] += B.{0}[worker, p]")}
        else:
            {stores(names.message, "M.{0}[i] = B.{0}[worker, p]")}
            is_touched[i] = True
            touched[n_touched] = i
            n_touched += 1
    return n_touched

def apply_touched(h, S, touched, M, is_touched, members, at):
    for p in range(touched.size):
        i = touched[p]
        is_touched[i] = False
        {applied(names, "M.{}[i] / members")}
"""


@functools.cache
def batch_message(rules: RuleSet) -> Loop:
    """Return what evaluates the message of a batch, and returns the size of its support."""
    point, message, _, _ = loops(rules, message_source).values()

    def evaluate(own, server, support, batch, columns, space, at, sent, worker):
        n = find_support(support.rows, batch, columns, space.place, space.position)
        x, g = own.point[:n], own.gradient[:n]
        point(own.h, server, columns[:n], at, own.read, x)
        support_gradient(support, batch, space.place, x, g)
        message(own.h, own.read, at, sent, g, own.messages, worker)
        return n

    return specialised(evaluate)


@functools.cache
def _collecting(rules: RuleSet) -> Loop:
    """Return what adds a message to an open round, and applies the round when it closes."""
    _, add, apply_touched = loops(rules, support_source).values()

    def collect(numbers, space, here, row, plan, n_touched):
        h, total, touched, is_touched = numbers.h, numbers.round, space.touched, space.is_touched
        n_touched = add(here, numbers.messages, row.worker, total, is_touched, touched, n_touched)
        if row.members == 0:
            return n_touched
        at = applying(row, plan)
        apply_touched(h, numbers.server, touched[:n_touched], total, is_touched, row.members, at)
        return 0

    return specialised(collect)


@functools.cache
def sparse_kernel(rules: RuleSet) -> Loop:
    """Return the kernel for workers that remember nothing but what they have read."""
    _, _, margin_single, message_single = loops(rules, message_source).values()
    apply = loops(rules, support_source)["apply_support"]
    evaluate, collect = batch_message(rules), _collecting(rules)

    def serve(numbers, plan, support, space, sampling, start, stop):
        h, S, R, x, _, B, _ = numbers  # rule 5
        data, labels, shrink, slope = support
        values, all_columns, starts = data.values, data.columns, data.starts
        batches, columns, n_columns = space.batch, space.columns, space.n_columns
        n_touched = 0  # rule 3
        for r in range(start, stop):
            row = plan.rows[r]
            worker, own = row.worker, columns[row.worker]
            if row.verb == PULL:
                batch, at, sent = batches[worker], receiving(row, plan), sending_next(row, plan)
                draw_batch(sampling, worker, row.step, batch)
                if batch.size > 1:
                    n_columns[worker] = evaluate(numbers, S, support, batch, own, space, at, sent, worker)
                    continue
                sample = np.uint64(batch[0])
                first, end = starts[sample], starts[sample + np.uint64(1)]
                entries, here = values[first:end], own[: end - first]
                for p in range(here.size):  # assigning a slice would take longer
                    here[p] = all_columns[first + np.uint64(p)]
                change = slope(margin_single(h, S, here, at, R, x, entries), labels[sample])
                message_single(h, R, at, sent, here, entries, change, shrink, x, B, worker)
                n_columns[worker] = here.size
            elif row.members == 1 and row.first:
                apply(h, S, own[: n_columns[worker]], B, worker, applying(row, plan))
            elif row.verb == PUSH:  # a dropped push leaves nothing behind (rule 2)
                here = own[: n_columns[worker]]
                n_touched = collect(numbers, space, here, row, plan, n_touched)

    return specialised(serve)
