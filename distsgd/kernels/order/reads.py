"""The order of gradients whose reads are given, with as few workers as hold them."""

import numpy as np

from distsgd.kernels import compiled
from distsgd.trace import PULL, PUSH


@compiled
def fill_reads(read: np.ndarray, rows: np.ndarray) -> int:
    """Write the pull and the push of every update u, read at version ``read[u]`` <= u.

    Update u is applied at time u + 1 [s]. A gradient goes to the worker that became free last, or
    to a new one. Return the number of workers.
    """
    n = read.size
    order = np.argsort(read, kind="mergesort")
    holder = np.empty(n, np.int64)
    free = np.empty(n, np.int64)
    step = np.zeros(n, np.int64)
    n_free, n_workers, n_pulled, n_rows = 0, 0, 0, 0
    for update in range(n):
        while n_pulled < n and read[order[n_pulled]] == update:
            if n_free == 0:
                free[0], n_free, n_workers = n_workers, 1, n_workers + 1
            n_free -= 1
            worker = free[n_free]
            holder[order[n_pulled]] = worker
            _write(rows[n_rows], float(update), worker, PULL, step[worker], update, update)
            n_pulled += 1
            n_rows += 1
        worker = holder[update]
        step[worker] += 1
        _write(rows[n_rows], update + 1.0, worker, PUSH, step[worker], update + 1, read[update])
        n_rows += 1
        free[n_free] = worker
        n_free += 1
    return n_workers


@compiled
def _write(row: np.record, time: float, worker: int, verb: int, step: int, version: int, read: int) -> None:
    row.time, row.sent, row.done = time, time, time
    row.worker, row.verb = worker, verb
    row.step, row.version, row.read = step, version, read
