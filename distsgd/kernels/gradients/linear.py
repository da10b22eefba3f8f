"""Gradients of linear models on sparse rows, one row at a time.

A loop that keeps whole vectors and a loop that keeps the support of a few rows call the same
functions, in the same order of operations, so that they have the same bits: `place` says where the
coordinate of each non-zero is kept, which for a whole vector is its column.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from distsgd.kernels import compiled, specialised
from distsgd.kernels.draws.random import Integer
from distsgd.sparse import Sparse, Support


@cache
def compiled_slope(slope: Callable[[float, float], float]) -> Callable[[float, float], float]:
    """Compile a scalar slope once per process, so that a kernel that takes it is compiled once."""
    return specialised(slope)


def compiled_support(support: Support) -> Support:
    """Return `support` with a slope that kernels call."""
    return support._replace(slope=compiled_slope(support.slope))


@compiled
def row_margin(values: NDArray[np.float64], place: NDArray[np.uint32], point: NDArray[np.float64]) -> float:
    """Return the inner product of one row's `values`, float64[k], and the kept coordinates."""
    margin = 0.0
    for k in range(values.size):
        margin += values[k] * point[place[k]]
    return margin


@specialised
def add_row_gradient(
    support: Support, row: Integer, place: NDArray[np.uint32], point: NDArray[np.float64], out: NDArray[np.float64]
) -> None:
    """Add one sample's gradient to the kept coordinates of `out`, which are laid out like `point`.

    The slope of `support` is a compiled one. `place` has one entry per non-zero of the row.
    """
    here = slice(support.rows.starts[row], support.rows.starts[row + 1])
    values, columns = support.rows.values[here], support.rows.columns[here]
    change = support.slope(row_margin(values, place, point), support.labels[row])
    for k in range(values.size):
        at = place[k]
        gradient = change * values[k]
        if support.shrink.size > 0:
            gradient += support.shrink[columns[k]] * point[at]
        out[at] += gradient


@specialised
def batch_gradients(
    support: Support, points: NDArray[np.float64], batches: NDArray[np.uint32], out: NDArray[np.float64]
) -> None:
    """Write the mean gradient of the batch j at the point j into the row j of `out`, float64[m, d].

    The sum over the batch comes first and the division last, for a batch of 1 too.
    """
    starts = support.rows.starts
    m, batch = batches.shape
    for j in range(m):
        out[j] = 0.0
        for i in range(batch):
            row = np.uint64(batches[j, i])
            columns = support.rows.columns[starts[row] : starts[row + np.uint64(1)]]
            add_row_gradient(support, row, columns, points[j], out[j])
        for u in range(out.shape[1]):
            out[j, u] /= batch


@compiled
def margins(rows: Sparse, point: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """Write the margin of every row at `point`, float64[d], into `out`, float64[n]."""
    for row in range(out.size):
        here = slice(rows.starts[row], rows.starts[row + 1])
        out[row] = row_margin(rows.values[here], rows.columns[here], point)
