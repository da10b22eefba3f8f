"""A heap of workers by the time of their next message.

1. A worker has at most one entry. The order is that of (time, worker), in which no two entries are
   equal: workers at the same instant leave in worker order, whatever the heap did before.
2. Entry i of the first `size` is not behind its children 4 i + 1 to 4 i + 4. Four of them make half
   the levels of a binary heap, and lie side by side in memory.
"""

from typing import Any

import numpy as np

from distsgd.kernels import compiled

ENTRY = np.dtype((np.record, [("time", "f8"), ("worker", "i8")]))


@compiled
def is_before(time: float, worker: int, entry: Any) -> bool:  # noqa: ANN401 # a record
    """Return whether (time, worker) comes before `entry`."""
    # rule 1: without the worker, ties would be broken by what the heap did before
    return time < entry.time or (time == entry.time and worker < entry.worker)


@compiled
def push(heap: np.ndarray, size: int, time: float, worker: int) -> None:
    """Add an entry to the first `size` ones."""
    place = size
    while place > 0:
        parent = (place - 1) >> 2  # rule 2
        if not is_before(time, worker, heap[parent]):
            break
        heap[place].time, heap[place].worker = heap[parent].time, heap[parent].worker
        place = parent
    heap[place].time, heap[place].worker = time, worker


@compiled
def pop(heap: np.ndarray, size: int) -> None:
    """Remove the first entry of `size` ones."""
    if size > 1:
        replace(heap, size - 1, heap[size - 1].time, heap[size - 1].worker)


@compiled
def replace(heap: np.ndarray, size: int, time: float, worker: int) -> None:
    """Replace the first entry by another: one walk down, where removing and adding take two."""
    place, child = 0, 1
    while child < size:
        least = child  # rule 2: the hole takes the least of up to four children, or the entry
        for other in range(child + 1, min(child + 4, size)):
            if is_before(heap[other].time, heap[other].worker, heap[least]):
                least = other
        if is_before(time, worker, heap[least]):
            break
        heap[place].time, heap[place].worker = heap[least].time, heap[least].worker
        place, child = least, 4 * least + 1
    heap[place].time, heap[place].worker = time, worker
