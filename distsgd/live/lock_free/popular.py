"""Which coordinates are popular, and shared memory with those in front.

Gathered writes (`distsgd.kernels.lock_free.gather`) pay where coordinates are in many samples:
their cache lines would otherwise wander between the processors in every step.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.kernels.lock_free.gather import arranged
from distsgd.sparse import Support

UNSEEN = 64
"""Steps of all others, about, that a worker does not see yet at a popular coordinate: staleness
beyond that of racy writes. The loss after one epoch of `scripts/bench_hogwild.py`, 0.474, is 0.0003
higher for it, with two workers and with eight; four times as many make that 0.0013."""
PER_LINE = 8
"""Coordinates in a cache line."""


class Layout(NamedTuple):
    """Where the coordinates stand in shared memory, and rows that name them by their places."""

    support: Support
    place: NDArray[np.uint32]
    """Place of each coordinate, uint32[d]."""
    n_popular: int
    """Coordinates in front that are popular."""
    others: NDArray[np.uint64]
    """The first non-zero of each row whose coordinate is not popular, uint64[n]."""


def period_of(workers: int) -> int:
    """Return the steps between two exchanges of a worker."""
    return max(1, UNSEEN // (workers - 1))


def popular_first(support: Support, period: int) -> Layout:
    """Return a layout of `support` for workers that exchange every `period` steps.

    A coordinate is popular if a worker can expect to touch its line once between two exchanges:
    then to exchange the line costs no more than to share it.
    """
    rows = support.rows
    is_popular = rows.counts * PER_LINE * period >= rows.shape[0]
    in_order = np.argsort(~is_popular, kind="stable")
    place = np.empty(in_order.size, np.uint32)
    place[in_order] = np.arange(in_order.size, dtype=np.uint32)
    moved, others = arranged(rows, is_popular, place)
    shrink = support.shrink[in_order] if support.shrink.size else support.shrink
    return Layout(support._replace(rows=moved, shrink=shrink), place, int(is_popular.sum()), others)
