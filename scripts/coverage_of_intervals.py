"""How often intervals hold, orders are claimed falsely, and true differences are found.

Usage: python scripts/coverage_of_intervals.py [--quick] [--tries 2000] [--bootstrap]

Tables of times are drawn from a randomised block design with a known answer: logarithms of an
algorithm's and a seed's effect and of noise, so that the logarithm of the ratio of two runs of one
seed has a deviation of 0.2. `holds` is the share of tables of which all intervals hold the truth,
`false` that of tables in which any order is claimed that is none, `missed most` how often the worst
single interval fails. With one of nine 1.5 times as fast, `each` is the share of the others found
slower, `all` that of tables in which all are. --bootstrap takes the percentile bootstrap of the
median against the lowest median instead, each of whose intervals should hold with 95 %.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from papers import show
from scipy.stats import norm

from distsgd.statistics.inference import Known, Ratio, compare_all

NOISE, SEEDS_APART = 0.2 / math.sqrt(2), 0.3
"""Deviations of the logarithms: of a run, and of the seeds' effects."""

Table = dict[str, dict[int, Known]]


class Scenario(NamedTuple):
    """A kind of table: algorithms, seeds, and what is unusual about it."""

    n_algorithms: int
    n_seeds: int
    apart: float = 0.0
    noisy: int = 0
    missing: float = 0.0
    law: str = "normal"
    grid: float = 0.0
    spoil: str = ""

    @property
    def truth(self) -> np.ndarray:
        """Logarithms of the algorithms' effects, the least first."""
        effects = np.arange(self.n_algorithms) * self.apart
        effects[-1] += self.spoil == "slowest misses all"
        return effects

    @property
    def end(self) -> float:
        """When runs end: then the given share of runs of the slowest algorithm miss."""
        deviation = math.hypot(NOISE, SEEDS_APART)
        return float(self.truth[-1] + deviation * norm.ppf(1 - self.missing))


NORMAL, HEAVY, SKEWED = "normal", "heavy", "skewed"
LAWS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    NORMAL: lambda rng, shape: rng.normal(size=shape),
    HEAVY: lambda rng, shape: rng.standard_t(5, shape) / math.sqrt(5 / 3),
    SKEWED: lambda rng, shape: (rng.gamma(4, 1, shape) - 4) / 2,
}


def draw(scenario: Scenario, rng: np.random.Generator) -> Table:
    """Return a table of the scenario."""
    shape = scenario.n_algorithms, scenario.n_seeds
    deviation = np.full(shape[0], NOISE)
    deviation[shape[0] - scenario.noisy :] *= 4
    logs = scenario.truth[:, None] + SEEDS_APART * rng.normal(size=shape[1])
    logs = logs + deviation[:, None] * LAWS[scenario.law](rng, shape)
    low, high = np.exp(logs), np.exp(logs)
    if scenario.grid:
        low = np.floor(low / scenario.grid) * scenario.grid
        high = low + scenario.grid
    if scenario.missing:
        high = np.where(logs > scenario.end, math.inf, high)
        low = np.minimum(low, math.exp(scenario.end))
    absent = _spoiled(scenario.spoil, low, high, rng)
    return {
        str(name): {
            seed: Known(float(low[name, seed]), float(high[name, seed]))
            for seed in range(shape[1])
            if (name, seed) != absent
        }
        for name in range(shape[0])
    }


def _spoiled(how: str, low: np.ndarray, high: np.ndarray, rng: np.random.Generator) -> tuple[int, int] | None:
    if how == "leader misses one":
        low[0, 0] *= math.exp(-abs(rng.normal(0, 0.1)))
        high[0, 0] = math.inf
    if how == "all miss one":
        low[:, 0], high[:, 0] = low[:, 0].min(), math.inf
    if how == "slowest misses all":
        low[-1], high[-1] = low[:-1].max(axis=0), math.inf
    return (int(rng.integers(low.shape[0])), 0) if how == "one lacks a seed" else None


class Score(NamedTuple):
    """Shares of tables: all intervals hold, an order is false, the worst single one fails."""

    holds: float
    false: float
    worst: float


def ratios(table: Table, *, is_bootstrap: bool = False) -> dict[tuple[str, str], Ratio]:
    """Return the ratios with their intervals, by the method in use or by a bootstrap."""
    return dict(_bootstrap(table) if is_bootstrap else compare_all(table).ratios)


def _bootstrap(table: Table) -> dict[tuple[str, str], Ratio]:
    """Return the percentile bootstrap of the median ratio to the lowest median, where it is."""
    times = {name: np.array([one.high for one in own.values()]) for name, own in table.items()}
    first = min(times, key=lambda name: float(np.median(times[name])))
    found = {}
    for name, own in times.items():
        n_seeds = len(own)
        if name != first and n_seeds > 2:
            picks = np.random.default_rng(0).integers(0, n_seeds, (2000, n_seeds))
            medians = np.median((own / times[first])[picks], axis=1)
            ends = np.quantile(medians, [0.025, 0.5, 0.975])
            found[name, first] = Ratio(*(float(end) for end in ends), n_seeds)
    return found


