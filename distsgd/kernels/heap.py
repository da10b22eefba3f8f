"""A heap of workers by the time of their next message: at most one entry per worker.

Ordered by (time, worker), so that workers at the same instant are served in worker order, whatever
the heap did before. Four children per entry: half the levels of a binary heap, and the children are
neighbours in memory.
"""

from typing import NamedTuple

import numpy as np

from distsgd.kernels import compiled


class Heap(NamedTuple):
    """The entries [0, size[0]) of `times` and `workers`; entry i is not behind 4 i + 1 ... 4 i + 4."""

    times: np.ndarray
    workers: np.ndarray
    size: np.ndarray


@compiled
def push(heap: Heap, time: float, worker: int) -> None:
    """Add an entry."""
    times, workers = heap.times, heap.workers
    place = heap.size[0]
    heap.size[0] += 1
    while place > 0:
        parent = (place - 1) >> 2
        if times[parent] < time or (times[parent] == time and workers[parent] < worker):
            break
        times[place], workers[place] = times[parent], workers[parent]
        place = parent
    times[place], workers[place] = time, worker


@compiled
def pop(heap: Heap) -> None:
    """Remove the first entry."""
    heap.size[0] -= 1
    last = heap.size[0]
    if last > 0:
        replace(heap, heap.times[last], heap.workers[last])


@compiled
def replace(heap: Heap, time: float, worker: int) -> None:
    """Replace the first entry by another: one walk down, where removing and adding would take two."""
    times, workers, size = heap.times, heap.workers, heap.size[0]
    place = 0
    while True:
        child = 4 * place + 1
        if child >= size:
            break
        least = child
        for other in range(child + 1, min(child + 4, size)):
            if times[other] < times[least] or (
                times[other] == times[least] and workers[other] < workers[least]
            ):
                least = other
        if time < times[least] or (time == times[least] and worker < workers[least]):
            break
        times[place], workers[place] = times[least], workers[least]
        place = least
    times[place], workers[place] = time, worker
