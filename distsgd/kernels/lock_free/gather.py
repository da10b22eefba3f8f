"""Steps of workers that gather their changes of popular coordinates, and exchange them rarely.

A coordinate that is in nearly every sample is in the caches of all processors at once, and each
change takes it away from the others. So a worker has a copy of the popular coordinates, which stand
in front of all others, and reads and changes only that. Now and then it exchanges:

1. shared += copy - base, where the base is what it had taken last. Every column is merged so: by
   difference, which is exact for sums, and keeps what others have added meanwhile.
2. copy = base = shared. With another base the same change would be added again.
3. All other coordinates are read and changed where they are, as racy writes do.
4. What a worker has done is told behind an exchange only: before it no other worker sees the
   steps, and they would be lost with the process.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.kernels import compiled, specialised
from distsgd.kernels.atomic import stored
from distsgd.kernels.fold.rules import Loop, Names, RuleSet, loops, stores
from distsgd.kernels.lock_free.steps import AHEAD, known, prefetch_row, rows_source, stretch
from distsgd.sparse import Sparse


class Gathered(NamedTuple):
    """What one worker has for itself."""

    h: Any
    copy: Any
    """The popular coordinates as it sees them: float64[popular] per column."""
    base: Any
    """What it has taken from the shared memory last: float64[popular] per column."""
    others: NDArray[np.uint64]
    """The first non-zero of each row whose coordinate is not popular, uint64[n]."""
    period: int
    """Steps between two exchanges."""


@compiled
def put_popular_first(rows, is_popular, place, out, others):
    """Copy `rows` into `out`, with the columns called by their `place` and the popular in front.

    `others` is told where the rest of each row begins.
    """
    for row in range(others.size):
        here = rows.starts[row]
        for wanted in (True, False):
            for entry in range(rows.starts[row], rows.starts[row + 1]):
                column = rows.columns[entry]
                if is_popular[column] == wanted:
                    out.values[here], out.columns[here] = rows.values[entry], place[column]
                    here += np.uint64(1)
            if wanted:
                others[row] = here


def arranged(
    rows: Sparse, is_popular: NDArray[np.bool_], place: NDArray[np.uint32]
) -> tuple[Sparse, NDArray[np.uint64]]:
    """Return `rows` with their columns at other places, and where the popular ones of each end."""
    out = rows._replace(values=np.empty(rows.values.size), columns=np.empty(rows.columns.size, np.uint32))
    others = np.empty(rows.shape[0], np.uint64)
    put_popular_first(rows, is_popular, place, out, others)
    return out, others


def exchange_source(names: Names) -> str:
    """Return the loops that exchange a worker's copy C, taken as B, with what others see, S."""
    return f"""
def take_popular(S, C, B):
    for i in range(C.x.size):
        {stores(names.state, "C.{0}[i] = B.{0}[i] = S.{0}[i]")}

def exchange_popular(S, C, B):
    for i in range(C.x.size):
        {stores(names.state, "S.{0}[i] = C.{0}[i] = B.{0}[i] = S.{0}[i] + (C.{0}[i] - B.{0}[i])")}
"""


@functools.cache
def gathered_kernel(rules: RuleSet) -> Loop:
    """Return the kernel that takes some steps of a worker, each on one sample."""
    loop = loops(rules, rows_source)
    margin_row, change_row = loop["margin_row"], loop["change_row_racy"]
    take, exchange = loops(rules, exchange_source).values()

    def steps(memory, own, support, order, chunk, start, stop):
        S, locks, _turn, counts = memory
        h, copy, base, others, period = own
        data, labels, shrink, slope = support
        entries, columns, starts = data.values, data.columns, data.starts
        taken = start
        take(S, copy, base)  # the copy may be another process's, or of the epoch before
        while taken < stop:
            until = min(taken + period, stop)
            while taken < until:
                place = np.uint64(chunk.first + taken)
                sample, count = stretch(order, place, np.uint64(until - taken))
                for _ in range(count):
                    first, end = starts[sample], starts[sample + np.uint64(1)]
                    middle = others[sample]
                    at, sent, applied = known(chunk, taken)
                    prefetch_row(entries, columns, first + AHEAD, end + AHEAD)
                    margin = margin_row(h, copy, columns, entries, first, middle, at)
                    margin += margin_row(h, S, columns, entries, middle, end, at)
                    change = slope(margin, labels[sample])
                    change_row(h, copy, columns, entries, first, middle, change, shrink, at, sent, applied, locks, 0)
                    change_row(h, S, columns, entries, middle, end, change, shrink, at, sent, applied, locks, 0)
                    sample += np.uint64(1)
                    taken += 1
            exchange(S, copy, base)
            stored(counts, chunk.worker, taken)  # rule 4

    return specialised(steps)
