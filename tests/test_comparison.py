import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from small_setup import setup_of

import distsgd as ds
from distsgd import ConfigError
from distsgd.experiment import runs as jobs
from distsgd.experiment.execution import outcomes
from distsgd.experiment.runs import Place
from distsgd.fold.request import Hooks, RunRequest
from distsgd.report.comparison import load_comparison

ALGORITHMS = {"serial": ds.algorithms.serial(0.1), "Downpour": ds.algorithms.downpour(0.1)}
FLEETS = {"machines": ds.Fleet(3, ds.exponential(1.0)), "stale": ds.fixed_staleness(2)}


@pytest.fixture
def problem() -> ds.problems.Problem:
    """Return a noisy quadratic in two coordinates."""
    return ds.problems.quadratic([1.0, 2.0], noise=0.1)


@pytest.fixture
def found(problem: ds.problems.Problem) -> ds.Comparison:
    """Return two algorithms on two fleets over two seeds."""
    return ds.compare(ALGORITHMS, problem, FLEETS, updates=20, seeds=2, evaluations=4, target=0.5)


def test_everything_runs_once(found: ds.Comparison) -> None:
    """A comparison has one run per algorithm, fleet and seed, and each spends the same budget."""
    labels = [(one.algorithm, one.fleet, one.seed) for one in found.outcomes]
    assert len(set(labels)) == len(labels) == 8
    assert {one.run.history["update"][-1] for one in found.outcomes} == {20}


def test_a_comparison_prints_its_answer(found: ds.Comparison) -> None:
    """Printed, a comparison is its answer; its representation does not spill its runs."""
    assert "the target loss of 0.500" in str(found)
    assert len(repr(found)) < 500


def test_a_comparison_is_the_same_runs(found: ds.Comparison, problem: ds.problems.Problem) -> None:
    """A run of a comparison has the bits of the same run made alone."""
    alone = ds.simulate(ALGORITHMS["Downpour"], problem, FLEETS["machines"], updates=20, seed=1, evaluations=4)
    (same,) = (one.run for one in found.outcomes if (one.algorithm, one.fleet, one.seed) == ("Downpour", "machines", 1))
    assert same.x.tobytes() == alone.x.tobytes()
    assert same.hash == alone.hash


def test_the_target_does_not_end_a_run(found: ds.Comparison) -> None:
    """A run that meets the target goes on, so that budgets stay equal."""
    result = found.summary.results[0]
    assert result.time_to_target is not None
    assert result.time_to_target.reached > 0
    assert result.status == {"done": 2}


def test_algorithms_see_the_same_machines(problem: ds.problems.Problem) -> None:
    """Two algorithms with one cycle are served in the same order at the same times."""
    pair = {"one": ds.algorithms.downpour(0.1), "other": ds.algorithms.downpour(0.2)}
    found = ds.compare(pair, problem, FLEETS["machines"], updates=20, seeds=1)
    one, other = (outcome.run.trace.rows for outcome in found.outcomes)
    assert one.tobytes() == other.tobytes()


def test_a_single_fleet_needs_no_name(problem: ds.problems.Problem) -> None:
    """One fleet may be given as it is."""
    found = ds.compare(ALGORITHMS, problem, FLEETS["stale"], updates=4, seeds=1)
    assert list(found.summary.fleets) == ["fleet"]


