"""Data augmentation: what cells that are known to an interval only, such as a miss, may hold.

Each of many chains completes the table, draws the parameters given the table, completes it anew,
and so on. For a complete table the quantiles are those of Student's t, so nothing is drawn then.
"""

from typing import NamedTuple

import numpy as np
from scipy import special

from distsgd.statistics.block_design import Estimate, Layout, Places, critical
from distsgd.statistics.spreads import Numbers

CHAINS, SWEEPS = 256, 50
"""Tables that are completed, and how often each of them is drawn anew."""

STEPS, POINTS = 14, 4001
"""Halvings of the bracket of a quantile, and points between which its law is a straight line."""

FURTHEST = 30.0
"""In deviations: a bound further out is moved here, since its probability would be 0."""


class Posterior(NamedTuple):
    """Draws of the tables [draws, cells], the parameters, and the deviation [draws, 1]."""

    tables: Numbers
    parameters: Numbers
    deviation: Numbers


def augment(layout: Layout, low: Numbers, high: Numbers, start: Numbers) -> Posterior:
    r"""Return draws from the posterior with the prior :math:`1 / \sigma`, by data augmentation.

    Parameters
    ----------
    layout : Layout
        Of the cells; those that are known determine a variance.
    low, high : float64[cells]
        Where a cell lies if one of them is infinite.
    start : float64[cells]
        The cells that are known, and for the others any value within their bounds.

    Returns
    -------
    Posterior
        The same for the same cells: the generator has a fixed seed.

    References
    ----------
    Tanner and Wong, "The calculation of posterior distributions by data augmentation", 1987.
    """
    rng = np.random.default_rng(0)
    is_open = np.isinf(low) | np.isinf(high)
    tables = np.repeat(start[None], CHAINS, axis=0)
    for _ in range(SWEEPS if is_open.any() else 1):
        rest = tables - tables @ layout.hat
        squares = (rest**2).sum(axis=1, keepdims=True)
        deviation = np.sqrt(squares / rng.chisquare(layout.freedom, (CHAINS, 1)))
        deviation = np.maximum(deviation, 1e-12)
        noisy = tables + deviation * rng.standard_normal(tables.shape)
        parameters = noisy @ layout.inverse.T
        fitted = parameters @ layout.design[is_open].T
        below, above = ((end[is_open] - fitted) / deviation for end in (low, high))
        tables[:, is_open] = fitted + deviation * _beyond(below, above, rng.random(fitted.shape))
    return Posterior(tables, parameters, deviation)


def _beyond(low: Numbers, high: Numbers, shares: Numbers) -> Numbers:
    """Return normal draws above `low` or, where that is infinite, below `high`."""
    sign = np.where(np.isinf(high), -1.0, 1.0)
    below = np.maximum(np.where(np.isinf(high), -low, high), -FURTHEST)
    drawn: Numbers = special.ndtri(special.ndtr(below) * np.maximum(shares, 1e-100))
    return sign * drawn


def intervals(found: Estimate, n_rows: int) -> tuple[Numbers, Numbers, Numbers]:
    """Return low end, median and high end of each contrast, ``float64[contrasts]``.

    Of several tables the quantiles of the mixture of their t-distributions, at the level that each
    interval has where all intervals between `n_rows` means hold with 95 %.
    """
    reach = critical(n_rows, found.freedom) * found.error
    low, high = (found.centre - reach).min(axis=0), (found.centre + reach).max(axis=0)
    if len(reach) == 1:
        return low, found.centre[0], high
    tail = tail_of(found, n_rows)
    quantiles = [_quantile(found, share, low, high) for share in (tail, 0.5, 1 - tail)]
    return quantiles[0], quantiles[1], quantiles[2]


def tail_of(found: Estimate, n_rows: int) -> float:
    """Return how often one end of one of the simultaneous intervals fails."""
    return float(special.stdtr(found.freedom, -critical(n_rows, found.freedom)))


def _quantile(found: Estimate, share: float, low: Numbers, high: Numbers) -> Numbers:
    """Return where the mixture has `share` below, by halving, at most 1 / 16,384 off."""
    error = np.maximum(found.error, 1e-12)
    # SciPy's law takes a microsecond a point, and there are 100,000 points.
    points = np.sinh(np.linspace(-FURTHEST, FURTHEST, POINTS) / 3)
    law = special.stdtr(found.freedom, points)
    for _ in range(STEPS):
        middle = (low + high) / 2
        is_below = np.interp((middle - found.centre) / error, points, law).mean(axis=0)
        low, high = np.where(is_below < share, [middle, high], [low, middle])
    return (low + high) / 2


def least_beyond(drawn: Posterior, layout: Layout, row: int, columns: Places, ends: Numbers, *, tail: float) -> float:
    """Return the least effect, above that of `row`, of one that missed in all `columns`.

    With a smaller one, not to arrive before any of the `ends` has a probability below `tail`.
    """
    fitted = drawn.parameters[:, [row]]
    if layout.has_blocks:
        fitted = fitted + drawn.parameters[:, layout.contrasts.shape[1] + columns]
    gaps, furthest = fitted - ends, FURTHEST * drawn.deviation.max()
    low, high = -gaps.max() - furthest, furthest - gaps.min()
    for _ in range(40):
        middle = (low + high) / 2
        missed = special.ndtr((gaps + middle) / drawn.deviation).prod(axis=1).mean()
        low, high = (middle, high) if missed < tail else (low, middle)
    return float(low)
