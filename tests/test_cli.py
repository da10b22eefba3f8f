import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from distsgd import ConfigError
from distsgd.algorithms import registry
from distsgd.commands import actions as commands
from distsgd.commands.actions import whole_numbers
from distsgd.experiment import runs as jobs
from distsgd.fold.request import Hooks, RunRequest
from distsgd.live.machine.folder import locked
from distsgd.order.fleet import Fleet
from distsgd.run import Run

Call: TypeAlias = Callable[..., tuple[int, str, str]]

EXPERIMENT = """
updates = 10
seeds = 1
evaluations = 2

[problem]
name = "quadratic"
curvature = [1.0, 2.0]

[algorithms.mine]
algorithm = "downpour"
learning_rate = 0.1

[algorithms.other]
algorithm = "serial"
learning_rate = 0.1

[fleets.machines]
workers = 2
compute = "lognormal(2.0, 0.5)"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the path of a small experiment."""
    path = tmp_path / "experiment.toml"
    path.write_text(EXPERIMENT)
    return path


def test_compare_writes_a_report(call: Call, file: Path, tmp_path: Path) -> None:
    """A comparison prints its table and answer, and writes page, summary and runs."""
    out = tmp_path / "out"
    code, said, errors = call("compare", file, "--out", out)
    assert (code, errors) == (0, "")
    assert "mine" in said
    assert "Lowest median training loss" in said
    assert {path.name for path in out.iterdir()} == {"report.html", "summary.json", "runs"}
    assert len(list((out / "runs").iterdir())) == 2


