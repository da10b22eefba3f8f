"""Which differences the seeds settle: ratios with intervals that hold together.

1. Every two algorithms of a table are compared, so the best one is, whichever that turns out to be:
   all intervals of a table hold at once with 95 %.
2. A number is known to an interval: a time between two evaluations, a miss after its end. An order
   that this alone could turn round is not claimed.
3. What cannot be said from so few seeds is None, not a guess.

The numbers are logarithms of a randomised block design (`block_design`). What missed is drawn from
what did not (`augmentation`). `scripts/coverage_of_intervals.py` prints how often these intervals
hold.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple, TypeAlias

import numpy as np

from distsgd.statistics.augmentation import Posterior, augment, intervals, least_beyond, tail_of
from distsgd.statistics.block_design import Estimate, Flags, Layout, estimate
from distsgd.statistics.spreads import Numbers

ROUNDING = 1e-9
"""Logarithms closer than this are equal: sums of the same numbers differ by less."""

LARGEST = 700.0
"""The exponential of more than this is infinite."""


class Known(NamedTuple):
    """A positive number that lies in (low, high]: exact if both are equal, a miss if high is inf.

    `low` may be 0. A number that is itself 0 has no logarithm; it is left out.
    """

    low: float
    high: float


class Factors(NamedTuple):
    """Between which factors another number would lie: (1, 1) is the same, (0, inf) unknown."""

    low: float
    high: float


SAME = Factors(1.0, 1.0)
ABSURD = 1_000.0
"""A ratio that no comparison is made for."""


class Ratio(NamedTuple):
    """How many times as much one needs as another, with its 95 % interval.

    `low` and `high` are None where too few seeds were run to say how sure it is; an end of which
    nothing is known is 0 or infinite. `median` is None where every run of one of them missed.
    `n_pairs` is the number of seeds that both ran.
    """

    low: float | None
    median: float | None
    high: float | None
    n_pairs: int

    @property
    def is_settled(self) -> bool:
        """Whether the interval leaves out 1."""
        return self.low is not None and self.high is not None and (self.low > 1 or self.high < 1)

    def inverse(self) -> "Ratio":
        """Return how many times as much the other one needs."""
        low, median, high = (_reciprocal(end) for end in (self.high, self.median, self.low))
        return Ratio(low, median, high, self.n_pairs)

    def widened(self, one: Factors, against: Factors) -> "Ratio":
        """Return the ratio of two numbers that may be off by these factors."""
        if self.low is None or self.high is None:
            return self
        high = self.high * one.high / against.low if against.low > 0 else math.inf
        return self._replace(low=self.low * one.low / against.high, high=high)


Table: TypeAlias = Mapping[str, Mapping[int, Known]]
"""Of each algorithm, a number per seed."""

UNKNOWN = Ratio(None, None, None, 0)
NOTHING = Ratio(0.0, None, math.inf, 0)
"""Too few runs for an interval, and an interval that leaves nothing out."""


def _reciprocal(value: float | None) -> float | None:
    return None if value is None else 1 / value if value else math.inf


@dataclass(frozen=True)
class Comparisons:
    """Every algorithm of a table against every other one; see `compare_all`."""

    ratios: Mapping[tuple[str, str], Ratio]
    n_seeds: int

    def ratio(self, one: str, against: str) -> Ratio:
        """Return how many times as much `one` needs as `against`."""
        return self.ratios[one, against]

    def is_settled(self, one: str, against: str) -> bool:
        """Return whether the seeds settle which of the two needs more."""
        return self.ratio(one, against).is_settled

    @property
    def is_order_known(self) -> bool:
        """Whether any two algorithms are settled."""
        return any(ratio.is_settled for ratio in self.ratios.values())

    @property
    def least_ratio(self) -> float | None:
        """Which ratio of two algorithms the seeds would settle, typically; None if none."""
        widths = [
            math.sqrt(ratio.high / ratio.low)
            for ratio in self.ratios.values()
            if ratio.low and ratio.high and ratio.high < math.inf
        ]
        return float(np.median(widths)) if widths else None

    @property
    def reason(self) -> str:
        """Why no order is known, in a sentence; empty if one is."""
        if self.is_order_known or not self.ratios:
            return ""
        if self.n_seeds < 2:
            return "One seed was run: how far others differ from it is not known."
        if self.least_ratio is None:
            return "Too few runs have a number to say how far others differ from them."
        n_algorithms = len({one for one, _ in self.ratios})
        those = f"With {self.n_seeds} seeds of {n_algorithms} algorithms"
        if self.least_ratio > ABSURD:
            return f"{those}, hardly any ratio is settled: not even one of {ABSURD:,.0f}; give more seeds."
        return f"{those}, a ratio is settled only if it is above about {self.least_ratio:.3g}."


def compare_all(table: Table, noise: Mapping[str, Factors] | None = None) -> Comparisons:
    """Return the ratio of each two algorithms, with intervals that hold all at once with 95 %.

    Parameters
    ----------
    table : mapping of str to mapping of int to Known
        Of each algorithm, a positive number per seed. A seed means the same machines and samples
        for all algorithms; not every algorithm needs to have every seed.
    noise : mapping of str to Factors, optional
        Factors by which another tuning would have changed the numbers of an algorithm; each
        interval is made wider by them.

    Returns
    -------
    Comparisons
        The median of a ratio is that of its posterior, for exact numbers the geometric mean.

    Notes
    -----
    Tukey's intervals, with the variance of `block_design.estimate`. Half the width within which a
    number is known is added as if all errors of a pair conspired, since equal runs err alike. An
    algorithm of which every run missed has a lower end only: the least effect with which so many
    misses are not yet too improbable. Where the runs that met leave no freedom for seeds' effects,
    seeds count as noise.
    """
    names = list(table)
    seeds = sorted({seed for own in table.values() for seed in own})
    grid = _grid(table, seeds)
    pairs = list(combinations(range(len(names)), 2))
    contrasts = np.zeros((len(pairs), len(names)))
    for place, (one, other) in enumerate(pairs):
        contrasts[place, [one, other]] = 1, -1
    found = _with_misses(grid, pairs, _solved(grid, contrasts)) if pairs else []
    ratios = {}
    for (one, other), ratio in zip(pairs, found, strict=True):
        here, there = names[one], names[other]
        factors = [(noise or {}).get(name, SAME) for name in (here, there)]
        ratios[here, there] = ratio.widened(*factors)
        ratios[there, here] = ratios[here, there].inverse()
    return Comparisons(ratios, len(seeds))


def alone(values: Mapping[int, Known]) -> Ratio:
    """Return the typical value of a positive number over seeds, with its 95 % interval.

    For exact numbers: the geometric mean, with the interval of Student's t of the logarithms.
    """
    grid = _grid({"": values}, sorted(values))
    solved = _solved(grid, np.ones((1, 1)), has_blocks=False)
    return solved.ratios[0]._replace(n_pairs=int(grid.is_there.sum()))


def quotients(those: Mapping[int, Known], by: Mapping[int, Known]) -> dict[int, Known]:
    """Return, for each seed of both, where the quotient of two numbers lies.

    A miss of `those` has no upper end, a miss of `by` gives the lower end 0. Seeds that both missed
    are left out, and those of which `by` is 0.
    """
    return {
        seed: Known(one.low / by[seed].high, one.high / by[seed].low if by[seed].low else math.inf)
        for seed, one in those.items()
        if seed in by and by[seed].high > 0 and (one.high < math.inf or by[seed].high < math.inf)
    }


def leaders(table: Table, *, largest: bool = False, noise: Mapping[str, Factors] | None = None) -> list[str]:
    """Return the algorithm with the least number, then all that are not settled against it.

    Or the one with the `largest` number. All but the first are in the order of the table, without
    algorithms that have no number. The `noise` is that of `compare_all`.
    """
    table = {name: own for name, own in table.items() if own}
    compared = compare_all(table, noise)
    level = {name: _level(table, compared, name) for name in table}
    first = (max if largest else min)(level, key=level.__getitem__, default=None)
    if first is None:
        return []
    rest = [name for name in table if name != first and not compared.is_settled(name, first)]
    return [first, *rest]


def _level(table: Table, compared: Comparisons, name: str) -> float:
    """Return the mean logarithm of the ratios to all others; infinite if every run missed."""
    if all(one.high == math.inf for one in table[name].values()):
        return math.inf
    medians = [compared.ratio(name, other).median for other in table if other != name]
    return round(float(np.mean([math.log(median) for median in medians if median] or [0.0])), 9)


def extreme(table: Table, *, largest: bool = True, noise: Mapping[str, Factors] | None = None) -> str | None:
    """Return the algorithm whose number is settled to be beyond all others, None if none is."""
    ahead = leaders(table, largest=largest, noise=noise)
    return ahead[0] if len(ahead) == 1 and len(table) > 1 else None


class _Grid(NamedTuple):
    """Logarithms of the ends of cells, ``float64[algorithms, seeds]``; NaN for no number."""

    low: Numbers
    high: Numbers

    @property
    def is_there(self) -> Flags:
        return ~np.isnan(self.low)

    @property
    def is_located(self) -> Flags:
        return np.isfinite(self.low) & np.isfinite(self.high)

    @property
    def middle(self) -> Numbers:
        """Half-way between the ends; the other end where one is infinite."""
        within = np.where(np.isinf(self.low), self.high, (self.low + self.high) / 2)
        middles: Numbers = np.where(np.isinf(self.high), self.low, within)
        return middles

    @property
    def half_width(self) -> Numbers:
        """How far the ends are from the middle; 0 where one is infinite."""
        halves: Numbers = np.where(self.is_located, (self.high - self.low) / 2, 0.0)
        return halves


def _grid(table: Table, seeds: list[int]) -> _Grid:
    empty = Known(math.nan, math.nan)
    cells = [[own.get(seed, empty) for seed in seeds] for own in table.values()]
    ends = np.array(cells, dtype=float).reshape(len(table), len(seeds), 2)
    says_nothing = (ends[..., 1] <= 0) | ((ends[..., 0] <= 0) & np.isinf(ends[..., 1]))
    with np.errstate(divide="ignore"):
        logs = np.log(np.where(says_nothing[..., None], math.nan, ends))
    return _Grid(logs[..., 0], logs[..., 1])


class _Solved(NamedTuple):
    """Ratios of the rows that met, and what bounds those that missed; None without freedom."""

    ratios: list[Ratio]
    layout: Layout
    found: Estimate | None = None
    drawn: Posterior | None = None


def _solved(grid: _Grid, contrasts: Numbers, *, has_blocks: bool = True) -> _Solved:
    """Return the contrasts of the rows of which a run met."""
    located = grid.is_located
    used = grid.is_there & located.any(axis=1, keepdims=True)
    # A seed that all missed has an effect without an upper end, and says nothing about ratios.
    used &= located.any(axis=0) | (not has_blocks)
    rows, columns = np.nonzero(used)
    layout = Layout(rows, columns, contrasts, has_blocks)
    own = _Grid(grid.low[used], grid.high[used])
    met = own.is_located
    if layout.only(met).freedom < 1:
        if has_blocks and contrasts.shape[1] > 1 and not located.all():
            return _solved(grid, contrasts, has_blocks=False)
        return _Solved(_points(layout, own.middle), layout)
    start, has_missed = own.middle, not located[grid.is_there].all()
    drawn = augment(layout, own.low, own.high, start) if has_missed else None
    tables = start[None] if drawn is None or met.all() else drawn.tables
    found = estimate(layout, tables)
    reach = np.abs(layout.weights) @ own.half_width + ROUNDING
    ends = intervals(found, contrasts.shape[1])
    ratios = [
        Ratio(_exp(low - more), _exp(middle), _exp(high + more), 0) if known else UNKNOWN
        for known, low, middle, high, more in zip(layout.is_estimable, *ends, reach, strict=True)
    ]
    return _Solved(ratios, layout, found, drawn)


def _points(layout: Layout, middles: Numbers) -> list[Ratio]:
    """Return the ratios without intervals."""
    return [
        Ratio(None, _exp(float(weights @ middles)) if known else None, None, 0)
        for known, weights in zip(layout.is_estimable, layout.weights, strict=True)
    ]


def _with_misses(grid: _Grid, pairs: list[tuple[int, int]], solved: _Solved) -> list[Ratio]:
    """Return the ratios with those of the algorithms of which every run missed."""
    missing = np.flatnonzero(grid.is_there.any(axis=1) & ~grid.is_located.any(axis=1))
    ratios = []
    for (one, other), known in zip(pairs, solved.ratios, strict=True):
        n_pairs = int((grid.is_there[one] & grid.is_there[other]).sum())
        ratio = known
        if one in missing:
            ratio = NOTHING if other in missing else _later(grid, solved, one, other)
        elif other in missing:
            ratio = _later(grid, solved, other, one).inverse()
        ratios.append(ratio._replace(n_pairs=n_pairs))
    return ratios


def _later(grid: _Grid, solved: _Solved, one: int, against: int) -> Ratio:
    """Return the ratio of an algorithm of which every run missed."""
    layout, found, drawn = solved.layout, solved.found, solved.drawn
    if found is None or drawn is None or against not in layout.rows:
        return UNKNOWN
    columns = np.flatnonzero(np.isinf(grid.high[one]) & np.isfinite(grid.low[one]))
    if layout.has_blocks:
        columns = np.intersect1d(columns, layout.columns)
    if not len(columns):
        return NOTHING
    tail, ends = tail_of(found, len(grid.low)), grid.low[one, columns]
    least = least_beyond(drawn, layout, against, columns, ends, tail=tail)
    widest = float(np.nanmax(np.where(grid.is_located, grid.high - grid.low, 0.0))) / 2
    return Ratio(_exp(least - widest - ROUNDING), None, math.inf, 0)


def _exp(value: float) -> float:
    return math.inf if value > LARGEST else math.exp(value)
