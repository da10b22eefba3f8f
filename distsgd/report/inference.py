"""Which differences between algorithms the seeds settle: simultaneous intervals of ratios.

The model is a randomised block design of logarithms: an algorithm's effect, a seed's effect (a seed
means the same machines and samples for all) and noise.

1. Every two algorithms of a table are compared, so the best one is, whichever it turns out to be:
   all intervals of a table hold together with 95 %.
2. A number is known to lie in an interval: a time between two evaluations, a miss after its end.
   No order is claimed that this alone could turn round.
3. What cannot be said from so few seeds is None, not a guess.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy import stats

from distsgd.report.contrasts import Ratio
from distsgd.report.statistics import Numbers

CONFIDENCE = 0.95
"""How often all intervals of a table hold at once."""

ROUNDING = 1e-9
"""Logarithms closer than this are equal: sums of the same numbers differ by less."""

UNKNOWN = Ratio(None, None, None, 0)


class Known(NamedTuple):
    """A positive number that lies in (low, high]: exact if both are equal, a miss if high is inf."""

    low: float
    high: float


class _Cells(NamedTuple):
    """The numbers of a table as logarithms, one after the other, with row and column of each."""

    algorithm: Numbers
    seed: Numbers
    low: Numbers
    high: Numbers


@dataclass(frozen=True)
class Comparisons:
    """Every algorithm of a table against every other one."""

    ratios: Mapping[tuple[str, str], Ratio]
    n_seeds: int

    def ratio(self, one: str, against: str) -> Ratio:
        """Return how many times as much `one` needs as `against`; `low` is None if unknown."""
        return self.ratios[one, against]

    def is_settled(self, one: str, against: str) -> bool:
        """Return whether the seeds settle that the two differ."""
        low, _, high, _ = self.ratio(one, against)
        return low is not None and high is not None and (low > 1 or high < 1)

    @property
    def is_order_known(self) -> bool:
        """Whether any two algorithms are settled."""
        return any(self.is_settled(one, against) for one, against in self.ratios)

    @property
    def reason(self) -> str:
        """Why no order is known, in a sentence; empty if one is."""
        return "" if self.is_order_known else "too few seeds"


@cache
def critical_value(n_algorithms: int, freedom: float) -> float:
    """Return how many standard errors of a difference the interval of a pair spans (Tukey)."""
    if n_algorithms == 2:
        return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
    return float(stats.studentized_range.ppf(CONFIDENCE, n_algorithms, freedom) / math.sqrt(2))


def compare_all(
    table: Mapping[str, Mapping[int, Known]],
    noise: Mapping[str, tuple[float, float]] | None = None,
) -> Comparisons:
    """Return the ratio of each two algorithms with simultaneous 95 % intervals."""
    names = list(table)
    ratios = dict.fromkeys(((a, b) for a in names for b in names if a != b), UNKNOWN)
    cells = [
        (row, seed, *known)
        for row, own in enumerate(table.values())
        for seed, known in own.items()
        if known.high > 0
    ]
    seeds = sorted({cell[1] for cell in cells})
    if not cells:
        return Comparisons(ratios, 0)
    with np.errstate(divide="ignore"):
        low, high = np.log([cell[2] for cell in cells]), np.log([cell[3] for cell in cells])
    rows = np.array([cell[0] for cell in cells])
    blocks = np.searchsorted(seeds, [cell[1] for cell in cells])
    design = np.hstack([rows[:, None] == np.arange(len(names)), blocks[:, None] == np.arange(len(seeds))])
    design = design.astype(float)
    missed = np.isinf(high)
    value = np.where(missed, low, np.where(np.isinf(low), high, (low + high) / 2))
    half = np.where(missed | np.isinf(low), 0.0, (high - low) / 2)
    inverse = np.linalg.pinv(design)
    rest = value - design @ (inverse @ value)
    freedom = len(value) - int(np.linalg.matrix_rank(design))
    deviation = math.sqrt(rest @ rest / freedom) if freedom else math.nan
    for one, other in combinations(range(len(names)), 2):
        contrast = np.zeros(design.shape[1])
        contrast[[one, other]] = 1, -1
        weights = contrast @ inverse
        if not np.allclose(weights @ design, contrast):
            continue
        centre = float(weights @ value)
        n_pairs = len(set(blocks[rows == one]) & set(blocks[rows == other]))
        lost = missed[rows == one].any(), missed[rows == other].any()
        median = None if any(lost) else math.exp(centre)
        if not freedom:
            ratio = Ratio(None, median, None, n_pairs)
        else:
            reach = critical_value(len(names), freedom) * deviation * float(np.linalg.norm(weights))
            reach += float(abs(weights) @ half) + ROUNDING
            ratio = Ratio(
                0.0 if lost[1] else math.exp(centre - reach), median,
                math.inf if lost[0] else math.exp(centre + reach), n_pairs,
            )
        ratio = _widened(ratio, (noise or {}).get(names[one], (1, 1)), (noise or {}).get(names[other], (1, 1)))
        ratios[names[one], names[other]] = ratio
        ratios[names[other], names[one]] = _inverse(ratio)
    return Comparisons(ratios, len(seeds))


def _widened(ratio, one, other):
    if ratio.low is None:
        return ratio
    low = ratio.low * one[0] / other[1] if other[1] < math.inf else 0.0
    high = ratio.high * one[1] / other[0] if other[0] > 0 else math.inf
    return ratio._replace(low=low, high=high)


def _inverse(ratio):
    turned = [None if x is None else (1 / x if x else math.inf) for x in (ratio.high, ratio.median, ratio.low)]
    return Ratio(*turned, ratio.n_pairs)


def alone(values: Mapping[int, Known]) -> Ratio:
    """Return the typical value over seeds with its 95 % interval."""
    met = [v for v in values.values() if 0 < v.high]
    if not met:
        return UNKNOWN
    lost = any(v.high == math.inf for v in met)
    logs = np.array([math.log(v.low if v.high == math.inf else math.sqrt(v.low * v.high)) for v in met])
    centre, n = float(logs.mean()), len(logs)
    if n < 2:
        return Ratio(None, None if lost else math.exp(centre), None, n)
    reach = critical_value(2, n - 1) * float(logs.std(ddof=1)) / math.sqrt(n) + ROUNDING
    return Ratio(math.exp(centre - reach), math.exp(centre), math.inf if lost else math.exp(centre + reach), n)


def leaders(table, *, largest=False, noise=None) -> list[str]:
    """Return the observed best first, then all that the seeds do not settle against it."""
    found = compare_all(table, noise)
    best = _best(found, list(table), largest)
    return [best, *(name for name in table if name != best and not found.is_settled(name, best))] if best else []


def _best(found, names, largest):
    level = {a: sum(math.log(r.median) for (x, _), r in found.ratios.items() if x == a and r.median) for a in names}
    return (max if largest else min)(level, key=level.__getitem__, default=None)


def extreme(table, *, largest=True) -> str | None:
    """Return the algorithm that is settled against every other one, None if there is none."""
    ahead = leaders(table, largest=largest)
    return ahead[0] if len(ahead) == 1 and len(table) > 1 else None