def test_the_same_command_computes_nothing_again(
    call: Call, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second call finds every run, leaves nothing of its lock, and writes the same report."""
    out = tmp_path / "out"
    call("compare", file, "--out", out)
    page = (out / "report.html").read_bytes()
    monkeypatch.setattr(jobs, "simulated", lambda *_, **__: pytest.fail("computed again"))
    assert call("compare", file, "--out", out)[0] == 0
    assert (out / "report.html").read_bytes() == page
    assert {path.name for path in out.iterdir()} == {"report.html", "summary.json", "runs"}


def test_a_folder_in_use_is_refused(call: Call, file: Path, tmp_path: Path) -> None:
    """While a comparison works in a folder, neither another one nor a report writes there."""
    out = tmp_path / "out"
    call("compare", file, "--out", out)
    with locked(out):
        for command in (("compare", file, "--out", out), ("report", out)):
            code, said, errors = call(*command)
            assert (code, said) == (2, "")
            assert "is in use by process" in errors


def test_a_report_before_the_first_run(call: Call, tmp_path: Path) -> None:
    """A report that is asked for before a comparison has finished says how to go on."""
    (tmp_path / "runs").mkdir()
    code, _, errors = call("report", tmp_path)
    assert code == 2
    assert "has no report yet: its comparison has not finished; run it again to go on" in errors


def test_figures_and_timelines_are_written(call: Call, file: Path, tmp_path: Path) -> None:
    """A report writes its figures in the kind that was asked for, and a run its timeline."""
    out = tmp_path / "out"
    call("compare", file, "--out", out)
    code, said, _ = call("report", out, "--figures", "csv")
    assert code == 0
    assert f"{len(list((out / 'figures').glob('*.csv')))} files into" in said
    code, _, errors = call("report", out, "--figures", "pdff")
    assert (code, "did you mean 'pdf'" in errors) == (2, True)
    (one, _) = (out / "runs").iterdir()
    assert call("trace", one, "--perfetto", tmp_path / "t.json")[0] == 0
    assert b"traceEvents" in (tmp_path / "t.json").read_bytes()


def test_a_change_reaches_the_runs(call: Call, file: Path, tmp_path: Path) -> None:
    """A value on the command line takes the place of that in the file, for both commands."""
    change = ("--set", "fleets.machines.compute=exponential(3.0)")
    call("run", "mine", "--experiment", file, *change, "--out", tmp_path / "run")
    call("compare", file, *change, "--out", tmp_path / "out")
    for path in (tmp_path / "run" / "run.json", tmp_path / "out" / "summary.json"):
        assert "exponential(3.0)" in path.read_text()


@pytest.mark.parametrize("command", ["compare", "run", "submit", "replay", "report", "trace", "algorithms", "problems"])
def test_help_has_an_example(call: Call, command: str) -> None:
    """The help of each command ends with a command line that uses it."""
    code, said, _ = call(command, "--help")
    assert code == 0
    assert f"Example: distsgd {command}" in said


def test_a_bar_is_shown_on_a_terminal_only(file: Path, tmp_path: Path) -> None:
    """On a terminal a bar counts the runs, and in a pipe nothing is written to stderr."""
    command = [sys.executable, "-m", "distsgd", "compare", str(file), "--out", str(tmp_path)]
    primary, secondary = os.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=secondary, env=environment)
    os.close(secondary)
    shown = b""
    with contextlib.suppress(OSError):  # a terminal that is not written to any more
        while part := os.read(primary, 65536):
            shown += part
    os.close(primary)
    assert process.wait() == 0
    assert b"2/2" in shown


def test_report_writes_the_same_again(call: Call, file: Path, tmp_path: Path) -> None:
    """The report of a saved comparison is rebuilt byte for byte from its runs."""
    out = tmp_path / "out"
    call("compare", file, "--out", out)
    page = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    code, _, errors = call("report", out)
    assert (code, errors) == (0, "")
    assert (out / "report.html").read_bytes() == page


def test_options_change_fleets_and_seeds(call: Call, file: Path, tmp_path: Path) -> None:
    """Stalenesses, workers and seeds on the command line reach the comparison."""
    options = ("--staleness", "0,3", "--workers", "4", "--seeds", "2", "--quick")
    code, said, _ = call("compare", file, *options, "--out", tmp_path / "out")
    assert code == 0
    assert all(name in said for name in ("staleness 0", "staleness 3", "4 workers", "2 seeds"))


def test_run_prints_its_history(call: Call, file: Path, tmp_path: Path) -> None:
    """One run prints a line per evaluation, and is saved."""
    code, said, errors = call("run", "mine", "--experiment", file, "--out", tmp_path / "run")
    assert (code, errors) == (0, "")
    assert all(name in said for name in ("gradients", "loss", "seed 0: done"))
    assert (tmp_path / "run" / "run.json").is_file()


def test_algorithms_are_listed_with_their_papers(call: Call) -> None:
    """The list of algorithms has every name, its parameters with defaults, and its paper."""
    code, said, _ = call("algorithms")
    assert code == 0
    assert all(name in said for name in registry)
    assert "n_fetch=1" in said
    assert "Zhang et al. 2015" in said


def test_problems_are_listed_with_their_data(call: Call) -> None:
    """The list of problems has the data that they can use."""
    code, said, _ = call("problems")
    assert code == 0
    assert all(name in said for name in ("softmax", "quadratic", "digits", "svmlight"))


RATE = ("--set", "algorithms.Downpour.learning_rate=0.1")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("compare", "--stalenes", "4"), "--staleness"),
        (("compar",), "compare"),
        (("compare", "no.toml"), "no.toml"),
        (("compare", "--staleness", "4,x"), "staleness must be whole numbers"),
        (("compare", "--staleness", "-4"), "staleness must be whole numbers"),
        (("compare", "--workers", "0"), "workers must be whole numbers >= 1"),
        (("compare", "--seeds", "0"), "seeds must be a whole number >= 1"),
        (("compare", "--seeds", "many"), "--seeds"),
        (("compare", "--out", "/proc/none"), "cannot write /proc/none"),
        (("run", "Downpor"), "did you mean 'Downpour'"),
        (("run", "Downpour", "--fleet", "8 machine"), "did you mean '8 machines'"),
        (("run", "Downpour", "--seed", "-1", *RATE), "seed must be"),
        (("run",), "algorithm"),
        (("report", "/nowhere"), "/nowhere holds no comparison"),
        (("trace", "/nowhere"), "/nowhere holds no saved run"),
        (("compare", "--processes", "0"), "processes must be a whole number >= 1"),
        (("compare", "--set", "epochs"), "set must be KEY=VALUE"),
        (("compare", "--set", "epoks=3.0"), "did you mean 'epochs'"),
        (("run", "Downpour"), "Downpour is to be tuned; give a value: --set"),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(call: Call, arguments: tuple[str, ...], says: str) -> None:
    """A mistake gives one line on stderr that names it, nothing on stdout, and exit code 2."""
    code, said, errors = call(*arguments)
    assert (code, said) == (2, "")
    assert errors.startswith("distsgd: ")
    assert errors.count("\n") == 1
    assert says in errors


def test_an_unwritable_folder_is_found_before_computing(
    call: Call, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a comparison nor a run begins if its folder cannot be written."""

    def fail(*_: object, **__: object) -> None:
        pytest.fail("it has begun")

    monkeypatch.setattr(jobs, "simulated", fail)
    assert call("compare", file, "--out", "/proc/none")[0] == 2
    assert call("run", "mine", "--experiment", file, "--out", "/proc/none/run")[0] == 2


def test_help_is_shown_for_no_arguments(call: Call) -> None:
    """Without arguments the command explains itself."""
    code, said, _ = call()
    assert code == 0
    assert "compare" in said


def test_an_unexpected_error_of_a_run_is_told(
    call: Call, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comparison with a failed run writes its report, names the error, and exits with 1."""
    simulate = jobs.simulated

    def fail_once(request: RunRequest[Fleet], hooks: Hooks) -> Run:
        if request.algorithm.name == "serial":
            raise ZeroDivisionError("oh")
        return simulate(request, hooks)

    monkeypatch.setattr(jobs, "simulated", fail_once)
    code, said, _ = call("compare", file, "--out", tmp_path / "out")
    assert code == 1
    assert "other on machines, seed 0: failed ZeroDivisionError: oh" in said


def test_an_interruption_keeps_what_has_finished(
    call: Call, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the second run leaves the first one and a report that says so; exit code 130."""
    simulate = jobs.simulated

    def interrupt(request: RunRequest[Fleet], hooks: Hooks) -> Run:
        if request.algorithm.name == "serial":
            raise KeyboardInterrupt
        return simulate(request, hooks)

    monkeypatch.setattr(jobs, "simulated", interrupt)
    code, said, errors = call("compare", file, "--out", tmp_path / "out")
    assert code == 130
    assert "1 of 2 runs had finished" in errors
    assert "was stopped" in said
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 1
    assert (tmp_path / "out" / "report.html").is_file()


def test_an_interruption_before_the_first_run(
    call: Call, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C before anything has finished writes no report; exit code 130."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "simulated", interrupt)
    assert call("compare", file, "--out", tmp_path / "out")[0] == 130
    monkeypatch.setattr(commands, "compare", interrupt)
    assert call("compare", file) == (130, "", "")


def test_a_real_signal_gives_130(file: Path, tmp_path: Path) -> None:
    """A process that gets SIGINT in the middle ends with 130, without a traceback."""
    many = ("--seeds", "1000", "--set", "updates=2000", "--processes", "2")
    process = subprocess.Popen(
        [sys.executable, "-m", "distsgd", "compare", file, *many, "--out", tmp_path / "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    runs = tmp_path / "out" / "runs"
    while process.poll() is None and len(list(runs.glob("[0-9a-f]*"))) < 9:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert (tmp_path / "out" / "report.html").is_file()


def test_help_imports_nothing_slow() -> None:
    """The package and the help of its command import neither numba nor charts nor tables."""
    code = (
        "import sys\nimport distsgd.commands.cli\n"
        "print([name for name in ('numba', 'polars', 'altair', 'sklearn', 'numpy')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_whole_numbers() -> None:
    """Numbers are separated by commas; repeated ones count once."""
    assert whole_numbers("n", "4, 16,4") == [4, 16]
    assert whole_numbers("n", "") == []
    with pytest.raises(ConfigError, match="n must be whole numbers >= 1"):
        whole_numbers("n", "4,,16")
