"""Accesses to single coordinates, merged by virtual time in compiled code.

1. Each core has one access ahead of it, and a heap says whose comes first.
2. A step reads the coordinates of its support one by one; with the last of them its message is
   known; then it loads and stores them one by one. What others store between the first and the last
   read is seen in part.
3. What others store between a load and its store is lost. So a coordinate's value carries a count
   of the updates in it: the count at the load, and one.
4. A step that touches nothing has no access, and would never leave the heap: it is passed over.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.kernels import compiled, specialised
from distsgd.kernels.draws.stream import Sampling, draw_batch
from distsgd.kernels.fold.dense import applying, receiving, sending_next
from distsgd.kernels.fold.plan import Plan
from distsgd.kernels.fold.rules import Loop, Names, RuleSet, applied, loops, received, stores
from distsgd.kernels.fold.sparse import Workspace, find_support, support_gradient
from distsgd.kernels.order.heap import pop, push, replace
from distsgd.sparse import Sparse


class InterleavedMemory(NamedTuple):
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


class WorkerProgress(NamedTuple):
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


def progress(n_workers: int, dimension: int, heap: NDArray[np.void]) -> WorkerProgress:
    """Return cores that have not begun, and will find their first steps in the heap."""
    cores = [np.zeros(n_workers, dtype=np.int64) for _ in range(3)]
    numbers = [np.zeros(1, dtype=np.int64) for _ in range(2)]
    return WorkerProgress(
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
def begin(worker, plan, steps, data, space, sampling, progress):
    """Draw the batch of the core's next step that touches something; say if there is one."""
    while progress.step[worker] < steps.first[worker + 1]:
        row, batch = plan.rows[steps.pull[progress.step[worker]]], space.batch[worker]
        draw_batch(sampling, worker, row.step, batch)
        columns = space.columns[worker]
        n = find_support(data, batch, columns, space.place, space.position)
        space.n_columns[worker], progress.access[worker] = n, 0
        if n > 0:  # rule 4
            return True
        progress.step[worker] += 1
    return False


@compiled
def next_time(worker, steps, space, progress, is_atomic):
    """Return when the core has its next access [s]."""
    step = progress.step[worker]
    n, access = space.n_columns[worker], progress.access[worker]
    return access_time(steps.start[step], steps.end[step], n, access, is_atomic)


@compiled
def start(
    plan: Plan,
    steps: Steps,
    data: Sparse,
    space: Workspace,
    sampling: Sampling,
    progress: WorkerProgress,
    is_atomic: bool,
) -> None:
    """Put the first access of every core into the heap."""
    for worker in range(plan.workers):
        progress.step[worker] = steps.first[worker]
        if begin(worker, plan, steps, data, space, sampling, progress):
            time = next_time(worker, steps, space, progress, is_atomic)
            push(progress.heap, progress.size[0], time, worker)
            progress.size[0] += 1


def accesses_source(names: Names) -> str:
    """Return the accesses to single coordinates, between which others have theirs."""
    read = received(names, "R.{}[worker, p]")
    return f"""
def read_one(S, i, R, worker, p):
    {stores(names.reads, "R.{0}[worker, p] = S.{0}[i]")}

def load_one(S, i, L, worker):
    {stores(names.state, "L.{0}[worker] = S.{0}[i]")}

def store_one(h, S, i, L, B, worker, p, at):
    {applied(names, "B.{}[worker, p]", "L.{}[worker]")}

def point_read(h, R, worker, at, out):
    for p in range(out.size):
        out[p] = position(h, {read}, at)

def message_read(h, R, worker, at, sent, g, B):
    for p in range(g.size):
        w, m = send(h, step(h, {read}, g[p], at), sent)
        {stores(names.message, "B.{0}[worker, p] = m.{0}")}
"""


@functools.cache
def _computing(rules: RuleSet) -> Loop:
    """Return what computes the message of a core that has read all of its support."""
    _, _, _, point, message = loops(rules, accesses_source).values()

    def compute(worker, memory, plan, steps, support, space, progress):
        row = plan.rows[steps.pull[progress.step[worker]]]
        at, sent = receiving(row, plan), sending_next(row, plan)
        batch, columns = space.batch[worker], space.columns[worker]
        # Other cores have found their supports since this step began, in the same `place`.
        n = find_support(support.rows, batch, columns, space.place, space.position)
        x, g = memory.point[:n], memory.gradient[:n]
        point(memory.h, memory.read, worker, at, x)
        support_gradient(support, batch, space.place, x, g)
        message(memory.h, memory.read, worker, at, sent, g, memory.messages)

    return specialised(compute)


@functools.cache
def _changing(rules: RuleSet) -> Loop:
    """Return what loads or stores a coordinate, or both at once, and says if the step is over."""
    _, load_one, store_one, _, _ = loops(rules, accesses_source).values()

    def change(worker, number, memory, plan, steps, space, progress, is_atomic):
        p = number if is_atomic else number // 2
        i = space.columns[worker, p]
        if is_atomic or number % 2 == 0:
            load_one(memory.server, i, memory.loaded, worker)
            progress.kept_at_load[worker] = progress.kept[i]
        if is_atomic or number % 2 == 1:
            at = applying(plan.rows[steps.push[progress.step[worker]]], plan)
            store_one(memory.h, memory.server, i, memory.loaded, memory.messages, worker, p, at)
            progress.kept[i] = progress.kept_at_load[worker] + 1  # rule 3
            progress.n_stores[0] += 1
            return p == space.n_columns[worker] - 1
        return False

    return specialised(change)


@functools.cache
def interleaved_kernel(rules: RuleSet) -> Loop:
    """Return the kernel that takes the accesses of all cores up to a time, in their order."""
    read_one, _, _, _, _ = loops(rules, accesses_source).values()
    compute, change = _computing(rules), _changing(rules)

    def run(memory, plan, steps, support, space, sampling, progress, is_atomic, until):
        step, access, heap, size = progress.step, progress.access, progress.heap, progress.size
        columns, n_columns = space.columns, space.n_columns
        while size[0] > 0 and heap[0].time <= until:
            worker = heap[0].worker
            n, number = n_columns[worker], access[worker]
            access[worker] += 1
            is_over = False
            if number < n:
                read_one(memory.server, columns[worker, number], memory.read, worker, number)
                if number == n - 1:  # rule 2
                    compute(worker, memory, plan, steps, support, space, progress)
            else:
                is_over = change(worker, number - n, memory, plan, steps, space, progress, is_atomic)
            if is_over:
                step[worker] += 1
                if not begin(worker, plan, steps, support.rows, space, sampling, progress):
                    pop(heap, size[0])
                    size[0] -= 1
                    continue
            time = next_time(worker, steps, space, progress, is_atomic)
            replace(heap, size[0], time, worker)

    return specialised(run)
