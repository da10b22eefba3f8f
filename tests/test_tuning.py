import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
from small_setup import setup_of

import distsgd as ds
from distsgd import ConfigError
from distsgd.experiment.runs import NOWHERE, Place, made
from distsgd.experiment.setup import Setup
from distsgd.experiment.target import Reference
from distsgd.experiment.trials import Trial, choose, tolerated
from distsgd.experiment.tuning import EVALUATIONS, Group, chosen, find_targets, groups, n_tuning_runs, tune
from distsgd.experiment.values import Range, Tunable, Tuning
from distsgd.fold.request import Hooks, RunRequest
from distsgd.report.comparison import load_comparison
from distsgd.report.numbers.summary import Outcome

RATE = {"learning_rate": Range(0.05, 5.0)}
FLEETS = {"fresh": ds.fixed_staleness(0), "stale": ds.fixed_staleness(3)}
ALGORITHMS = {
    "tuned": Tunable(ds.algorithms.downpour, RATE),
    "fixed": ds.algorithms.serial(0.1),
    "both": Tunable(ds.algorithms.downpour, RATE | {"n_push": Range(1, 3)}),
}


@pytest.fixture
def problem() -> ds.problems.Problem:
    """Return a quadratic whose best learning rate lies between 0.5 and 2."""
    return ds.problems.quadratic([0.5, 1.0])


def make_setup(problem: object, **changes: object) -> Setup:
    """Return a comparison with something to tune."""
    settings = {"seeds": 2, "evaluations": 2, "tuning": Tuning(trials=5, refinements=2)} | changes
    return setup_of(ALGORITHMS, problem, FLEETS, {"updates": 12}, **settings)


def test_every_algorithm_gets_the_same_trials(problem: ds.problems.Problem) -> None:
    """Each tunable algorithm has as many trials as every other one, on each fleet."""
    trials = tune(make_setup(problem), NOWHERE)
    counts = {(one.fleet, one.algorithm): 0 for one in trials}
    for one in trials:
        counts[one.fleet, one.algorithm] += 1
    assert counts == {(fleet, name): 7 for fleet in FLEETS for name in ("tuned", "both")}


def test_the_best_rate_of_a_quadratic_is_found(problem: ds.problems.Problem) -> None:
    """Without staleness the best rate is near 4/3, and staleness of 3 needs a far lower one."""
    setup = make_setup(problem)
    best = chosen(setup, tune(setup, NOWHERE))
    fresh = best[Group("quadratic", "fresh", "tuned")].hyper.learning_rate
    stale = best[Group("quadratic", "stale", "tuned")].hyper.learning_rate
    assert 0.8 < fresh < 2.0
    assert stale < fresh / 2
    assert best[Group("quadratic", "stale", "fixed")] is ALGORITHMS["fixed"]


def test_tuning_once_holds_for_every_fleet(problem: ds.problems.Problem) -> None:
    """Tuned on one fleet, an algorithm runs with the same values on all of them."""
    setup = make_setup(problem, tuning=Tuning(trials=3, refinements=0, fleet="stale"))
    trials = tune(setup, NOWHERE)
    assert {one.fleet for one in trials} == {"stale"}
    best = chosen(setup, trials)
    hyper = {best[Group("quadratic", fleet, "tuned")].hyper for fleet in FLEETS}
    assert len(hyper) == 1


def test_seeds_of_tuning_are_not_those_of_the_comparison(problem: ds.problems.Problem) -> None:
    """Trials have seeds of their own, and a seed that serves both is an error."""
    setup = make_setup(problem, tuning=Tuning(trials=2, refinements=0, seeds=2))
    assert {seed for one in tune(setup, NOWHERE) for seed in one.seeds} == {1000, 1001}
    with pytest.raises(ConfigError, match=r"tuning.seeds must not hold seeds .* such as 1"):
        make_setup(problem, tuning=Tuning(seeds=[1, 7]))


def test_the_number_of_runs_is_known_before(problem: ds.problems.Problem) -> None:
    """Tuning makes as many runs as a progress bar was told."""
    setup = make_setup(problem, tuning=Tuning(trials=3, refinements=1, seeds=2))
    assert sum(len(one.seeds) for one in tune(setup, NOWHERE)) == n_tuning_runs(setup)
    assert len(groups(setup)) == 4


def test_diverged_trials_are_results(problem: ds.problems.Problem) -> None:
    """A trial that diverged is recorded with its status and no loss, and is not chosen."""
    wild = Tunable(ds.algorithms.serial, {"learning_rate": Range(1.0, 1e200)})
    tuning = Tuning(trials=3, refinements=0, seeds=1)
    setup = setup_of({"wild": wild}, problem, FLEETS, {"updates": 12}, tuning=tuning)
    trials = tune(setup, NOWHERE)
    assert [one.status for one in trials[:3]] == [["done"], ["diverged"], ["diverged"]]
    assert [one.losses == [None] for one in trials[:3]] == [False, True, True]
    best = chosen(setup, trials)[Group("quadratic", "fresh", "wild")]
    assert best.hyper.learning_rate == 1.0


