from functools import partial

import pytest

import distsgd as ds
from distsgd import ConfigError, jobs
from distsgd.comparison import load_comparison
from distsgd.jobs import NOWHERE
from distsgd.report.summary import Outcome
from distsgd.search import Range, Tunable, Tuning
from distsgd.setup import Setup
from distsgd.tuning import EVALUATIONS, Group, chosen, groups, n_tuning_runs, tune

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
    return Setup(ALGORITHMS, problem, FLEETS, {"updates": 12}, **settings)


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
    tuning = Tuning(trials=3, refinements=0)
    setup = Setup({"wild": wild}, problem, FLEETS, {"updates": 12}, tuning=tuning)
    trials = tune(setup, NOWHERE)
    assert [one.status for one in trials[:3]] == [["done"], ["diverged"], ["diverged"]]
    assert [one.losses == [None] for one in trials[:3]] == [False, True, True]
    best = chosen(setup, trials)[Group("quadratic", "fresh", "wild")]
    assert best.hyper.learning_rate == 1.0


def test_a_failed_trial_is_recorded(
    problem: ds.problems.Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial that ends in an unexpected error has the error and no loss; the others go on."""
    simulate = jobs.simulate

    def fail_once(algorithm: object, *arguments: object, **settings: object) -> ds.Run:
        if algorithm.hyper.learning_rate == 5.0:
            raise ZeroDivisionError("just there")
        return simulate(algorithm, *arguments, **settings)

    monkeypatch.setattr(jobs, "simulate", fail_once)
    setup = make_setup(problem, tuning=Tuning(trials=3, refinements=0, fleet="fresh"))
    failed = [one for one in tune(setup, NOWHERE) if one.errors]
    assert [one.parameters for one in failed] == [{"learning_rate": 5.0}]
    assert failed[0].status == ["failed"]
    assert failed[0].errors[0].startswith("ZeroDivisionError: just there (")
    assert failed[0].losses == [None]


def test_trials_are_evaluated_a_few_times(problem: ds.problems.Problem) -> None:
    """However often the runs of a comparison are evaluated, a trial has a few points only."""
    seen: list[Outcome] = []
    setup = make_setup(problem, evaluations=12, tuning=Tuning(trials=2, refinements=0))
    tune(setup, NOWHERE, seen.append)
    assert {len(one.run.history) for one in seen} == {EVALUATIONS + 1}


def test_a_range_that_an_algorithm_refuses_is_named(problem: ds.problems.Problem) -> None:
    """A grid with values that the algorithm does not take is an error with its name."""
    bad = Tunable(partial(ds.algorithms.hogwild, 0.1), {"backoff": Range(0.5, 90.0)})
    with pytest.raises(ConfigError, match=r"tuning of 'bad': backoff .*; change the range"):
        tune(Setup({"bad": bad}, problem, FLEETS, {"updates": 2}), NOWHERE)


def test_a_saved_comparison_keeps_its_trials(
    problem: ds.problems.Problem, tmp_path: object
) -> None:
    """All trials and what they chose come back with a saved comparison."""
    found = ds.compare(
        ALGORITHMS, problem, FLEETS, updates=5, seeds=1, tuning=Tuning(trials=2, refinements=1)
    )
    assert len(found.summary.trials) == 2 * 2 * 3
    found.save(tmp_path)
    assert load_comparison(tmp_path).summary == found.summary


def test_unknown_fleets_are_named(problem: ds.problems.Problem) -> None:
    """A fleet to tune on that is not compared is answered with the nearest."""
    with pytest.raises(ConfigError, match=r"unknown tuning.fleet 'stal'; did you mean 'stale'"):
        make_setup(problem, tuning=Tuning(fleet="stal"))
