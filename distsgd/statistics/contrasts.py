"""Contrasts: one algorithm against another, more workers against fewer, one value against others.

1. Two algorithms are compared seed by seed, since a seed means the same machines and samples.
2. A miss (None) is later than every time. It is never left out where the other one arrived.
3. What cannot be said from so few values is None, not a guess.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from distsgd.statistics.spreads import Numbers, check_any

FEW_PAIRS = 3
"""Below this many pairs nothing is said about how sure a ratio is."""

RESAMPLES = 2000
CONFIDENCE = 0.95
"""Of a bootstrap interval: how often the pairs are drawn again, and which share it spans."""


class Ratio(NamedTuple):
    """How many times as much one algorithm needs as another, with its interval."""

    low: float | None
    median: float | None
    high: float | None
    n_pairs: int


def paired_ratio(
    those: Mapping[int, float | None], against: Mapping[int, float | None], *, seed: int = 0
) -> Ratio:
    """Return the median over common seeds of `those` divided by `against`, and its interval.

    A miss (None) is later than every time: the ratio of its seed is infinite, or 0 if only the
    other one missed. A seed that both missed says nothing about their ratio.

    Parameters
    ----------
    those, against : mapping of int to float or None
        A positive number per seed, such as a time to target; None for a miss.
    seed : int, default 0
        Seed of the bootstrap.

    Returns
    -------
    Ratio
        The interval is the percentile bootstrap's: the middle 95 % of the medians of 2,000 samples
        of pairs, drawn with replacement. It is None for fewer than 3 pairs, the median for none.

    References
    ----------
    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.
    """
    found = [_quotient(those[key], against[key]) for key in sorted(those.keys() & against.keys())]
    ratios = np.array([ratio for ratio in found if ratio is not None])
    n_pairs = len(ratios)
    if not n_pairs:
        return Ratio(None, None, None, 0)
    median = _geometric_median(ratios)
    if n_pairs < FEW_PAIRS:
        return Ratio(None, median, None, n_pairs)
    drawn = np.random.default_rng(seed).integers(0, n_pairs, (RESAMPLES, n_pairs))
    tail = (1 - CONFIDENCE) / 2
    low = np.quantile(_medians(ratios[drawn], "lower"), tail, method="lower")
    high = np.quantile(_medians(ratios[drawn], "higher"), 1 - tail, method="higher")
    return Ratio(float(low), median, float(high), n_pairs)


def _quotient(one: float | None, other: float | None) -> float | None:
    if one is None or other is None or not (math.isfinite(one) and math.isfinite(other)):
        lost = [value is None or not math.isfinite(value) for value in (one, other)]
        return None if all(lost) else math.inf if lost[0] else 0.0
    return one / other if other > 0 else None


def _medians(rows: Numbers, method: Literal["lower", "higher"]) -> Numbers:
    medians: Numbers = np.quantile(rows, 0.5, axis=1, method=method)
    return medians


def _geometric_median(ratios: Numbers) -> float | None:
    """Return the median, between two middle ones their geometric mean: inverting inverts it."""
    low, high = (float(_medians(ratios[None], method)[0]) for method in ("lower", "higher"))
    if low == high:
        return low
    return None if low == 0 and high == math.inf else math.sqrt(low) * math.sqrt(high)


class Profile(NamedTuple):
    """Share of the cases in which an algorithm needs at most so many times the least.

    `share` holds from its `factor` to the next one.
    """

    factor: Numbers
    share: Numbers


def performance_profiles(costs: Mapping[str, Sequence[float | None]]) -> dict[str, Profile]:
    r"""Return the performance profile of each algorithm over cases.

    .. math:: \rho_a(\tau) = |\{c : t_{a,c} \le \tau \min_b t_{b,c}\}| / |\{c\}|

    Parameters
    ----------
    costs : mapping of str to sequence of float or None
        Of each algorithm, its cost in each case, in one order of the cases; None for a miss.

    Returns
    -------
    dict of str to Profile
        Steps from 1 on. A case that everybody missed counts among all cases.

    References
    ----------
    Dolan and More, "Benchmarking optimization software with performance profiles", 2002, (1.1).
    """
    table = np.array([[_or_inf(cost) for cost in row] for row in costs.values()], dtype=float)
    check_any(table.size)
    least = table.min(axis=0)
    with np.errstate(invalid="ignore"):
        factors = np.where(np.isfinite(table), table / least, np.inf)
    return {name: _profile(row) for name, row in zip(costs, factors, strict=True)}


def _profile(factors: Numbers) -> Profile:
    steps = np.unique(np.append(factors[np.isfinite(factors)], 1.0))
    within = np.searchsorted(np.sort(factors), steps, side="right")
    return Profile(steps, within / len(factors))


def _or_inf(value: float | None) -> float:
    return math.inf if value is None else value


class SpeedUp(NamedTuple):
    """What more workers bring, relative to the fewest; None where a time is missing."""

    speed_up: float | None
    efficiency: float | None


def speed_ups(times: Mapping[int, float | None]) -> dict[int, SpeedUp]:
    """Return speed-up and efficiency for each number of workers, fewest first.

    The speed-up is the time with the fewest workers, divided by the time with these; the efficiency
    is the speed-up divided by how many times as many workers there are.

    Parameters
    ----------
    times : mapping of int to float or None
        Time to target for each number of workers; None for a miss.

    Returns
    -------
    dict of int to SpeedUp
        By number of workers. All None if the fewest workers missed.
    """
    fewest = min(times, default=0)
    return {count: _speed_up(count, times[count], fewest, times[fewest]) for count in sorted(times)}


def _speed_up(count: int, time: float | None, fewest: int, first: float | None) -> SpeedUp:
    if not time or first is None:
        return SpeedUp(None, None)
    return SpeedUp(first / time, first / time * fewest / count)


class Tolerance(NamedTuple):
    """The values of a parameter around the best one that do almost as well."""

    best: float
    low: float
    high: float


def tolerance(values: Sequence[float], costs: Sequence[float], *, within: float = 2.0) -> Tolerance:
    """Return the best value and the range around it in which the cost is nearly as low.

    Parameters
    ----------
    values : sequence of float
        Values of a parameter that were tried.
    costs : sequence of float
        What each of them cost, such as the final loss; lower is better, infinite for a divergence.
    within : float, default 2.0
        How many times the lowest cost is still near, >= 1.

    Returns
    -------
    Tolerance
        From the lowest to the highest neighbour of the best with no worse one between.

    Raises
    ------
    ConfigError
        If there is no value.
    """
    check_any(len(values))
    order = np.argsort(values)
    ordered, cost = np.asarray(values, float)[order], np.asarray(costs, float)[order]
    best = int(np.argmin(cost))
    far = np.flatnonzero(~(cost <= within * cost[best]) & np.isfinite(cost[best]))
    low = max((place + 1 for place in far if place < best), default=0)
    high = min((place - 1 for place in far if place > best), default=len(ordered) - 1)
    return Tolerance(float(ordered[best]), float(ordered[low]), float(ordered[high]))
