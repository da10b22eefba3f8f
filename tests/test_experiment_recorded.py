from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import distsgd as ds
from distsgd import algorithms
from distsgd.commands import actions as commands
from distsgd.commands.actions import Asked
from distsgd.errors import ConfigError
from distsgd.run import Run, load

EXPERIMENT = """
updates = 12
batch = 8
seeds = 1
tuning.seeds = [100]

[problems.other]
name = "quadratic"
curvature = [3.0]

[problems.linear]
name = "softmax"
data = {name = "svmlight", path = "rows.svm", test = 0.25}

[algorithms.mine]
algorithm = "downpour"
learning_rate = 0.1

[algorithms.tuned]
algorithm = "downpour"
learning_rate = "tune"
n_fetch = 2

[fleets.machines]
workers = 2
compute = "exponential(1.0)"
"""
ROWS = "".join(f"{(-1) ** i} 1:{i % 5} 2:{1 + i % 3}\n" for i in range(40))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the path of a small experiment, beside its data."""
    (tmp_path / "rows.svm").write_text(ROWS)
    path = tmp_path / "experiment.toml"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture
def saved(file: Path, tmp_path: Path) -> Path:
    """Return the folder of a run of `mine` on data that lie beside its experiment."""
    linear_first = EXPERIMENT.replace('[problems.other]\nname = "quadratic"\ncurvature = [3.0]', "")
    file.write_text(linear_first)
    commands.run(Asked(file), "mine", fleet=None, on=None, seed=1, out=tmp_path / "run")
    file.write_text(EXPERIMENT)
    return tmp_path / "run"


def replay(folder: Path, experiment: Path | None = None, algorithm: str | None = None, out: Path | None = None) -> int:
    """Call the command."""
    return commands.replay(folder, experiment=experiment, algorithm=algorithm, out=out)


def test_a_saved_run_knows_what_it_was_made_from(
    saved: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run is replayed from anywhere, without its experiment, and the replay is saved."""
    file.unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert replay(saved, out=tmp_path / "again") == 0
    assert "equal bit for bit: 12 updates by 2 workers, 12 gradients" in capsys.readouterr().out
    first, second = load(saved), load(tmp_path / "again")
    assert np.array_equal(first.x, second.x)
    assert (first.source, first.hash) == (second.source, second.hash)


def test_a_run_that_differs_gives_1(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command says where the replay parts from the run, and fails."""
    run = load(saved)
    replace(run, x=run.x + 1e-9).save(saved)
    assert replay(saved) == commands.FAILED
    assert "differ in 6 of 6 coordinates, first at coordinate 0: 0.1" in capsys.readouterr().out


def without_source(algorithm: object, file: Path, folder: Path) -> Path:
    """Save a run that a program has made."""
    data = ds.data.svmlight(file.parent / "rows.svm", test=0.25)
    run: Run = ds.simulate(algorithm, ds.problems.softmax(data), ds.Fleet(2), updates=5, batch=8)
    return run.save(folder)


def test_an_experiment_tells_what_a_run_does_not(file: Path, tmp_path: Path) -> None:
    """The recorded algorithm and problem are looked for, tuned ones with their recorded numbers."""
    for number, algorithm in enumerate((algorithms.downpour(0.1), algorithms.downpour(0.37, n_fetch=2))):
        folder = without_source(algorithm, file, tmp_path / str(number))
        assert replay(folder, file) == 0


def test_another_experiment_is_refused(saved: Path, file: Path, tmp_path: Path) -> None:
    """Whoever gives no experiment, or another one, is told what is missing or what differs."""
    folder = without_source(algorithms.serial(0.1), file, tmp_path / "other")
    with pytest.raises(ConfigError, match="recorded one, softmax; give its --experiment FILE"):
        replay(folder)
    with pytest.raises(ConfigError, match="no algorithm of the experiment is the recorded one"):
        replay(folder, file)
    with pytest.raises(ConfigError, match="unknown algorithm 'mein'; did you mean 'mine'"):
        replay(folder, file, "mein")
    with pytest.raises(ConfigError, match="whose name was 'serial', not 'downpour'"):
        replay(folder, file, "mine")
    (file.parent / "rows.svm").write_text(ROWS + "1 1:9\n")
    digest = "the problem to replay must be the recorded one, whose .*was '.*', not '.*'"
    with pytest.raises(ConfigError, match=digest):
        replay(saved)
