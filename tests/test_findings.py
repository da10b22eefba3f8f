import math
from collections.abc import Sequence

import pytest

from distsgd import ConfigError
from distsgd.experiment.target import Reference
from distsgd.experiment.trials import Tuned
from distsgd.report.numbers.findings import (
    Tunings,
    by_case,
    compared,
    contrasts,
    first_of,
    growths,
    profiles,
    scaling,
    table_of,
)
from distsgd.report.numbers.measurements import Measurement
from distsgd.statistics.inference import Factors, Known, compare_all

MACHINES = {"kind": "fleet", "workers": 1, "latency": 0.1}
MISSED = Known(9.0, math.inf)


def exact(value: float | None) -> Known:
    """Return a number that is known exactly, or a miss."""
    return MISSED if value is None else Known(value, value)


def measurements(
    times: Sequence[float | None],
    *,
    algorithm: str = "a",
    fleet: str = "few",
    problem: str = "p",
    losses: Sequence[float | None] = (),
) -> list[Measurement]:
    """Return a measurement per seed, of runs with two workers."""
    known = losses or [1.0] * len(times)
    return [
        Measurement(
            problem,
            fleet,
            algorithm,
            seed,
            exact(time),
            exact(None if time is None else 2 * time),
            exact(loss),
            None,
            0.0,
        )
        for seed, (time, loss) in enumerate(zip(times, known, strict=True))
    ]


def test_a_reference_has_a_positive_factor() -> None:
    """A target that an algorithm sets is a positive multiple of its loss."""
    with pytest.raises(ConfigError, match="factor must be > 0"):
        Reference("a", factor=0.0)


def test_contrasts_are_against_the_first() -> None:
    """Each algorithm is compared with the lowest median of its problem and fleet, seed by seed."""
    found = measurements([2.0, 4.1, 6.0]) + measurements([1.0, 2.0, 3.1], algorithm="b")
    seconds, machine, loss = contrasts(compared(found))
    assert [one.quantity for one in (seconds, machine, loss)] == ["seconds", "machine_seconds", "loss"]
    assert (seconds.algorithm, seconds.against, seconds.n_pairs) == ("a", "b", 3)
    assert seconds.median == pytest.approx(2.0, rel=0.02)
    assert seconds.is_settled
    assert machine.median == pytest.approx(seconds.median)
    assert (loss.median, loss.is_settled) == (pytest.approx(1.0), False)


def test_intervals_are_those_of_all_algorithms_together() -> None:
    """A contrast has the simultaneous interval of the table of all algorithms."""
    found = measurements([2.0, 4.1, 6.0]) + measurements([1.0, 2.0, 3.1], algorithm="b")
    found += measurements([5.0, 5.5, 4.0], algorithm="c")
    table = table_of(found, "seconds")
    for one in contrasts(compared(found)):
        if one.quantity == "seconds":
            ratio = compare_all(table).ratio(one.algorithm, one.against)
            assert (one.low, one.median, one.high) == ratio[:3]


def test_the_noise_of_tuning_is_in_the_interval() -> None:
    """An order that another seed of tuning could turn round is not settled."""
    found = measurements([2.0, 4.1, 6.0]) + measurements([1.0, 2.0, 3.1], algorithm="b")
    noisy = Tuned("p", "few", "b", {}, 9, [], seconds=Factors(1.0, 3.0), loss=Factors(1.0, 1.0))
    (seconds,) = (one for one in contrasts(compared(found, Tunings([noisy]))) if one.quantity == "seconds")
    (plain,) = (one for one in contrasts(compared(found)) if one.quantity == "seconds")
    assert plain.is_settled
    assert not seconds.is_settled
    assert seconds.low == pytest.approx(plain.low / 3)
    assert seconds.high == pytest.approx(plain.high)


def test_noise_is_that_of_the_fleet_that_was_tuned_on() -> None:
    """A live fleet has the noise of the one that it takes after, and others have none."""
    tuned = Tuned("p", "few", "b", {}, 9, [], seconds=Factors(1.0, 3.0))
    tunings = Tunings([tuned], {"few, live": "few"})
    assert tunings.noise("p", "few, live", "seconds") == {"b": Factors(1.0, 3.0)}
    assert tunings.noise("p", "many", "seconds") == {}
    assert tunings.noise("p", "few", "loss_at_equal_time") == {"b": Factors(0.0, math.inf)}


def test_the_first_may_have_missed_less_than_half() -> None:
    """A miss is later than every time in a median; without any median there is no first."""
    table = table_of(measurements([1.0, 2.0, None]) + measurements([3.0, 3.0, 3.0], algorithm="b"), "seconds")
    assert first_of(table) == "a"
    assert first_of(table_of(measurements([1.0, None, None]), "seconds")) is None