def test_a_failed_trial_is_recorded(problem: ds.problems.Problem) -> None:
    """A trial that ends in an unexpected error has the error and no loss; the others go on."""

    def fail_once(request: RunRequest[ds.Fleet], hooks: Hooks) -> ds.Run:
        if request.algorithm.hyper.learning_rate == 5.0:
            raise ZeroDivisionError("just there")
        return made(request, hooks)

    setup = make_setup(problem, tuning=Tuning(trials=3, refinements=0, seeds=1, fleet="fresh"))
    failed = [one for one in tune(setup, Place(make=fail_once)) if one.errors]
    assert [one.parameters for one in failed] == [{"learning_rate": 5.0}]
    assert failed[0].status == ["failed"]
    assert failed[0].errors[0].startswith("ZeroDivisionError: just there (")
    assert failed[0].losses == [None]


def test_trials_are_evaluated_a_few_times(problem: ds.problems.Problem) -> None:
    """However often the runs of a comparison are evaluated, a trial has a few points only."""
    seen: list[Outcome] = []
    tuning = Tuning(trials=2, refinements=0, seeds=1)
    setup = setup_of(ALGORITHMS, problem, FLEETS, {"updates": 90}, evaluations=90, tuning=tuning)
    tune(setup, NOWHERE, seen.append)
    assert {len(one.run.history) for one in seen} == {EVALUATIONS + 1}


TIMED = Tunable(ds.algorithms.serial, {"learning_rate": Range(0.05, 1.9)})
"""On a noisy quadratic a large rate is soonest at a coarse target, and a small one ends lower."""


@pytest.fixture
def noisy() -> ds.problems.Problem:
    """Return a quadratic whose gradients are noisy."""
    return ds.problems.quadratic([1.0] * 20, noise=0.3)


def test_tuning_is_for_what_is_judged(noisy: ds.problems.Problem) -> None:
    """With a target the soonest rate is chosen, and without one the rate that ends lowest."""
    tuning = Tuning(trials=5, refinements=0, seeds=3)
    setup = setup_of({"a": TIMED}, noisy, {"f": ds.Fleet(1)}, {"updates": 150}, tuning=tuning)
    timed, final = (tune(setup, NOWHERE, targets=own) for own in ({"quadratic": 3.0}, {}))
    assert [one.losses for one in timed] == [one.losses for one in final]
    by_time, by_loss = (chosen(setup, own)[Group("quadratic", "f", "a")].hyper.learning_rate for own in (timed, final))
    assert by_time > 2 * by_loss
    assert min(timed, key=lambda one: one.seconds).parameters["learning_rate"] == by_time
    assert min(final, key=lambda one: one.loss).parameters["learning_rate"] == by_loss


def test_times_of_trials_are_exact(noisy: ds.problems.Problem) -> None:
    """The time of a trial is that of the same run, evaluated after every update."""
    tuning = Tuning(trials=3, refinements=0, seeds=2)
    setup = setup_of({"a": TIMED}, noisy, {"f": ds.Fleet(1)}, {"updates": 90}, tuning=tuning)
    for trial in tune(setup, NOWHERE, targets={"quadratic": 3.0}):
        for seed, time in zip(trial.seeds, trial.times, strict=True):
            run = ds.simulate(
                ds.algorithms.serial(**trial.parameters), noisy, ds.Fleet(1), updates=90, seed=seed, evaluate_every=1
            )
            met = run.history.filter(run.history["loss"] <= 3.0)
            assert time == (met["seconds"][0] if len(met) else None)


def test_a_reference_is_tuned_for_its_loss(noisy: ds.problems.Problem) -> None:
    """A target by reference is that multiple of the loss at the rate that ends lowest."""
    tuning = Tuning(trials=5, refinements=0, seeds=3)
    setup = setup_of(
        {"a": TIMED, "b": TIMED},
        noisy,
        {"f": ds.Fleet(1)},
        {"updates": 150},
        tuning=tuning,
        target=Reference("a", factor=2.0),
    )
    (target,) = find_targets(setup, NOWHERE).values()
    best = min(tune(setup, NOWHERE), key=lambda one: one.loss).parameters
    runs = [
        ds.simulate(ds.algorithms.serial(**best), noisy, ds.Fleet(1), updates=150, seed=seed, evaluations=40)
        for seed in setup.seeds
    ]
    assert target.loss == 2.0 * sorted(run.history["loss"][-1] for run in runs)[1]
    assert "2 times the median final training loss of a on f (3 runs)" in target.origin


def test_a_target_is_a_number_or_nothing(noisy: ds.problems.Problem) -> None:
    """A number is the target of every problem; without one, or without a loss, there is none."""
    setup = setup_of({"a": TIMED}, noisy, {"f": ds.Fleet(1)}, {"updates": 4})
    assert find_targets(setup, NOWHERE) == {}
    (given,) = find_targets(replace(setup, target=0.5), NOWHERE).values()
    assert (given.loss, given.origin) == (0.5, "given")
    wild = {"a": ds.algorithms.serial(1e200)}
    (none,) = find_targets(replace(setup, algorithms=wild, target=Reference("a")), NOWHERE).values()
    assert none.loss is None
    assert "which has none" in none.origin


