import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd import ConfigError
from distsgd.statistics.spreads import Curve, band, band_name, held, median_time, shares, spread

INF, NAN = math.inf, math.nan


def curve(positions: list[float], values: list[float], *, is_diverged: bool = False) -> Curve:
    """Return a run with these losses."""
    return Curve(np.array(positions, float), np.array(values, float), is_diverged)


def test_a_run_keeps_its_value_until_the_next_evaluation() -> None:
    """Between two evaluations the earlier value holds; before the first and after the last none."""
    got = held(curve([1, 2, 4], [9, 8, 7]), np.array([0.5, 1, 1.5, 2, 3.9, 4, 4.1]))
    assert np.array_equal(got, [NAN, 9, 9, 8, 8, 7, NAN], equal_nan=True)


def test_a_diverged_run_stays_infinite() -> None:
    """A run that diverged counts as infinite from its first loss that is not finite, for ever."""
    got = held(curve([0, 1, 2], [9, 50, NAN], is_diverged=True), np.array([0.0, 1.5, 2.0, 99.0]))
    assert got.tolist() == [9, 50, INF, INF]


def test_a_band_of_three_seeds_by_hand() -> None:
    """With three seeds the band spans all of them, and ends where the first of them ends."""
    curves = [curve([0, 1, 2], [6, 3, 1]), curve([0, 1, 2], [6, 5, 2]), curve([0, 1, 3], [6, 4, 0])]
    got = band(curves)
    assert got.positions.tolist() == [0, 1, 2]
    assert got.low.tolist() == [6, 3, 1]
    assert got.median.tolist() == [6, 4, 2]
    assert got.high.tolist() == [6, 5, 4]


def test_a_diverged_run_does_not_shorten_the_band() -> None:
    """One diverged seed of three opens the band upwards; the median goes on to the others' end."""
    lost = curve([0, 1], [6, NAN], is_diverged=True)
    got = band([curve([0, 1, 2], [6, 3, 1]), curve([0, 1, 2], [6, 5, 2]), lost])
    assert got.positions.tolist() == [0, 1, 2]
    assert got.median.tolist() == [6, 5, 2]
    assert got.high.tolist() == [6, INF, INF]


def test_ten_seeds_have_quantiles() -> None:
    """From ten seeds on the band spans the observed values at 10 % and 90 %."""
    got = spread(np.arange(11.0))
    assert got == (1.0, 5.0, 9.0)
    assert "10 % to the 90 %" in band_name(11)


@pytest.mark.parametrize(("seeds", "words"), [(1, "no band"), (3, "minimum to maximum of 3 seeds")])
def test_the_band_is_named(seeds: int, words: str) -> None:
    """What a band spans is said in words; one seed has none."""
    assert words in band_name(seeds)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_a_spread_is_ordered_and_observed(values: list[float]) -> None:
    """A band encloses its median, and its ends are values that occurred."""
    low, median, high = spread(np.array(values))
    assert low <= median <= high
    assert {low, high} <= set(values)


def test_what_is_not_finite_counts_as_worst() -> None:
    """A lost value is the worst one: infinite for a loss, minus infinite for an accuracy."""
    values = np.array([0.5, NAN, 0.7])
    assert spread(values) == (0.5, 0.7, INF)
    assert spread(values, worst=-INF) == (-INF, 0.5, 0.7)


def test_statistics_of_nothing_are_an_error() -> None:
    """No run has no median: that is an error, not a default."""
    for make in (lambda: spread(np.array([])), lambda: median_time([]), lambda: band([])):
        with pytest.raises(ConfigError, match="at least one"):
            make()


@pytest.mark.parametrize(
    ("times", "median"), [([3, None, 1], 3), ([None, None, 1], None), ([4, 2], 3), ([4, None], None), ([None], None)]
)
def test_a_miss_is_later_than_every_time(times: list[float | None], median: float | None) -> None:
    """A median time counts misses as late; it does not leave them out, nor put them at the end."""
    assert median_time(times) == median


def test_shares_by_hand() -> None:
    """Shares are those of equal bins, and empty data have shares of 0."""
    got = shares(np.array([0, 0, 1, 5]), bins=3, highest=5)
    assert got.low.tolist() == [0, 2, 4]
    assert got.high.tolist() == [2, 4, 6]
    assert got.share.tolist() == [0.75, 0.0, 0.25]
    assert shares(np.array([], dtype=np.int64), bins=3, highest=5).share.tolist() == [0, 0, 0]


@given(st.lists(st.integers(0, 1000), min_size=1), st.integers(1, 50))
def test_shares_add_up(values: list[int], bins: int) -> None:
    """Every value falls into one bin, and there are no more bins than asked for."""
    got = shares(np.array(values), bins=bins, highest=max(values))
    assert got.share.sum() == pytest.approx(1.0, rel=1e-12)
    assert len(got.low) <= bins
