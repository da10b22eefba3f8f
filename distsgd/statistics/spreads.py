"""Statistics over seeds: pure functions of numbers.

1. A run is known at its evaluations only. Between two of them it keeps the value of the earlier
   one; nothing is said before its first evaluation or after its last.
2. A run that diverged has an infinite loss from then on. So it stays in every median and quantile,
   instead of leaving them to the runs that survived.
3. A run that never met a target has no time to it (None), and counts as later than every time.
4. Quantiles are values that were observed: nothing is interpolated between two seeds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from distsgd.errors import ConfigError

Numbers = npt.NDArray[np.float64]

FEW = 10
"""Below this many seeds a band spans all of them: a tail quantile of fewer says nothing."""


class Curve(NamedTuple):
    """One run as it was evaluated: `values` at increasing `positions`, each ``float64[m]``."""

    positions: Numbers
    values: Numbers
    is_diverged: bool = False


class Spread(NamedTuple):
    """A number over seeds: its median, and the two ends of the band that `band_name` names."""

    low: float
    median: float
    high: float


class Band(NamedTuple):
    """A number over seeds at common positions, each ``float64[p]``."""

    positions: Numbers
    low: Numbers
    median: Numbers
    high: Numbers


def band_name(seeds: int) -> str:
    """Return what the band over that many `seeds` spans, in words."""
    if seeds == 1:
        return "one seed, no band"
    if seeds < FEW:
        return f"median, and band from minimum to maximum of {seeds} seeds"
    return f"median, and band from the 10 % to the 90 % quantile of {seeds} seeds"


def spread(values: Numbers, worst: float = np.inf) -> Spread:
    """Return median and band of a number over seeds, ``float64[seeds]``.

    Values that are not finite count as `worst`. The ends, and the median of an odd number of seeds,
    are observed values. A `ConfigError` says that there is no value.
    """
    known = np.where(np.isfinite(values), values, worst)
    low, median, high = _quantiles(known[:, None])
    return Spread(float(low[0]), float(median[0]), float(high[0]))


def held(curve: Curve, at: Numbers) -> Numbers:
    """Return the value of the last evaluation at or before each position, ``float64[p]``.

    NaN before the first evaluation and beyond the last; infinite where the loss was not finite, and
    from its last evaluation on if the run diverged.
    """
    index = np.searchsorted(curve.positions, at, side="right") - 1
    values = np.where(np.isfinite(curve.values), curve.values, np.inf)
    beyond = np.inf if curve.is_diverged else np.nan
    shown = np.where(at > curve.positions[-1], beyond, values[index])
    return np.where(index < 0, np.nan, shown)


def band(curves: Sequence[Curve]) -> Band:
    """Return median and band of `curves`, one per seed, where each of them is known.

    That is at every position at which a run was evaluated, from the latest first evaluation to the
    earliest end of a run that did not diverge: between two of them nothing changes. Infinite where
    too many runs have diverged. A `ConfigError` says that there is no curve.
    """
    check_any(len(curves))
    start = max(curve.positions[0] for curve in curves)
    lasting = [curve for curve in curves if not curve.is_diverged] or curves
    end = min(curve.positions[-1] for curve in lasting)
    evaluated = np.unique(np.concatenate([curve.positions for curve in curves]))
    at = evaluated[(evaluated >= start) & (evaluated <= max(start, end))]
    return Band(at, *_quantiles(np.stack([held(curve, at) for curve in curves])))


def median_time(times: Sequence[float | None]) -> float | None:
    """Return the median of `times`, where None is later than every time; None if the median is."""
    check_any(len(times))
    ordered = np.sort([np.inf if time is None else time for time in times])
    median = float(np.median(ordered))
    return median if np.isfinite(median) else None


class Shares(NamedTuple):
    """A distribution of whole numbers in bins [low, high): `share` of all that lie there."""

    low: npt.NDArray[np.int64]
    high: npt.NDArray[np.int64]
    share: Numbers


def shares(values: npt.NDArray[np.int64], *, bins: int, highest: int) -> Shares:
    """Return which share of `values` falls into each bin; 0 everywhere if there are no values.

    Parameters
    ----------
    values : int64[m]
        Whole numbers from 0 to `highest`.
    bins : int
        Bins at most, equally wide; one per number if these are fewer.
    highest : int
        The largest number that the bins must hold.
    """
    width = -(-(highest + 1) // bins)
    low = np.arange(0, highest + 1, width, dtype=np.int64)
    counts = np.bincount(np.asarray(values) // width, minlength=len(low))
    return Shares(low, low + width, counts / max(1, counts.sum()))


def _quantiles(values: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    n_seeds = len(values)
    check_any(n_seeds)
    tail = 0.0 if n_seeds < FEW else 0.1
    low = np.quantile(values, tail, axis=0, method="lower")
    high = np.quantile(values, 1 - tail, axis=0, method="higher")
    return low, np.median(values, axis=0), high


def check_any(n_values: int) -> None:
    """Raise a `ConfigError` if there are no values to take statistics of."""
    if n_values == 0:
        raise ConfigError("statistics need at least one finished run, not 0")
