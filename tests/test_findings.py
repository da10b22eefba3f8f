from collections.abc import Sequence

import pytest

from distsgd import ConfigError
from distsgd.report.findings import (
    Mark,
    Reference,
    contrasts,
    find_targets,
    profiles,
    scaling,
)  # fmt: skip
from distsgd.report.trials import Trial, choose

MACHINES = {"kind": "fleet", "workers": 1, "latency": 0.1}


def marks(
    times: Sequence[float | None], *, algorithm: str = "a", fleet: str = "few", problem: str = "p",
    losses: Sequence[float | None] = (),
) -> list[Mark]:  # fmt: skip
    """Return a mark per seed."""
    known = losses or [1.0] * len(times)
    return [
        Mark(problem, fleet, algorithm, seed, *pair)
        for seed, pair in enumerate(zip(times, known, strict=True))
    ]


def trial(rate: float, *losses: float | None, algorithm: str = "a") -> Trial:
    """Return a trial of a learning rate over as many seeds as losses."""
    n_seeds = len(losses)
    return Trial(
        "p", "few", algorithm, {"learning_rate": rate}, list(range(n_seeds)), list(losses),
        ["done"] * n_seeds, [""] * n_seeds,
    )  # fmt: skip


def test_a_reference_sets_the_target_of_its_problem() -> None:
    """A target by reference is a factor times the reference's median final loss, per problem."""
    found = marks([None] * 3, losses=[0.2, 0.1, 0.4]) + marks(
        [None] * 2, problem="q", losses=[2.0, None]
    )
    target = find_targets(found, Reference("a", factor=1.5))
    assert target["p"].loss == pytest.approx(0.3)
    assert "1.5 times the median final training loss of a on few (3 runs)" in target["p"].origin
    assert target["q"].loss is None
    assert "which has none" in target["q"].origin


def test_a_given_target_holds_for_every_problem() -> None:
    """A number is the target everywhere, and without any there is none."""
    found = marks([1.0]) + marks([1.0], problem="q")
    assert {name: one.loss for name, one in find_targets(found, 0.5).items()} == {
        "p": 0.5, "q": 0.5,
    }  # fmt: skip
    assert find_targets(found, None) == {}
    with pytest.raises(ConfigError, match="factor must be > 0"):
        Reference("a", factor=0.0)


def test_contrasts_are_against_the_first() -> None:
    """Everybody is compared with the lowest median of the same problem and fleet, seed by seed."""
    found = marks([2.0, 4.0, 6.0]) + marks([1.0, 1.0, 2.0], algorithm="b")
    seconds, loss = contrasts(found)
    assert (seconds.algorithm, seconds.against, seconds.quantity) == ("a", "b", "seconds")
    assert (seconds.low, seconds.median, seconds.high, seconds.n_pairs) == (2.0, 3.0, 4.0, 3)
    assert (loss.quantity, loss.median) == ("loss", 1.0)


def test_nobody_is_first_where_everybody_missed() -> None:
    """A target that nobody reached gives no contrast of times, no profile and no scaling."""
    found = marks([None, None]) + marks([None, 1.0], algorithm="b")
    assert {one.quantity for one in contrasts(found)} == {"loss"}
    assert profiles(found) == []
    assert scaling(found, {"few": MACHINES}) == []


def test_a_single_algorithm_has_no_contrast() -> None:
    """One algorithm alone is compared with nobody, and is the first in its profile."""
    assert contrasts(marks([1.0, 2.0])) == []
    (alone,) = profiles(marks([1.0, 2.0]))
    assert (alone.factor, alone.share) == ([1.0], [1.0])


def test_profiles_count_pairs_of_problem_and_fleet() -> None:
    """A profile has one case per pair of problem and fleet, and absence from one is a miss."""
    found = marks([1.0]) + marks([2.0], algorithm="b")
    found += marks([3.0], fleet="many") + marks([3.0], problem="q")
    shares = {one.algorithm: (one.factor, one.share) for one in profiles(found)}
    assert shares["a"] == ([1.0], [1.0])
    assert shares["b"] == ([1.0, 2.0], [0.0, pytest.approx(1 / 3)])


def test_scaling_joins_fleets_that_differ_in_workers_only() -> None:
    """Speed-up is drawn over fleets with equal settings but for the workers, and over no others."""
    fleets = {
        "many": MACHINES | {"workers": 4}, "few": MACHINES, "slow": MACHINES | {"latency": 9.0},
        "stale": {"kind": "stale_reads"},
    }  # fmt: skip
    found = marks([8.0]) + marks([4.0], fleet="many") + marks([1.0], fleet="slow")
    (line,) = scaling(found, fleets)
    assert (line.fleets, line.workers) == (["few", "many"], [1, 4])
    assert (line.seconds, line.speed_up, line.efficiency) == ([8.0, 4.0], [1.0, 2.0], [1.0, 0.5])


def test_the_best_trial_has_the_lowest_median() -> None:
    """The chosen value has the lowest median loss over seeds, in which a lost run is infinite."""
    tried = [trial(0.1, 0.5, 0.6), trial(1.0, 0.1, 0.3), trial(10.0, 0.01, None)]
    (tuned,) = choose(tried)
    assert (tuned.parameters, tuned.n_trials, tuned.at_edge) == ({"learning_rate": 1.0}, 3, [])
    assert tuned.tolerance == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("losses", [(0.1, 0.2, 0.3), (0.3, 0.2, 0.1), (None, None, None)])
def test_a_best_value_at_the_edge_is_said(losses: Sequence[float | None]) -> None:
    """If the lowest or the highest value is the best, or all are lost, the parameter is named."""
    tried = [trial(10.0**place, loss) for place, loss in enumerate(losses)]
    assert choose(tried)[0].at_edge == ["learning_rate"]
