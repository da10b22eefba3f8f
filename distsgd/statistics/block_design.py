r"""Contrasts of a randomised block design, and how sure they are.

A table has a row per algorithm and a column per seed (the block), in logarithms:

.. math:: y_{as} = \mu_a + \beta_s + \epsilon_{as}

Everything works on many completed tables at once, ``float64[tables, cells]``.
"""

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

from distsgd.statistics.spreads import Numbers

Places = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

CONFIDENCE = 0.95
"""How often all intervals of a table hold at once."""

NODES = (1, 2, 3, 4, 5, 6, 8, 12, 20, 40, 120, 100_000)
"""Degrees of freedom between which critical values are interpolated."""

SHARED = 0.5
"""How much alike variances of pairs with one algorithm in common are taken to be, as a correlation.

For normal noise it is 0.25. A larger one finds unequal variances sooner and is a little cautious
otherwise: of nine equal algorithms with 3 seeds 3 % have a false order, with 0.25 4 %; with four
times the deviation in two of them 8 % instead of 9 %.
"""

SMALLEST = 0.01
"""A variance below this quantile of its law counts as the quantile: rounding makes it 0."""


@cache
def critical(n_rows: int, freedom: float) -> float:
    """Return how many standard errors the interval of a difference spans to each side.

    Of `n_rows` means every two are compared: Tukey's studentised range over the root of 2, which
    for two means is Student's t. Between `NODES` the logarithm is linear in 1 / `freedom`.

    References
    ----------
    Hochberg and Tamhane, "Multiple Comparison Procedures", 1987, chapter 3.
    """
    if freedom != int(freedom):
        few = max(node for node in NODES if node <= freedom)
        many = min(node for node in NODES if node > freedom)
        share = (1 / few - 1 / freedom) / (1 / few - 1 / many)
        return float(critical(n_rows, few) ** (1 - share) * critical(n_rows, many) ** share)
    if n_rows <= 2:
        return float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2))
    from scipy import stats  # noqa: PLC0415 # slow

    return float(stats.studentized_range.ppf(CONFIDENCE, n_rows, freedom)) / math.sqrt(2)


@dataclass(frozen=True)
class Layout:
    """Which cells a table has, `rows` and `columns` of each, and which contrasts are asked for.

    `contrasts` is ``float64[contrasts, rows of the table]``. Without blocks, columns do not count.
    """

    rows: Places
    columns: Places
    contrasts: Numbers
    has_blocks: bool = True

    @cached_property
    def design(self) -> Numbers:
        """Indicators of the rows, then of the columns, ``float64[cells, parameters]``."""
        n_rows, n_columns = self.contrasts.shape[1], self.columns.max(initial=-1) + 1
        rows = self.rows[:, None] == np.arange(n_rows)
        columns = self.columns[:, None] == np.arange(n_columns if self.has_blocks else 0)
        return np.hstack([rows, columns]).astype(float)

    @cached_property
    def inverse(self) -> Numbers:
        """Least squares: parameters from cells, ``float64[parameters, cells]``."""
        return np.asarray(np.linalg.pinv(self.design), dtype=np.float64)

    @cached_property
    def hat(self) -> Numbers:
        """Least squares: fitted cells from cells, ``float64[cells, cells]``."""
        return self.design @ self.inverse

    @cached_property
    def weights(self) -> Numbers:
        """Least squares: contrasts from cells, ``float64[contrasts, cells]``."""
        return self.contrasts @ self.inverse[: self.contrasts.shape[1]]

    @cached_property
    def is_estimable(self) -> Flags:
        """Whether the cells determine each contrast, ``bool[contrasts]``."""
        n_columns = self.design.shape[1] - self.contrasts.shape[1]
        asked = np.pad(self.contrasts, ((0, 0), (0, n_columns)))
        gaps = np.abs(self.weights @ self.design - asked).max(axis=1)
        return np.asarray(gaps < 1e-6, dtype=np.bool_)

    @cached_property
    def freedom(self) -> int:
        """Cells less the parameters that they determine."""
        return len(self.rows) - int(np.linalg.matrix_rank(self.design)) if len(self.rows) else 0

    def only(self, cells: Flags) -> "Layout":
        """Return the layout of some of the cells."""
        return Layout(self.rows[cells], self.columns[cells], self.contrasts, self.has_blocks)


class Estimate(NamedTuple):
    """Contrasts with their standard errors, ``float64[tables, contrasts]``, and their freedom."""

    centre: Numbers
    error: Numbers
    freedom: float


