import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, bootstrap

from distsgd import ConfigError
from distsgd.statistics.contrasts import (
    RESAMPLES,
    paired_ratio,
    performance_profiles,
    speed_ups,
    tolerance,
)  # fmt: skip

INF = math.inf
TIMES = st.dictionaries(st.integers(0, 9), st.none() | st.floats(0.1, 100.0), max_size=8)


def test_a_paired_ratio_by_hand() -> None:
    """The ratio is taken seed by seed over the common seeds, and its median is reported."""
    got = paired_ratio({0: 2.0, 1: 6.0, 2: 8.0, 9: 1.0}, {0: 1.0, 1: 2.0, 2: 2.0, 7: 1.0})
    assert got.median == 3.0
    assert got.n_pairs == 3
    assert (got.low, got.high) == (2.0, 4.0)


def test_the_interval_is_scipy_s() -> None:
    """With 31 pairs the interval is the percentile bootstrap's of scipy, up to resampling noise."""
    rng = np.random.default_rng(1)
    one, other = rng.lognormal(1.0, 0.3, 31), rng.lognormal(0.5, 0.3, 31)
    got = paired_ratio(dict(enumerate(one)), dict(enumerate(other)))
    known = bootstrap(
        (one / other,), np.median, method="percentile", n_resamples=5 * RESAMPLES, rng=2
    ).confidence_interval
    assert got.median == pytest.approx(np.median(one / other))
    assert (got.low, got.high) == pytest.approx((known.low, known.high), rel=0.05)


def test_the_interval_spans_95_percent_exactly() -> None:
    """Medians of resamples are binomially distributed over the ranks, which gives the interval."""
    n_pairs = 41
    ranks = np.arange(1, n_pairs + 1)
    at_most = binom.sf((n_pairs - 1) // 2, n_pairs, ranks / n_pairs)
    low = ranks[np.searchsorted(at_most, 0.025)]
    ratios = dict(enumerate(np.random.default_rng(3).permutation(ranks).astype(float)))
    got = paired_ratio(ratios, dict.fromkeys(range(n_pairs), 1.0))
    assert (got.low, got.high) == (low, n_pairs + 1 - low)


def test_misses_make_a_ratio_extreme() -> None:
    """A miss of one gives an infinite ratio, a miss of the other 0, and a miss of both no pair."""
    missed, met = dict.fromkeys(range(3)), dict.fromkeys(range(3), 2.0)
    assert paired_ratio(missed, met) == (INF, INF, INF, 3)
    assert paired_ratio(met, missed) == (0.0, 0.0, 0.0, 3)
    assert paired_ratio(missed, missed) == (None, None, None, 0)
    assert paired_ratio({0: None, 1: 3.0}, {0: 1.0, 1: None}) == (None, None, None, 2)


@pytest.mark.parametrize("n_pairs", [0, 1, 2])
def test_few_pairs_have_no_interval(n_pairs: int) -> None:
    """Below three pairs there is a ratio at most, and no interval."""
    got = paired_ratio(dict.fromkeys(range(n_pairs), 4.0), dict.fromkeys(range(n_pairs), 2.0))
    assert (got.low, got.high) == (None, None)
    assert got.median == (2.0 if n_pairs else None)


@given(TIMES, TIMES)
def test_turning_a_ratio_round_inverts_it(
    one: dict[int, float | None], other: dict[int, float | None]
) -> None:
    """The ratio of b to a is the inverse of that of a to b, its interval included."""
    there, back = paired_ratio(one, other), paired_ratio(other, one)
    assert there.n_pairs == back.n_pairs
    for value, turned in zip(there[:3], (back.high, back.median, back.low), strict=True):
        if value is None or turned is None:
            assert value is turned
        else:
            assert turned == pytest.approx(1 / value if value else INF)


def test_a_performance_profile_by_hand() -> None:
    """A profile is the share of cases within a factor of the best; a miss is never within."""
    got = performance_profiles({"a": [1.0, 2.0, None, 3.0], "b": [2.0, 1.0, None, None]})
    assert got["a"].factor.tolist() == [1.0, 2.0]
    assert got["a"].share.tolist() == [0.5, 0.75]
    assert got["b"].share.tolist() == [0.25, 0.5]


def test_a_profile_of_misses_is_zero() -> None:
    """An algorithm that missed everywhere has the share 0, and no cases at all are an error."""
    assert performance_profiles({"a": [1.0], "b": [None]})["b"].share.tolist() == [0.0]
    with pytest.raises(ConfigError, match="at least one"):
        performance_profiles({})


def test_speed_up_by_hand() -> None:
    """Speed-up is relative to the fewest workers, and efficiency is speed-up per added worker."""
    got = speed_ups({8: 5.0, 2: 10.0, 4: 4.0, 16: None})
    assert list(got) == [2, 4, 8, 16]
    assert got[2] == (1.0, 1.0)
    assert got[4] == (2.5, 1.25)
    assert got[8] == (2.0, 0.5)
    assert got[16] == (None, None)


def test_speed_up_needs_the_fewest() -> None:
    """Where the fewest workers missed the target, no speed-up is claimed."""
    assert set(speed_ups({1: None, 2: 3.0}).values()) == {(None, None)}
    assert speed_ups({}) == {}


def test_tolerance_by_hand() -> None:
    """The range around the best value ends before the first cost above the tolerated one."""
    got = tolerance([0.1, 10.0, 1.0, 100.0, 0.01], [1.5, 1.0, 0.6, INF, 1.1])
    assert got == (1.0, 1.0, 10.0)
    assert tolerance([1.0, 2.0, 4.0], [3.0, 1.0, 1.9]) == (2.0, 2.0, 4.0)
    assert tolerance([1.0, 2.0, 4.0], [1.9, INF, 1.0]) == (4.0, 4.0, 4.0)


def test_tolerance_of_divergence_alone() -> None:
    """If every value diverged, the whole range is as good, and nothing to tolerate is an error."""
    assert tolerance([1.0, 2.0], [INF, INF]) == (1.0, 1.0, 2.0)
    with pytest.raises(ConfigError, match="at least one"):
        tolerance([], [])
