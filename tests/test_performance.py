import math

import pytest

from distsgd import ConfigError
from distsgd.statistics.performance import performance_profiles, speed_ups, tolerance

INF = math.inf


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
