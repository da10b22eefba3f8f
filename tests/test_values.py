import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsgd import ConfigError
from distsgd.algorithms import registry
from distsgd.experiment.values import Range, Tunable, Tuning, grid, refined

RATE = {"learning_rate": Range(0.01, 100.0)}
BOTH = {"learning_rate": Range(0.01, 1.0), "bound": Range(1, 8)}
INF = math.inf


def tried(*rates: float) -> list[dict[str, float]]:
    """Return the values of trials of a learning rate."""
    return [{"learning_rate": rate} for rate in rates]


def test_a_grid_is_logarithmic() -> None:
    """A grid has both ends of its range, and equal ratios between neighbours."""
    assert grid(RATE, 5) == tried(0.01, 0.1, 1.0, 10.0, 100.0)


def test_a_grid_of_whole_numbers() -> None:
    """A range with whole ends holds whole numbers only, each once."""
    assert [one["period"] for one in grid({"period": Range(1, 8)}, 4)] == [1, 2, 4, 8]
    assert [one["period"] for one in grid({"period": Range(1, 3)}, 6)] == [1, 2, 3]


@settings(deadline=None)  # the first call imports scipy
@given(st.integers(2, 20))
def test_several_parameters_fill_their_box(trials: int) -> None:
    """With several parameters there are as many trials, all inside of the ranges."""
    found = grid(BOTH, trials)
    assert len(found) == trials
    assert all(0.01 <= one["learning_rate"] <= 1.0 for one in found)
    assert all(one["bound"] in range(1, 9) for one in found)


@pytest.mark.parametrize(
    ("losses", "next_rate"),
    [
        ([0.1, 0.2, 0.3], 0.1),
        ([0.3, 0.2, 0.1], 1000.0),
        ([0.3, 0.1, 0.2], 10**1.5),
        ([0.2, 0.1, 0.3], 10**0.5),
        ([INF, 0.1, INF], 10**0.5),
        ([INF, INF, INF], 0.1),
    ],
)
def test_the_search_goes_where_the_best_points(losses: Sequence[float], next_rate: float) -> None:
    """From an edge the search goes one step beyond, else halfway to the better neighbour."""
    got = refined(RATE, tried(1.0, 10.0, 100.0), losses)
    assert got == {"learning_rate": pytest.approx(next_rate, rel=1e-5)}


def test_order_of_trials_does_not_count() -> None:
    """The next value depends on what was tried, not on when."""
    got = refined(RATE, tried(100.0, 1.0, 10.0), [0.3, 0.1, 0.2])
    assert got == refined(RATE, tried(1.0, 10.0, 100.0), [0.1, 0.2, 0.3])


def test_nothing_is_tried_twice() -> None:
    """Between two whole neighbours there is nothing left to try; several parameters go on."""
    period = {"period": Range(1, 8)}
    assert refined(period, [{"period": 1}, {"period": 2}, {"period": 4}], [0.2, 0.1, 0.3]) is None
    first = grid(BOTH, 4)
    following = refined(BOTH, first, [0.1] * 4)
    assert following == grid(BOTH, 5)[-1]
    assert following not in first


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Range(1.0, 1.0), "high must be > low .*not 1.0; the grid is empty"),
        (lambda: Range(0.0, 1.0), "low must be > 0"),
        (lambda: Tuning(trials=0), "tuning.trials must be a whole number >= 1, not 0"),
        (lambda: Tuning(trials=1), "tuning.trials must be >= 2"),
        (lambda: Tuning(refinements=-1), "tuning.refinements"),
        (lambda: Tuning(seeds=[]), "number of tuning.seeds"),
        (lambda: Tuning(seeds=[-1]), "seed must be"),
        (lambda: Tunable(registry["serial"].constructor, {}), "number of tuned parameters"),
    ],
)
def test_an_empty_search_is_an_error(make: object, says: str) -> None:
    """A grid without points, seeds or parameters is an error that says what is wrong."""
    with pytest.raises(ConfigError, match=says):
        make()
