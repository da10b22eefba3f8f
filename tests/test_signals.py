import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from simulated_launch import launched

import distsgd as ds
from distsgd.commands.signals import stop_asked, terminable
from distsgd.experiment import runs as jobs
from distsgd.fold.request import Hooks
from distsgd.live.options import LiveRequest

Call: TypeAlias = Callable[..., tuple[int, str, str]]

EXPERIMENT = """
updates = 20
seeds = 1
evaluations = 4
engine = ["simulate", "local"]

[problem]
name = "quadratic"
curvature = [1.0, 2.0]

[algorithms.mine]
algorithm = "downpour"
learning_rate = 0.1

[algorithms.racing]
algorithm = "hogwild"
learning_rate = 0.1

[fleets.two]
workers = 2

[fleets.many]
workers = 1000
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the path of a small experiment."""
    path = tmp_path / "experiment.toml"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture
def call(call: Call, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Return the function that runs the command line, with live runs that are none."""
    monkeypatch.setattr(jobs, "launched", launched)
    return call


def signalled(number: int) -> Callable[..., ds.Run]:
    """Return a launcher that gets a signal, and stops when it is asked to."""

    def interrupted(request: LiveRequest, hooks: Hooks) -> ds.Run:
        os.kill(os.getpid(), number)
        assert hooks.stop()
        return launched(request, hooks)

    return interrupted


def test_a_run_on_an_engine(call: Call, file: Path, tmp_path: Path) -> None:
    """A run is on the engine that is asked for, else on the first one of the experiment."""
    out = tmp_path / "run"
    one = ("run", "mine", "--experiment", file, "--out", out)
    for options, on, kind in (
        ((), "two", "fleet"),
        (("--on", "local"), "two, live", "local"),
        (("--set", "engine=local"), "two, live", "local"),
        (("--on", "simulate"), "two", "fleet"),
    ):
        code, said, errors = call(*one, *options)
        assert (code, errors) == (0, "")
        assert f"mine on {on}, seed 0: done" in said
        assert ds.load(out).settings["fleet"]["kind"] == kind


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_live_run_that_is_stopped_is_saved(
    call: Call, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A signal ends a live run, which is saved and told; the exit code is that of the signal."""
    monkeypatch.setattr(jobs, "launched", signalled(number))
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    out = tmp_path / "run"
    code, said, _ = call("run", "mine", "--experiment", file, "--on", "local", "--out", out)
    assert code == 128 + number
    assert "mine on two, live, seed 0: stopped after 0 updates" in said
    assert ds.load(out).status == "stopped"
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_signal_does_not_wait() -> None:
    """Who presses Ctrl-C again ends the command at once."""
    with stop_asked() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.code == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), terminable():
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_comparison_that_is_terminated_keeps_what_has_finished(
    call: Call, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM in a live run leaves the simulated ones and their report; exit code 143."""
    monkeypatch.setattr(jobs, "launched", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    few = ("--workers", "2", "--out", tmp_path / "out")
    code, said, errors = call("compare", file, *few)
    assert code == 143
    assert "4 of 6 runs had finished" in errors
    assert "was stopped" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("mine", "--on", "locl"), "unknown engine 'locl'; did you mean 'local'"),
        (("mine", "--on", "local", "--set", "live.delai=1"), "did you mean 'delay'"),
        (("mine", "--on", "local", "--fleet", "many"), "workers must be <= 64 on one machine"),
        (("mine", "--on", "local", "--fleet", "mani"), "unknown fleet 'mani'"),
        (("racing", "--on", "local"), "lock-free workers need sparse data"),
    ],
)
def test_a_mistake_about_an_engine_is_one_sentence(
    call: Call, file: Path, arguments: tuple[str, ...], says: str
) -> None:
    """A mistake gives one line on stderr that names it, and exit code 2."""
    code, said, errors = call("run", arguments[0], "--experiment", file, *arguments[1:])
    assert (code, said, errors.count("\n")) == (2, "", 1)
    assert says in errors