def estimate(layout: Layout, tables: Numbers) -> Estimate:
    """Return the contrasts of completed tables, by least squares.

    The variance of a contrast of two rows is the larger one of two: that pooled over the table, and
    that of their own differences, shrunk towards the typical one of all pairs by as much as the
    pairs differ less than chance alone would make them. So two noisy rows are not taken for quiet
    ones, and no table of equal rows claims more than Tukey's intervals do.

    Parameters
    ----------
    layout : Layout
        Of the cells; it has freedom.
    tables : float64[tables, cells]
        Values of the cells.

    Returns
    -------
    Estimate
        Its freedom is the median over the tables.

    References
    ----------
    Smyth, "Linear models and empirical Bayes methods for assessing differential expression in
    microarray experiments", 2004, section 6.2.
    """
    rest = tables - tables @ layout.hat
    pooled = (rest**2).sum(axis=1) / layout.freedom
    variance = np.repeat(pooled[:, None], len(layout.contrasts), axis=1)
    freedom = np.full(len(tables), float(layout.freedom))
    if layout.has_blocks and layout.contrasts.shape[1] > 2:
        _moderate(layout, tables, variance, freedom)
    error = np.sqrt(variance) * np.linalg.norm(layout.weights, axis=1)
    return Estimate(tables @ layout.weights.T, error, float(np.median(freedom)))


def _moderate(layout: Layout, tables: Numbers, variance: Numbers, freedom: Numbers) -> None:
    """Raise the pooled `variance`, and lower the `freedom`, where pairs differ in their own."""
    own, counts = _own_variances(layout, tables)
    paired = counts > 0
    if paired.sum() < 3:
        return
    own, counts = own[:, paired], counts[paired]
    least = special.chdtri(counts, 1 - SMALLEST) / counts
    prior = _prior(np.maximum(own, variance[:, paired] * least), counts, layout.contrasts.shape[1])
    differ = np.isfinite(prior.freedom) & (variance[:, 0] > 0)
    weight = np.where(differ, prior.freedom, 1.0)[:, None]
    moderated = (weight * prior.variance[:, None] + counts * own) / (weight + counts)
    pooled = variance[:, paired]
    variance[:, paired] = np.where(differ[:, None], np.maximum(moderated, pooled), pooled)
    freedom[differ] = np.minimum(freedom, prior.freedom + counts.mean())[differ]


def _own_variances(layout: Layout, tables: Numbers) -> tuple[Numbers, Places]:
    """Return the variance of one cell from the differences of each pair, and its freedom."""
    n_rows, n_columns = layout.contrasts.shape[1], layout.columns.max() + 1
    full = np.full((len(tables), n_rows, n_columns), np.nan)
    full[:, layout.rows, layout.columns] = tables
    gaps = full[:, layout.contrasts.argmax(axis=1)] - full[:, layout.contrasts.argmin(axis=1)]
    known = np.isfinite(gaps[0])
    counts = known.sum(axis=1)
    mean = np.where(known, gaps, 0).sum(axis=2) / np.maximum(counts, 1)
    squares = (np.where(known, gaps - mean[..., None], 0) ** 2).sum(axis=2)
    return squares / 2 / np.maximum(counts - 1, 1), np.maximum(counts - 1, 0)


class _Prior(NamedTuple):
    """The law of the variances: each the typical one over chi-square of `freedom`."""

    variance: Numbers
    freedom: Numbers


def _prior(own: Numbers, counts: Places, n_rows: int) -> _Prior:
    """Return the law whose moments the logarithms of the variances have; equal: freedom inf."""
    logs = np.log(np.maximum(own, np.finfo(float).tiny))
    logs = logs - special.digamma(counts / 2) + np.log(counts / 2)
    share = 2 * (n_rows - 2) / (n_rows * (n_rows - 1) / 2 - 1)
    chance = (1 - SHARED * share) * special.polygamma(1, counts / 2).mean()
    excess = logs.var(axis=1, ddof=1) - chance
    half = _inverse_trigamma(np.maximum(excess, 1e-3))
    typical = np.exp(logs.mean(axis=1) + special.digamma(half) - np.log(half))
    return _Prior(typical, np.where(excess > 1e-3, 2 * half, np.inf))


def _inverse_trigamma(values: Numbers) -> Numbers:
    """Return where the trigamma function has `values`, by Newton's method (Smyth, appendix)."""
    found = 0.5 + 1 / values
    for _ in range(12):
        trigamma = special.polygamma(1, found)
        found = found + trigamma * (1 - trigamma / values) / special.polygamma(2, found)
    return found
