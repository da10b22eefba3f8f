r"""Hogwild!'s statistics of sparse data: how much the updates of two samples overlap.

References
----------
Niu, Recht, Re and Wright, "Hogwild!: A Lock-Free Approach to Parallelizing Stochastic Gradient
Descent", NIPS 2011, equation (2.6).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.sparse import Floats, Integers, Sparse

_WORK = 2e8
"""Occurrences that the search for rho looks at before it gives up being exact: about a second."""


class Statistics(NamedTuple):
    r"""Omega, Delta and rho of rows e, each the set of its columns.

    .. math::
        \Omega = \max_e |e|, \quad
        \Delta = \max_v |\{e : v \in e\}| / |E|, \quad
        \rho = \max_e |\{e' : e' \cap e \ne \emptyset\}| / |E|.
    """

    omega: int
    """Non-zeros of the longest row."""
    delta: float
    """Share of the rows that the most popular column is in."""
    rho: float
    """Share of the rows that the row with the most neighbours overlaps."""
    is_exact: bool
    """Whether `rho` is the maximum over all rows, otherwise it is a lower bound."""
    rows_searched: int
    """Rows over which the maximum `rho` was taken, those that could have the most neighbours."""


def statistics(x: Floats | Sparse) -> Statistics:
    """Return Hogwild!'s statistics of rows; those of a dense table touch every column."""
    if not isinstance(x, Sparse):
        return Statistics(x.shape[1], 1.0, 1.0, is_exact=True, rows_searched=1)
    n = x.shape[0]
    neighbours, searched, is_exact = _most_neighbours(x)
    return Statistics(int(x.lengths.max()), float(x.counts.max() / n), neighbours / n, is_exact, searched)


def _most_neighbours(x: Sparse) -> tuple[int, int, bool]:
    """Search rows by falling bound min(n, sum of d_u), until no bound beats the best found."""
    n, counts = x.shape[0], x.counts
    occurrences = np.concatenate([[0], np.cumsum(counts[x.columns])])
    starts = x.starts.astype(np.int64)
    work = occurrences[starts[1:]] - occurrences[starts[:-1]]
    bound = np.minimum(work, n)
    # among equal bounds the row with the most occurrences is the most promising one
    order = np.lexsort((-work, -bound))
    owners = np.repeat(np.arange(n), x.lengths)[np.argsort(x.columns, kind="stable")]  # the rows of each column
    first = np.concatenate([[0], np.cumsum(counts)])
    most, budget = 0, _WORK
    for searched, row in enumerate(order):
        if bound[row] <= most or budget < 0:
            return most, searched, bool(bound[row] <= most)
        most = max(most, _neighbours(x.columns[starts[row] : starts[row + 1]], owners, first, n))
        budget -= work[row] + n
    return most, n, True


def _neighbours(columns: NDArray[np.uint32], owners: Integers, first: Integers, n: int) -> int:
    touched = np.zeros(n, dtype=bool)
    for column in columns:
        touched[owners[first[column] : first[column + 1]]] = True
    return int(np.count_nonzero(touched))