def test_no_algorithm_is_first_where_all_missed() -> None:
    """A target that was not reached gives no contrast of times, no profile and no scaling."""
    found = measurements([None, None]) + measurements([None, 1.0], algorithm="b")
    assert {one.quantity for one in contrasts(compared(found))} == {"loss"}
    assert profiles(found) == []
    assert scaling(found, {"few": MACHINES}) == []


def test_a_single_algorithm_has_no_contrast() -> None:
    """One algorithm alone is compared with no other, and is the first in its profile."""
    assert contrasts(compared(measurements([1.0, 2.0]))) == []
    (alone,) = profiles(measurements([1.0, 2.0]))
    assert (alone.factor, alone.share) == ([1.0], [1.0])


def test_profiles_count_pairs_of_problem_and_fleet() -> None:
    """A profile has one case per pair of problem and fleet, and absence from one is a miss."""
    found = measurements([1.0]) + measurements([2.0], algorithm="b")
    found += measurements([3.0], fleet="many") + measurements([3.0], problem="q")
    shares = {one.algorithm: (one.factor, one.share) for one in profiles(found)}
    assert shares["a"] == ([1.0], [1.0])
    assert shares["b"] == ([1.0, 2.0], [0.0, pytest.approx(1 / 3)])
    assert len(by_case(found)) == 3


def test_scaling_joins_fleets_that_differ_in_workers_only() -> None:
    """Speed-up is drawn over fleets with equal settings but for the workers, and over no others."""
    fleets = {
        "many": MACHINES | {"workers": 4},
        "few": MACHINES,
        "slow": MACHINES | {"latency": 9.0},
        "stale": {"kind": "stale_reads"},
    }
    found = measurements([8.0]) + measurements([4.0], fleet="many") + measurements([1.0], fleet="slow")
    (line,) = scaling(found, fleets)
    assert (line.fleets, line.workers) == (["few", "many"], [1, 4])
    assert (line.seconds, line.speed_up, line.efficiency) == ([8.0, 4.0], [1.0, 2.0], [1.0, 0.5])
    assert (line.low[1], line.high[1]) == (None, None)


def test_a_speed_up_has_an_interval_over_seeds() -> None:
    """The speed-up lies in its interval, which is open below where many workers missed."""
    fleets = {"few": MACHINES, "many": MACHINES | {"workers": 4}}
    few = measurements([8.0, 9.0, 8.5, 8.2, 9.1])
    (line,) = scaling(few + measurements([4.0, 4.2, 4.4, 4.1, 4.3], fleet="many"), fleets)
    assert (line.low[0], line.high[0]) == (1.0, 1.0)
    assert 1.8 < line.low[1] < line.speed_up[1] < line.high[1] < 2.3
    (line,) = scaling(few + measurements([4.0, 4.2, 4.4, 4.1, None], fleet="many"), fleets)
    assert line.low[1] < 1.8


def test_what_suffered_most_is_settled_against_all() -> None:
    """Growth is the loss of the stale fleet over that of the fresh one; rivals are not settled."""
    fresh = [
        *measurements([1.0] * 4, losses=[0.1, 0.11, 0.1, 0.12]),
        *measurements([1.0] * 4, algorithm="b", losses=[0.1, 0.11, 0.1, 0.12]),
    ]
    stale = [
        *measurements([1.0] * 4, fleet="far", losses=[0.2, 0.22, 0.21, 0.24]),
        *measurements([1.0] * 4, algorithm="b", fleet="far", losses=[0.8, 0.9, 0.8, 0.96]),
    ]
    most, least = growths([*fresh, *stale], "few", "far", Tunings())
    assert (most.algorithm, least.algorithm) == ("b", "a")
    assert most.median == pytest.approx(8.0, rel=0.05)
    assert least.low < 2.0 < least.high
    assert most.rivals == least.rivals == []
    for one in growths([*fresh, *stale[:4], *fresh[4:]], "few", "far", Tunings()):
        assert one.algorithm == "a"


def test_the_noise_of_tuning_is_in_a_growth() -> None:
    """The interval of a growth is as wide as other choices of tuning could make it."""
    found = measurements([1.0] * 3, losses=[0.1, 0.11, 0.12])
    found += measurements([1.0] * 3, fleet="far", losses=[0.2, 0.23, 0.25])
    noisy = Tuned("p", "far", "a", {}, 9, [], loss=Factors(0.5, 3.0))
    (plain,) = growths(found, "few", "far", Tunings())
    (wide,) = growths(found, "few", "far", Tunings([noisy]))
    assert (wide.low, wide.high) == pytest.approx((0.5 * plain.low, 3.0 * plain.high))
