"""Performance in medians: profiles over cases, speed-up by workers, tolerance of a parameter.

A miss (None) is later than every time. What is sure of a ratio says `inference`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from distsgd.statistics.spreads import Numbers, check_any


class Profile(NamedTuple):
    """Share of the cases in which an algorithm needs at most so many times the least.

    `share` holds from its `factor` to the next one.
    """

    factor: Numbers
    share: Numbers


def performance_profiles(costs: Mapping[str, Sequence[float | None]]) -> dict[str, Profile]:
    r"""Return the performance profile of each algorithm over cases.

    .. math:: \rho_a(\tau) = |\{c : t_{a,c} \le \tau \min_b t_{b,c}\}| / |\{c\}|

    The `costs` of an algorithm are one per case, in one order of the cases; None for a miss. The
    profile has its steps from 1 on. A case that all algorithms missed counts among all cases.

    References
    ----------
    Dolan and More, "Benchmarking optimization software with performance profiles", 2002, (1.1).
    """
    table = np.nan_to_num(np.array(list(costs.values()), dtype=float), nan=np.inf, posinf=np.inf)
    check_any(table.size)
    least = table.min(axis=0)
    with np.errstate(invalid="ignore"):
        factors = np.where(np.isfinite(table), table / least, np.inf)
    return {name: _profile(row) for name, row in zip(costs, factors, strict=True)}


def _profile(factors: Numbers) -> Profile:
    steps = np.unique(np.append(factors[np.isfinite(factors)], 1.0))
    within = np.searchsorted(np.sort(factors), steps, side="right")
    return Profile(steps, within / len(factors))


class SpeedUp(NamedTuple):
    """What more workers bring, relative to the fewest; None where a time is missing."""

    speed_up: float | None
    efficiency: float | None


def speed_ups(times: Mapping[int, float | None]) -> dict[int, SpeedUp]:
    """Return speed-up and efficiency for each number of workers, fewest first.

    The speed-up is the time to target with the fewest workers, divided by the time with these; the
    efficiency is the speed-up divided by how many times as many workers there are. A time is None
    for a miss; all is None if the fewest workers missed.
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
        How many times the lowest cost is still near, >= 1. The range goes from the lowest to the
        highest neighbour of the best with no worse one between.
    """
    check_any(len(values))
    order = np.argsort(values)
    ordered, cost = np.asarray(values, float)[order], np.asarray(costs, float)[order]
    best = int(np.argmin(cost))
    far = np.flatnonzero(~(cost <= within * cost[best]) & np.isfinite(cost[best]))
    low = max((place + 1 for place in far if place < best), default=0)
    high = min((place - 1 for place in far if place > best), default=len(ordered) - 1)
    return Tolerance(float(ordered[best]), float(ordered[low]), float(ordered[high]))