def trial(rate: float, *losses: float | None, times: Sequence[float | None] = ()) -> Trial:
    """Return a trial of a learning rate over as many seeds as losses."""
    n_seeds = len(losses)
    return Trial(
        "p",
        "few",
        "a",
        {"learning_rate": rate},
        list(range(n_seeds)),
        list(losses),
        ["done"] * n_seeds,
        [""] * n_seeds,
        times=list(times),
    )


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


def test_of_trials_that_missed_the_lower_loss_is_better() -> None:
    """A trial that met the target is before all that missed it, and those go by their loss."""
    late = trial(0.1, 0.4, 0.4, times=(9.0, 9.0))
    missed, worse = (trial(rate, loss, loss, times=(None, None)) for rate, loss in ((1, 0.2), (2, 0.3)))
    assert sorted([worse, missed, late], key=lambda one: one.cost) == [late, missed, worse]
    (tuned,) = choose([worse, missed])
    assert (tuned.parameters["learning_rate"], tuned.judged) == (1, "loss")
    (tuned,) = choose([worse, missed, late])
    assert (tuned.parameters["learning_rate"], tuned.judged) == (0.1, "seconds")


def test_choices_of_single_seeds_bracket_the_chosen_one() -> None:
    """What each seed of tuning would choose gives the range of values, and factors of times."""
    low = trial(0.1, 0.5, 0.5, 0.5, times=(10.0, 40.0, 20.0))
    high = trial(1.0, 0.25, 0.25, 0.25, times=(20.0, 10.0, 10.0))
    never = trial(9.0, 0.9, 0.9, 0.9, times=(None, None, None))
    (tuned,) = choose([low, high, never])
    assert tuned.parameters == {"learning_rate": 1.0}
    assert tuned.between == {"learning_rate": (0.1, 1.0)}
    # The geometric mean of 10 / 20, 40 / 10 and 20 / 10; the chosen trial itself is a factor of 1.
    assert tuned.seconds == pytest.approx((1.0, 4.0 ** (1 / 3)))
    assert tuned.loss == pytest.approx((1.0, 2.0))


def test_a_choice_that_missed_has_no_bound() -> None:
    """Where the choice of one seed missed the target on another, no factor bounds the time."""
    one = trial(0.1, 0.5, 0.5, 0.5, times=(10.0, None, None))
    other = trial(1.0, 0.5, 0.5, 0.5, times=(20.0, 10.0, 10.0))
    (tuned,) = choose([one, other])
    assert tuned.seconds.high == math.inf


def test_one_seed_of_tuning_knows_no_noise() -> None:
    """With one seed nothing is known of what another would have chosen."""
    (tuned,) = choose([trial(0.1, 0.5), trial(1.0, 0.4)])
    assert tuned.seconds == tuned.loss == (0.0, math.inf)


def test_a_width_is_known_to_the_next_value() -> None:
    """How wide a range is tolerated is known to the grid, and has no end at its edge."""
    tried = [trial(10.0**place, loss) for place, loss in enumerate((9.0, 0.2, 0.1, 9.0))]
    (width,) = tolerated(tried).values()
    assert width == pytest.approx((10.0, 1000.0))
    (open_end,) = tolerated(tried[1:]).values()
    assert open_end == (10.0, math.inf)
    assert tolerated([trial(1.0, None)]) == {}


def test_a_range_that_an_algorithm_refuses_is_named(problem: ds.problems.Problem) -> None:
    """A grid with values that the algorithm does not take is an error with its name."""
    bad = Tunable(partial(ds.algorithms.hogwild, 0.1), {"backoff": Range(0.5, 90.0)})
    with pytest.raises(ConfigError, match=r"tuning of 'bad': backoff .*; change the range"):
        tune(setup_of({"bad": bad}, problem, FLEETS, {"updates": 2}), NOWHERE)


def test_a_saved_comparison_keeps_its_trials(problem: ds.problems.Problem, tmp_path: object) -> None:
    """All trials and what they chose come back with a saved comparison."""
    found = ds.compare(ALGORITHMS, problem, FLEETS, updates=5, seeds=1, tuning=Tuning(trials=2, refinements=1))
    assert len(found.summary.trials) == 2 * 2 * 3
    found.save(tmp_path)
    assert load_comparison(tmp_path).summary == found.summary


def test_unknown_fleets_are_named(problem: ds.problems.Problem) -> None:
    """A fleet to tune on that is not compared is answered with the nearest."""
    with pytest.raises(ConfigError, match=r"unknown tuning.fleet 'stal'; did you mean 'stale'"):
        make_setup(problem, tuning=Tuning(fleet="stal"))
