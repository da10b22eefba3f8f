"""A comparison from Python: its folder, its processes, and what it tells on its way."""

import builtins
import inspect
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from joblib import cpu_count
from small_setup import QUADRATIC

import distsgd as ds
from distsgd.experiment import runs as jobs
from distsgd.experiment.outcome import Outcome
from distsgd.live.machine.folder import locked
from distsgd.report.comparison import load_comparison
from distsgd.report.progress import is_watched

ALGORITHMS = {"serial": ds.algorithms.serial(0.1), "Downpour": ds.algorithms.downpour(0.1)}
FLEETS = {"machines": ds.Fleet(3, ds.exponential(1.0)), "stale": ds.fixed_staleness(2)}


def compared(folder: Path | None = None, **more: object) -> ds.Comparison:
    """Return two algorithms on two fleets over two seeds."""
    return ds.compare(ALGORITHMS, QUADRATIC, FLEETS, **{"updates": 20, "seeds": 2, "folder": folder} | more)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the seeds of the runs that are made from now on."""
    seeds, simulated = [], jobs.simulated

    def counted(request: jobs.RunRequest, hooks: jobs.Hooks) -> ds.Run:
        seeds.append(request.seed)
        return simulated(request, hooks)

    monkeypatch.setattr(jobs, "simulated", counted)
    return seeds


def bits(found: ds.Comparison) -> list[tuple[object, ...]]:
    """Return labels and parameters of all runs of a comparison."""
    return [(*one[:3], one.run.hash, one.run.x.tobytes()) for one in found.outcomes]


def test_the_same_call_computes_nothing_again(made: list[int], tmp_path: Path) -> None:
    """A second call finds every run in its folder, and equals the first bit for bit."""
    first = compared(tmp_path)
    assert len(made) == 8
    again = compared(str(tmp_path))
    assert len(made) == 8
    assert bits(again) == bits(first) == bits(compared())
    assert again.summary == first.summary == load_comparison(tmp_path).summary
    assert (tmp_path / "report.html").is_file()
    compared(tmp_path, seeds=3)
    assert made[-4:] == [2] * 4  # those of another seed alone; 8 more were made without a folder
    assert len(made) == 20


def test_a_comparison_goes_on_where_it_was_stopped(made: list[int], tmp_path: Path) -> None:
    """Ctrl-C keeps what has finished; the same call makes the rest, and equals one not stopped."""
    seen: list[Outcome] = []

    def stop(outcome: Outcome) -> None:
        seen.append(outcome)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path, watch=stop)
    assert len(list((tmp_path / "runs").iterdir())) == len(made) == 3
    made.clear()
    found = compared(tmp_path)
    assert len(made) == 5
    assert bits(found) == bits(compared())


def test_what_is_stopped_does_not_go_on_behind_its_traceback() -> None:
    """A notebook keeps the traceback of Ctrl-C: what it holds on to has ended, processes too."""

    def stop(_: Outcome) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        compared(watch=stop)
    held = [value for entry in stopped.traceback for value in entry.frame.f_locals.values()]
    states = [inspect.getgeneratorstate(value) for value in held if inspect.isgenerator(value)]
    assert states == [inspect.GEN_CLOSED]


def test_another_comparison_in_the_folder_is_kept(tmp_path: Path) -> None:
    """A folder may hold several comparisons: the report of another one gets a name of its own."""
    compared(tmp_path)
    first = (tmp_path / "summary.json").read_bytes()
    compared(tmp_path, updates=10)
    (kept,) = tmp_path.glob("summary-*.json")
    assert kept.read_bytes() == first
    assert len(list((tmp_path / "runs").iterdir())) == 16


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """A folder in use, or a file in its place, is an error before any run."""
    with locked(tmp_path), pytest.raises(ds.ConfigError, match=f"is in use by process {os.getpid()}"):
        compared(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ds.ConfigError, match="file"):
        compared(tmp_path / "file")
    assert not (tmp_path / "runs").exists()


SCRIPT = """
import os
from pathlib import Path
import numpy as np
import distsgd as ds

def settled(x):
    (Path(__file__).parent / f"process-{os.getpid()}").touch()
    return float(x @ x) / 2

class Mine(ds.Problem):
    dimension, samples = 4, 100_000
    def start(self, seed): return np.ones(4)
    def loss(self, x): return settled(x)
    def gradient(self, x, batch): return x + 0.0 * batch[0]

def rate(scale): return ds.algorithms.downpour(0.1 * scale)

both, watch = {"slow": rate(0.5), "fast": rate(1.0)}, lambda one: print(one.seed)
found = ds.compare(both, Mine(), ds.Fleet(2), updates=2000, seeds=3, watch=watch OTHERS)
print([one.run.x.tobytes().hex() for one in found.outcomes])
"""


def test_what_a_script_defines_reaches_the_processes(tmp_path: Path) -> None:
    """By default all cores work, on classes of ``__main__`` and without a guard; equal bits."""
    said = {}
    for name, others, is_several in (("one", ", processes=1", False), ("default", "", cpu_count() > 1)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "script.py").write_text(SCRIPT.replace(" OTHERS", others))
        done = subprocess.run(
            [sys.executable, folder / "script.py"], capture_output=True, text=True, check=True, timeout=300
        )
        assert done.stderr == ""  # also no bar, since nobody looks
        *seeds, said[name] = done.stdout.splitlines()
        assert sorted(seeds) == [*"001122"]
        assert (len(list(folder.glob("process-*"))) > 1) is is_several
    assert said["one"] == said["default"]


class Stuck(ds.Problem):
    """A problem that holds a lock, which no other process can have."""

    dimension, samples = 1, 100

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def loss(self, x: np.ndarray) -> float:
        """Return the distance from 0."""
        return float(x @ x)

    def gradient(self, x: np.ndarray, batch: np.ndarray) -> np.ndarray:  # noqa: ARG002 # the contract's
        """Return the way down."""
        return 2 * x


def test_what_cannot_be_sent_is_told() -> None:
    """A problem that pickle refuses is a sentence that says what to do, which then works."""
    given = {"updates": 3, "seeds": 2}
    with pytest.raises(ds.ConfigError, match=r"cannot be sent .*cannot pickle.*processes=1"):
        ds.compare(ALGORITHMS, Stuck(), FLEETS, processes=2, **given)
    assert len(ds.compare(ALGORITHMS, Stuck(), FLEETS, processes=1, **given).outcomes) == 8


class ZMQInteractiveShell:
    """What Jupyter calls the shell of its kernels."""


def test_a_comparison_is_silent_where_nobody_looks(capfd: pytest.CaptureFixture[str]) -> None:
    """Without a terminal and without a notebook nothing is written, unless it is asked for."""
    compared()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("asked", "is_shown"), [(None, True), (True, True), (False, False)])
def test_a_terminal_shows_how_far_a_comparison_is(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, asked: bool | None, is_shown: bool
) -> None:
    """On a terminal a bar on standard error counts runs, unless it is not wanted."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich takes any stream for a terminal then
    seen: list[Outcome] = []
    compared(progress=asked, watch=seen.append)
    out, errors = capfd.readouterr()
    assert (out, "8/8" in errors) == ("", is_shown)
    assert bool(errors) is is_shown
    assert len(seen) == 8


def test_a_notebook_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel of Jupyter a person looks, although there is no terminal."""
    assert not is_watched()
    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    assert is_watched()
