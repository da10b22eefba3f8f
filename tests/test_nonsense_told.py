"""What users are told: by commands, and of errors in their own code."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_setup import QUADRATIC, SERIAL, TOML

import distsgd as ds
from distsgd.report.numbers.summary import Outcome, Summary, summarise
from distsgd.report.warnings import warnings


def failing_summary(n_failed: int, n_runs: int) -> Summary:
    """Return the numbers of a comparison in which some runs failed."""
    found = ds.compare(SERIAL, QUADRATIC, ds.Fleet(1), updates=3, seeds=n_runs)
    error = "KeyError: 'feature' (mine.py:12, in loss)"
    outcomes = [
        Outcome(one.algorithm, one.fleet, one.seed, error=error, problem=one.problem) if place < n_failed else one
        for place, one in enumerate(found.outcomes)
    ]
    return summarise(outcomes, found.settings, is_complete=True)


@pytest.mark.parametrize(("n_failed", "says"), [(2, "All 2 runs"), (1, "1 of 2 runs")])
def test_an_error_of_a_user_is_told_with_its_place(n_failed: int, says: str) -> None:
    """A report names the error that ended runs, and the line of the user's own code."""
    (text,) = warnings(failing_summary(n_failed, 2))
    assert text == f"{says} failed with an error: KeyError: 'feature' (mine.py:12, in loss)."
    assert warnings(failing_summary(0, 1)) == []


def test_an_error_in_a_run_has_the_user_s_line() -> None:
    """A problem that fails late is told with file, line and function of the user's frame."""

    class Late(type(QUADRATIC)):
        def evaluate(self, x: np.ndarray) -> object:
            if np.abs(x).max() < 0.9:
                return {}["late"]
            return super().evaluate(x)

    late = Late(*(getattr(QUADRATIC, name) for name in ("curvature", "noise", "origin")))
    found = ds.compare(SERIAL, late, ds.Fleet(1), updates=9, seeds=1)
    (outcome,) = found.outcomes
    assert re.fullmatch(rf"KeyError: 'late' \({re.escape(__file__)}:\d+, in evaluate\)", outcome.error)


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Return the function that runs the command line, with an experiment in `mine.toml`."""
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(TOML)
    return call


def test_the_version_is_shown(call: Call) -> None:
    """`--version` prints the version, and nothing runs."""
    assert call("--version") == (0, f"distsgd {ds.__version__}\n", "")


@pytest.mark.parametrize("command", [(), ("compare",), ("run",), ("report",), ("submit",)])
def test_help_has_a_short_option(call: Call, command: tuple[str, ...]) -> None:
    """`-h` is `--help`, of the program and of each command."""
    assert call(*command, "-h") == call(*command, "--help")


def test_a_target_ends_a_run_on_request_only(call: Call) -> None:
    """A run spends its budget whatever the target, unless it is asked to end there."""
    run = ("run", "a", "--experiment", "mine.toml", "--set", "target=1.0")
    assert "seed 0: done" in call(*run)[1]
    assert "seed 0: target" in call(*run, "--until-target")[1]
    code, _, errors = call(*run[:-2], "--until-target")
    assert (code, "needs a loss as target, not none" in errors) == (2, True)


def test_warnings_are_sentences_on_the_command_line(call: Call) -> None:
    """A command shows what is hardly meant before it begins, once, and without source lines."""
    for command in (("run", "a", "--experiment", "mine.toml"), ("compare", "mine.toml")):
        code, _, errors = call(*command, "--set", "target=99")
        assert code == 0
        assert errors.startswith("warning: the target loss 99 is met before the first update")
        assert errors.count("\n") == 1


def test_workers_that_an_algorithm_cannot_use_are_left_out(call: Call) -> None:
    """A size that is impossible for one algorithm does not end the others."""
    Path("mine.toml").write_text(TOML + '[algorithms.b]\nalgorithm = "synchronous"\nlearning_rate = 0.1\nbackup = 2\n')
    code, said, _ = call("compare", "mine.toml", "--workers", "1,4", "--seeds", "1")
    assert code == 0
    assert "b did not run on 1 workers: backup must be < the number of workers (1)" in said
    code, _, errors = call("run", "b", "--experiment", "mine.toml", "--workers", "1")
    assert (code, "backup must be <" in errors) == (2, True)
