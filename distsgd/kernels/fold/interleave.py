"""Accesses to single coordinates, merged by virtual time in compiled code.

Each core has one access ahead of it, and a heap says whose comes first. A step reads the
coordinates of its support one by one; with the last of them its message is known; then it loads and
stores them one by one. What others store between the first and the last read is seen in part, and
what they store between a load and its store is lost.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.algorithm import At
from distsgd.kernels import compiled, specialised
from distsgd.kernels.draws.stream import Sampling, draw_batch
from distsgd.kernels.fold.dense import Order, applying, receiving
from distsgd.kernels.fold.rules import Halves, Loop, loops
from distsgd.kernels.fold.sparse import Room, find_support, support_gradient
from distsgd.kernels.order.heap import pop, push, replace
from distsgd.sparse import Sparse


class Memory(NamedTuple):
    """The numbers that cores share, and those that they hold."""

    h: Any
    server: Any
    """float64[d] per column."""
    loaded: Any
    """The coordinate that a core is about to change: float64[workers] per column."""
    read: Any
    """What it has read of its support: float64[workers, most] per column."""
    messages: Any
    """float64[workers, most] per column."""
    point: NDArray[np.float64]
    """float64[most]"""
    gradient: NDArray[np.float64]
    """float64[most]"""


class Steps(NamedTuple):
    """The steps of all workers, worker after worker and in time, m of them."""

    pull: NDArray[np.int64]
    """Row of the plan that begins a step."""
    push: NDArray[np.int64]
    """Row of the plan that ends it."""
    start: NDArray[np.float64]
    """When it begins to read [s]."""
    end: NDArray[np.float64]
    """When it has written [s]."""
    first: NDArray[np.int64]
    """First step of each worker, int64[workers + 1]."""


class Progress(NamedTuple):
    """Where the cores have come to."""

    step: NDArray[np.int64]
    """Step of each core, int64[workers]."""
    access: NDArray[np.int64]
    """Its next access in that step, int64[workers]."""
    kept: NDArray[np.int64]
    """Updates in the value of each coordinate, int64[d]."""
    kept_at_load: NDArray[np.int64]
    """The same for what each core has loaded, int64[workers]."""
    heap: NDArray[np.void]
    size: NDArray[np.int64]
    """Cores with an access ahead of them, int64[1]."""
    n_stores: NDArray[np.int64]
    """int64[1]"""


def progress(n_workers: int, dimension: int, heap: NDArray[np.void]) -> Progress:
    """Return cores that have not begun, and will find their first steps in the heap."""
    cores = [np.zeros(n_workers, dtype=np.int64) for _ in range(3)]
    numbers = [np.zeros(1, dtype=np.int64) for _ in range(2)]
    return Progress(
        step=cores[0],
        access=cores[1],
        kept=np.zeros(dimension, dtype=np.int64),
        kept_at_load=cores[2],
        heap=heap,
        size=numbers[0],
        n_stores=numbers[1],
    )


@compiled
def access_time(start: float, end: float, n: int, access: int, is_atomic: bool) -> float:
    """Return when a step that touches n coordinates has its access number `access` [s].

    The n reads stand in the middle of n equal slots of the first half of the step, the n changes in
    those of the second half; a change that is not atomic loads after a quarter of its slot, and
    stores after three quarters.
    """
    slot = (end - start) / (2 * n)
    if access < n:
        return start + (access + 0.5) * slot
    change = access - n
    if is_atomic:
        return min(start + (access + 0.5) * slot, end)
    return min(start + (n + change // 2 + 0.25 + 0.5 * (change % 2)) * slot, end)


@compiled
def begin(worker, order, steps, data, room, sampling, progress):
    """Draw the batch of the core's next step that touches something; say if there is one."""
    while progress.step[worker] < steps.first[worker + 1]:
        row, batch = order.rows[steps.pull[progress.step[worker]]], room.batch[worker]
        draw_batch(sampling, worker, row.step, batch)
        columns = room.columns[worker]
        n = find_support(data, batch, columns, room.place, room.position)
        room.n_columns[worker], progress.access[worker] = n, 0
        if n > 0:
            return True
        progress.step[worker] += 1
    return False


@compiled
def next_time(worker, steps, room, progress, is_atomic):
    """Return when the core has its next access [s]."""
    step = progress.step[worker]
    n, access = room.n_columns[worker], progress.access[worker]
    return access_time(steps.start[step], steps.end[step], n, access, is_atomic)


@compiled
def start(
    order: Order, steps: Steps, data: Sparse, room: Room, sampling: Sampling, progress: Progress, is_atomic: bool
) -> None:
    """Put the first access of every core into the heap."""
    for worker in range(order.workers):
        progress.step[worker] = steps.first[worker]
        if begin(worker, order, steps, data, room, sampling, progress):
            time = next_time(worker, steps, room, progress, is_atomic)
            push(progress.heap, progress.size[0], time, worker)
            progress.size[0] += 1


def _computing(loop: dict[str, Loop]) -> Loop:
    point, message = loop["point_read"], loop["message_read"]

    def compute(worker, memory, order, steps, support, room, progress):
        row = order.rows[steps.pull[progress.step[worker]]]
        at = receiving(row, order)
        sent = At(at.version, 0, at.workers, at.step + 1, order.factors[at.step + 1])
        batch, columns = room.batch[worker], room.columns[worker]
        n = find_support(support.rows, batch, columns, room.place, room.position)
        x, g = memory.point[:n], memory.gradient[:n]
        point(memory.h, memory.read, worker, at, x)
        support_gradient(support, batch, room.place, x, g)
        message(memory.h, memory.read, worker, at, sent, g, memory.messages)

    return specialised(compute)


@functools.cache
def interleaved(halves: Halves) -> Loop:
    """Return the kernel that carries out, after `start`, all accesses up to a time."""
    loop = loops(halves).by_name
    read_one, load_one, store_one = loop["read_one"], loop["load_one"], loop["store_one"]
    compute = _computing(loop)

    def run(memory, order, steps, support, room, sampling, progress, is_atomic, until):
        h, S, L, R, B, _, _ = memory
        step, access, kept, kept_at_load, heap, size, n_stores = progress
        columns, n_columns = room.columns, room.n_columns
        while size[0] > 0 and heap[0].time <= until:
            worker = heap[0].worker
            n, number = n_columns[worker], access[worker]
            access[worker] += 1
            is_over = False
            if number < n:
                read_one(S, columns[worker, number], R, worker, number)
                if number == n - 1:
                    compute(worker, memory, order, steps, support, room, progress)
            else:
                change = number - n
                p = change if is_atomic else change // 2
                i = columns[worker, p]
                if is_atomic or change % 2 == 0:
                    load_one(S, i, L, worker)
                    kept_at_load[worker] = kept[i]
                if is_atomic or change % 2 == 1:
                    at = applying(order.rows[steps.push[step[worker]]], order)
                    store_one(h, S, i, L, B, worker, p, at)
                    kept[i] = kept_at_load[worker] + 1
                    n_stores[0] += 1
                    is_over = p == n - 1
            if is_over:
                step[worker] += 1
                if not begin(worker, order, steps, support.rows, room, sampling, progress):
                    pop(heap, size[0])
                    size[0] -= 1
                    continue
            time = next_time(worker, steps, room, progress, is_atomic)
            replace(heap, size[0], time, worker)

    return specialised(run)
