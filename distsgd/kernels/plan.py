"""Passes over the rows of a trace: which steps a row needs, which rows look ahead together."""

import numpy as np
import numpy.typing as npt

from distsgd.kernels import compiled

Integers = npt.NDArray[np.int64]


@compiled
def link(
    worker: npt.NDArray[np.int32], step: Integers, pulled: Integers, n_workers: int
) -> tuple[Integers, Integers, Integers]:
    """Return each row's previous row of the same worker, the steps between, and what it had read.

    `pulled` is the version that a row pulls, or -1. A worker without a previous row has -1 there,
    and has read version 0, from which everybody starts.
    """
    last = np.full(n_workers, -1, dtype=np.int64)
    held = np.zeros(n_workers, dtype=np.int64)
    previous = np.empty(worker.size, dtype=np.int64)
    steps = np.empty(worker.size, dtype=np.int64)
    read = np.empty(worker.size, dtype=np.int64)
    for row in range(worker.size):
        before = last[worker[row]]
        previous[row] = before
        steps[row] = step[row] - step[before] if before >= 0 else step[row]
        read[row] = held[worker[row]]
        last[worker[row]] = row
        if pulled[row] >= 0:
            held[worker[row]] = pulled[row]
    return previous, steps, read


@compiled
def waves(previous: Integers, steps: Integers, most: int) -> Integers:
    """Return the first row of each wave, and the number of rows.

    A wave is as many rows in a row as possible whose steps start from what is fixed before the wave
    begins: no row that needs steps has its worker's previous row inside. At most `most` rows of a
    wave need steps.
    """
    starts = np.empty(previous.size + 1, dtype=np.int64)
    n_waves, start, n_stepping = 0, -1, 0
    for row in range(previous.size):
        if start < 0 or (steps[row] > 0 and (previous[row] >= start or n_stepping == most)):
            starts[n_waves] = start = row
            n_waves += 1
            n_stepping = 0
        if steps[row] > 0:
            n_stepping += 1
    starts[n_waves] = previous.size
    return starts[: n_waves + 1]


@compiled
def number_within(waves: Integers, counts: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Return for each row that counts how many before it in its wave do, and -1 for the others."""
    numbers = np.full(counts.size, -1, dtype=np.int32)
    for wave in range(waves.size - 1):
        n_counted = 0
        for row in range(waves[wave], waves[wave + 1]):
            if counts[row]:
                numbers[row] = n_counted
                n_counted += 1
    return numbers


@compiled
def share_versions(
    worker: npt.NDArray[np.int32], pulled: Integers, n_workers: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], int]:
    """Return the slot that holds each row's version, whether the row fills it, and their number.

    Workers that pull one version share a slot. A slot is free again when the last of them has
    pushed and a newer version has been pulled, so that there are no more slots than live versions.
    """
    slots = np.empty(worker.size, dtype=np.int32)
    fills = np.zeros(worker.size, dtype=np.bool_)
    held = np.full(n_workers, -1, dtype=np.int32)
    users = np.zeros(n_workers + 2, dtype=np.int32)
    free = np.arange(n_workers + 1, -1, -1).astype(np.int32)
    n_free, n_slots, newest, newest_version = free.size, 0, -1, -1
    for row in range(worker.size):
        if pulled[row] >= 0:
            if pulled[row] != newest_version:
                if newest >= 0:  # the newest version counts as a user, since others may pull it
                    users[newest] -= 1
                    if users[newest] == 0:
                        free[n_free] = newest
                        n_free += 1
                n_free -= 1
                newest, newest_version = free[n_free], pulled[row]
                users[newest] = 1
                fills[row] = True
                n_slots = max(n_slots, newest + 1)
            users[newest] += 1
            held[worker[row]] = slots[row] = newest
        else:
            slot = held[worker[row]]
            slots[row] = slot
            users[slot] -= 1
            if users[slot] == 0:
                free[n_free] = slot
                n_free += 1
    return slots, fills, n_slots