def test_a_saved_comparison_comes_back(found: ds.Comparison, tmp_path: Path) -> None:
    """A loaded comparison has the numbers, and writes the page, of the one that was saved."""
    found.save(tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_bytes()
    loaded = load_comparison(tmp_path / "out")
    assert loaded.summary == found.summary
    loaded.report(tmp_path / "out")
    assert (tmp_path / "out" / "report.html").read_bytes() == page


def test_a_summary_is_strict_json(problem: ds.problems.Problem, tmp_path: Path) -> None:
    """A summary holds no NaN and no infinity, even if every run has diverged."""
    wild = {"wild": ds.algorithms.serial(1e9)}
    ds.compare(wild, problem, FLEETS, updates=60, seeds=1, target=0.1).save(tmp_path)
    text = (tmp_path / "summary.json").read_text()
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the summary"))
    assert {run["status"] for run in content["runs"]} == {"diverged"}
    assert all(run["diverged_at"] is not None for run in content["runs"])
    assert content["results"][0]["loss"] == [None, None, None]


def test_the_reference_names_every_key_of_a_summary(found: ds.Comparison, tmp_path: Path) -> None:
    """Every key of a summary and of its results stands in REFERENCE, in code."""
    found.save(tmp_path)
    content = json.loads((tmp_path / "summary.json").read_text())
    reference = (Path(__file__).parent.parent / "REFERENCE.md").read_text()
    for key in (*content, *content["results"][0], *content["runs"][0]):
        assert f"`{key}`" in reference


def test_another_configuration_is_not_overwritten(
    found: ds.Comparison, problem: ds.problems.Problem, tmp_path: Path
) -> None:
    """In one folder the report of another configuration is kept; the same one is written anew."""
    found.save(tmp_path)
    first = (tmp_path / "summary.json").read_bytes()
    found.save(tmp_path)
    assert len(list(tmp_path.glob("*.html"))) == 1
    ds.compare(ALGORITHMS, problem, FLEETS, updates=10, seeds=2).save(tmp_path)
    (kept,) = tmp_path.glob("summary-*.json")
    assert kept.read_bytes() == first
    assert len(list(tmp_path.glob("report-*.html"))) == 1
    assert (tmp_path / "summary.json").read_bytes() != first


def test_one_failure_does_not_stop_the_others(
    problem: ds.problems.Problem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A run that ends in an unexpected error is listed with it, and all others are there."""
    simulate = jobs.simulated

    def fail_once(request: RunRequest[ds.Fleet], hooks: Hooks) -> ds.Run:
        if request.algorithm is ALGORITHMS["Downpour"] and request.seed == 1:
            raise ZeroDivisionError("just once")
        return simulate(request, hooks)

    monkeypatch.setattr(jobs, "simulated", fail_once)
    found = ds.compare(ALGORITHMS, problem, FLEETS["stale"], updates=4, seeds=2)
    *others, last = (one.error for one in found.outcomes)
    assert others == [""] * 3
    assert re.fullmatch(rf"ZeroDivisionError: just once \({re.escape(__file__)}:\d+, in fail_once\)", last)
    found.save(tmp_path)
    assert load_comparison(tmp_path).summary == found.summary


def test_a_comparison_of_failures_alone_can_be_saved(
    problem: ds.problems.Problem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """If every run fails, the report says so."""

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("always")

    monkeypatch.setattr(jobs, "simulated", fail)
    ds.compare(ALGORITHMS, problem, FLEETS, updates=4, seeds=1).save(tmp_path)
    assert "ZeroDivisionError: always" in (tmp_path / "report.html").read_text()


def test_finished_runs_survive_an_interruption(problem: ds.problems.Problem, tmp_path: Path) -> None:
    """Each run is on disk before the next one begins."""
    setup = setup_of(ALGORITHMS, problem, FLEETS, {"updates": 3}, seeds=1)
    running = outcomes(setup, Place(tmp_path))
    for n_finished in (1, 2):
        last = next(running).run
        saved = {path.name for path in (tmp_path / "runs").iterdir()}
        assert len(saved) == n_finished
        assert np.array_equal(ds.load(tmp_path / "runs" / last.hash).x, last.x)


def test_what_cannot_run_on_a_fleet_is_left_out(problem: ds.problems.Problem) -> None:
    """A pair that cannot run is listed with its reason, and all others run."""
    pair = {"fine": ALGORITHMS["serial"], "few": ds.algorithms.synchronous(0.1, backup=3)}
    fleets = {"3": ds.Fleet(3), "4": ds.Fleet(4), "old": ds.stale_reads(ds.exponential(4.0))}
    found = ds.compare(pair, problem, fleets, updates=5, seeds=1)
    left_out = {one["fleet"]: one["reason"] for one in found.settings["left_out"]}
    assert set(left_out) == {"3", "old"}
    assert left_out["3"] == "backup must be < the number of workers (3), not 3"
    assert "stale_reads needs the cycle" in left_out["old"]
    ran = [(one.algorithm, one.fleet) for one in found.outcomes]
    assert ran == [("fine", "3"), ("fine", "4"), ("few", "4"), ("fine", "old")]


def test_what_cannot_run_is_not_tuned(problem: ds.problems.Problem) -> None:
    """No trial is made for a pair that is left out; where it cannot be tuned it does not run."""
    few = ds.Tunable(partial(ds.algorithms.synchronous, backup=2), {"learning_rate": ds.Range(0.1, 0.4)})
    fleets = {"2": ds.Fleet(2), "4": ds.Fleet(4)}
    pair = {"few": few, "fine": ALGORITHMS["serial"]}
    tuning = ds.Tuning(trials=2, refinements=0)
    found = ds.compare(pair, problem, fleets, updates=5, seeds=1, tuning=tuning)
    assert {trial.fleet for trial in found.trials} == {"4"}
    tuning = ds.Tuning(trials=2, refinements=0, fleet="2")
    found = ds.compare(pair, problem, fleets, updates=5, seeds=1, tuning=tuning)
    assert found.trials == []
    reasons = [one["reason"] for one in found.settings["left_out"]]
    assert reasons[1] == f"it cannot be tuned on 2: {reasons[0]}"


def test_nothing_that_can_run_is_an_error(problem: ds.problems.Problem) -> None:
    """If no algorithm can run on any fleet, the first reason is an error with both names."""
    few = {"few": ds.algorithms.synchronous(0.1, backup=3)}
    with pytest.raises(ConfigError, match=r"'few' on fleet '3': backup must be < .*\(3\)"):
        ds.compare(few, problem, {"3": ds.Fleet(3)}, updates=5)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "exactly one of .* as the budget"),
        ({"updates": 1, "epochs": 1.0}, "exactly one of"),
        ({"updates": 1, "seeds": 0}, "seeds"),
        ({"updates": 1, "batch": 0}, "batch"),
        ({"updates": 1, "evaluations": 0}, "evaluations"),
        ({"updates": 1, "target": float("nan")}, "target"),
    ],
)
def test_settings_are_checked_first(problem: ds.problems.Problem, settings: dict[str, float], says: str) -> None:
    """A setting out of bounds is an error that names it."""
    with pytest.raises(ConfigError, match=says):
        ds.compare(ALGORITHMS, problem, FLEETS, **settings)


def test_nothing_to_compare_is_an_error(problem: ds.problems.Problem) -> None:
    """No algorithm or no fleet is an error, not an empty report."""
    with pytest.raises(ConfigError, match="number of algorithms"):
        ds.compare({}, problem, FLEETS, updates=1)
    with pytest.raises(ConfigError, match="number of fleets"):
        ds.compare(ALGORITHMS, problem, {}, updates=1)


@pytest.mark.parametrize(
    ("content", "says"), [(b"{", "is damaged"), (b"{}", "is damaged"), (b'{"format": 99}', "has format 99, not 2")]
)
def test_a_damaged_comparison_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    """A summary that is cut off, empty, or of another format is refused by its path."""
    (tmp_path / "summary.json").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"summary\.json {says}"):
        load_comparison(tmp_path)


def test_a_missing_comparison_is_named(tmp_path: Path) -> None:
    """A folder without a comparison is named."""
    with pytest.raises(ConfigError, match="holds no comparison"):
        load_comparison(tmp_path)