def score(scenario: Scenario, tries: int, *, is_bootstrap: bool = False) -> Score:
    """Return how often the intervals hold, over tables from fixed seeds."""
    n_held, n_false, failed = 0, 0, Counter[tuple[str, str]]()
    for number in range(tries):
        found = ratios(draw(scenario, np.random.default_rng([7, number])), is_bootstrap=is_bootstrap)
        known = {pair: (one.low, one.high) for pair, one in found.items() if one.low is not None}
        effects = scenario.truth
        actual = {(a, b): math.exp(effects[int(a)] - effects[int(b)]) for a, b in known}
        wrong = [pair for pair, (low, high) in known.items() if not low <= actual[pair] <= high]
        failed.update(wrong)
        n_held += not wrong
        n_false += any((low > 1 >= actual[pair]) or (high < 1 <= actual[pair]) for pair, (low, high) in known.items())
    return Score(n_held / tries, n_false / tries, max(failed.values(), default=0) / tries)


class Power(NamedTuple):
    """Where one of nine is 1.5 times as fast: the share of others found slower, and of tables."""

    each: float
    all: float


def power(n_seeds: int, tries: int) -> Power:
    """Return how often the fastest is told from the others."""
    found = np.empty((tries, 8), dtype=bool)
    for number in range(tries):
        table = draw(Scenario(9, n_seeds), np.random.default_rng([8, number]))
        table["0"] = {seed: Known(*(end / 1.5 for end in own)) for seed, own in table["0"].items()}
        compared = compare_all(table)
        lows = [compared.ratio(str(other), "0").low for other in range(1, 9)]
        found[number] = [low is not None and low > 1 for low in lows]
    return Power(float(found.mean()), float(found.all(axis=1).mean()))


SEEDS, ALGORITHMS = (2, 3, 4, 5, 8, 10, 20), (2, 3, 6, 9, 12)

EQUAL = {f"{k} equal, {n} seeds": Scenario(k, n) for k in ALGORITHMS for n in SEEDS}

UNUSUAL = {
    f"{k} algorithms, {n} seeds: {label}": Scenario(k, n, **settings)
    for k, n in ((2, 5), (4, 3), (4, 5), (9, 3), (9, 5))
    for label, settings in {
        "two with 4 times the deviation": {"noisy": min(2, k - 1)},
        "heavy tails": {"law": HEAVY},
        "skewed": {"law": SKEWED},
        "known to 2 %": {"grid": 0.02},
        "one lacks a seed": {"spoil": "one lacks a seed"},
        "10 % of the slowest miss": {"apart": 0.1, "missing": 0.1},
        "20 % of the slowest miss": {"apart": 0.1, "missing": 0.2},
        "60 % of the slowest miss": {"apart": 0.1, "missing": 0.6},
        "90 % of the slowest miss": {"apart": 0.1, "missing": 0.9},
        "half of all equals miss": {"missing": 0.5},
        "leader misses one": {"apart": 0.1, "spoil": "leader misses one"},
        "all miss one": {"apart": 0.1, "spoil": "all miss one"},
        "slowest misses all": {"apart": 0.1, "spoil": "slowest misses all"},
        "20 % miss, two noisy": {"apart": 0.1, "missing": 0.2, "noisy": min(2, k - 1)},
    }.items()
}


def main(arguments: list[str]) -> None:
    """Print the tables."""
    quick, is_bootstrap = "--quick" in arguments, "--bootstrap" in arguments
    tries = int(arguments[arguments.index("--tries") + 1]) if "--tries" in arguments else 2000
    scenarios = EQUAL if is_bootstrap else EQUAL | UNUSUAL
    if quick:
        scenarios, tries = (dict(list(scenarios.items())[:: 9 if is_bootstrap else 7]), min(tries, 20))
    rows = [[name, *score(one, tries, is_bootstrap=is_bootstrap)] for name, one in scenarios.items()]
    show(f"intervals, {tries} tries", ["tables", "holds", "false", "missed most"], _shares(rows))
    if not is_bootstrap:
        powers = [[n_seeds, *power(n_seeds, tries)] for n_seeds in SEEDS]
        show("one of nine is 1.5 times as fast", ["seeds", "each", "all"], _shares(powers))


def _shares(rows: list[list[object]]) -> list[list[object]]:
    return [[name, *(f"{share:.1%}" for share in shares)] for name, *shares in rows]


if __name__ == "__main__":
    main(sys.argv[1:])
