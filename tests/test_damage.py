import bz2
import gzip
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from damage import outcomes
from small_setup import setup_of

import distsgd as ds
from distsgd import ConfigError
from distsgd.experiment import file as experiment
from distsgd.experiment.execution import outcomes as compared
from distsgd.experiment.runs import Place, run_folder
from distsgd.files import sealed
from distsgd.live.server import checkpoint
from distsgd.live.server.checkpoint import FORMAT, Description, Name
from distsgd.live.server.records import ServiceMemory, WorkerMemory
from distsgd.report.comparison import load_comparison
from distsgd.run import Run, load
from distsgd.trace import ROW

MakeRun: TypeAlias = Callable[..., Run]

N = int(os.environ.get("DISTSGD_FLIPS", "200"))
"""Damages of each kind of file; the environment asks for more of them."""


def bits(run: Run) -> tuple[object, ...]:
    """Return everything that a run says, in a form that can be compared."""
    return (
        run.x.tobytes(),
        run.trace.rows.tobytes(),
        run.trace.workers,
        repr(run.history.to_dict()),
        run.status,
        run.diverged_at,
        run.settings,
        run.versions,
        run.counts,
        run.source,
    )


@pytest.mark.parametrize("name", ["run.json", "history.parquet", "trace.parquet", "parameters.npy"])
def test_a_damaged_run_is_the_same_or_refused(make_run: MakeRun, tmp_path: Path, name: str) -> None:
    """Whatever happens to a byte of a saved run, loading gives the run or one sentence."""
    folder = make_run([2.0, 1.0, 0.5], note="ä").save(tmp_path / "run")
    assert outcomes(folder / name, lambda: bits(load(folder)), N)["sentence"] > N / 2


def test_a_damaged_summary_is_the_same_or_refused(tmp_path: Path) -> None:
    """Whatever happens to a byte of a summary, loading it gives the comparison or one sentence."""
    problem = ds.problems.quadratic([1.0], noise=0.1)
    pair = {"serial": ds.algorithms.serial(0.1)}
    ds.compare(pair, problem, ds.Fleet(2), updates=4, seeds=2, note="ä").save(tmp_path)
    expected = outcomes(tmp_path / "summary.json", lambda: str(load_comparison(tmp_path).summary), N)
    assert expected["sentence"] > N / 2


@pytest.mark.parametrize("name", ["lead.json", "rows.npy", "0.json", "0.npz"])
def test_a_damaged_checkpoint_is_the_same_or_refused(tmp_path: Path, name: str) -> None:
    """Whatever happens to a byte of a checkpoint, loading gives it or one sentence."""
    one = Name(0, 1)
    segment = checkpoint.save_rows(tmp_path, one, 0, np.zeros(3, ROW))
    memory = ServiceMemory(3, 2, 1, 0.5, [WorkerMemory(is_alive=True, has_rows=True, step=2, pushed=3, n_pulls=4)])
    described = Description(
        FORMAT, 1, is_last=False, status="done", memory=memory, segments=[segment], evaluations=[(3, 0.5, None, None)]
    )
    checkpoint.save_description(tmp_path, one, described)
    checkpoint.save_columns(tmp_path, one, 0, {"x": np.arange(3.0), "z": np.ones(3)})

    def read() -> object:
        found = checkpoint.load(tmp_path)
        assert found is not None
        columns = checkpoint.load_columns(tmp_path, one, 0)
        return found.description, found.rows.tobytes(), [*columns], columns["x"].tobytes()

    assert outcomes(tmp_path / f"{one}.{name}", read, N)["sentence"] > N / 2


def test_a_damaged_experiment_is_read_or_refused(tmp_path: Path) -> None:
    """Whatever happens to a byte of an experiment file, it can be read, or a sentence says why."""
    path = tmp_path / "mine.toml"
    path.write_text((Path(ds.__file__).parent / "builtin.toml").read_text())
    assert outcomes(path, lambda: experiment.read(path), N, may_differ=True)["sentence"]


@pytest.mark.parametrize("ending", ["", ".gz", ".bz2"])
def test_damaged_data_are_read_or_refused(tmp_path: Path, ending: str) -> None:
    """Whatever happens to a byte of a data file, it can be read, or one sentence says why."""
    path = tmp_path / f"data{ending}"
    text = b"".join(b"%d 1:%d.5 7:0.25 # n\n" % (i % 2, i) for i in range(20))
    path.write_bytes({"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}[ending](text))

    def read() -> object:
        return repr(ds.problems.logistic(ds.data.svmlight(path)).settings)

    assert outcomes(path, read, N, may_differ=True)["sentence"]


def compare(folder: Path) -> list[Run | None]:
    """Make a small comparison in `folder`, or find it there."""
    problem = ds.problems.quadratic([1.0], noise=0.1)
    setup = setup_of({"serial": ds.algorithms.serial(0.1)}, problem, {"two": ds.Fleet(2)}, {"updates": 4}, seeds=3)
    return [one.run for one in compared(setup, Place(folder))]


def cut(folder: Path) -> None:
    """Empty the record of a run."""
    (folder / "run.json").write_bytes(b"")


def remove(folder: Path) -> None:
    """Remove the record of a run."""
    (folder / "run.json").unlink()


def put_a_folder(folder: Path) -> None:
    """Put a folder in place of a record."""
    remove(folder)
    (folder / "run.json").mkdir()


def put_a_pipe(folder: Path) -> None:
    """Put a pipe in place of a file, which would be waited for."""
    (folder / "parameters.npy").unlink()
    os.mkfifo(folder / "parameters.npy")


def put_a_dead_link(folder: Path) -> None:
    """Put a link to nowhere in place of a file."""
    (folder / "trace.parquet").unlink()
    (folder / "trace.parquet").symlink_to("nowhere")


def put_another(folder: Path) -> None:
    """Put another run in place of one."""
    other = next(path for path in folder.parent.iterdir() if path != folder)
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def edit(folder: Path) -> None:
    """Change a setting, and the digest with it, so that only the hash does not fit."""
    record = json.loads((folder / "run.json").read_text())
    del record["digest"]
    record["settings"]["batch"] = 7
    (folder / "run.json").write_bytes(sealed(record))


def use_bad_text(folder: Path) -> None:
    """Put a byte into a text that is in no text."""
    path = folder / "run.json"
    path.write_bytes(path.read_bytes().replace(b"serial", b"ser\xffal", 1))


def nest_deeply(folder: Path) -> None:
    """Put lists in lists."""
    (folder / "run.json").write_bytes(b"[" * 100_000)


@pytest.mark.parametrize(
    "harm", [cut, remove, put_a_folder, put_a_pipe, put_a_dead_link, put_another, edit, use_bad_text, nest_deeply]
)
def test_a_damaged_run_is_named_and_made_again(
    tmp_path: Path, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """A comparison finds what is wrong with a saved run, says it and makes that run again."""
    whole = [bits(run) for run in compare(tmp_path) if run is not None]
    folder = run_folder(tmp_path, next((tmp_path / "runs").iterdir()).name)
    harm(folder)
    with caplog.at_level(logging.WARNING):
        assert sorted(map(repr, whole)) == sorted(repr(bits(run)) for run in compare(tmp_path) if run)
    (told,) = caplog.messages
    assert folder.name in told
    assert load(folder).hash == folder.name
    caplog.clear()
    compare(tmp_path)
    assert caplog.messages == []


def test_an_edited_record_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    """A record that was edited by hand is no record of the run any more."""
    path = make_run([2.0, 1.0]).save(tmp_path / "run") / "run.json"
    path.write_text(path.read_text().replace('"status": "done"', '"status": "diverged"'))
    with pytest.raises(ConfigError, match=r"run\.json is damaged \(its digest does not fit"):
        load(path.parent)


def test_a_link_to_a_run_is_the_run(make_run: MakeRun, tmp_path: Path) -> None:
    """A folder, or a file in it, that is a link counts as what it links to."""
    run = make_run([2.0, 1.0])
    folder = run.save(tmp_path / "run")
    (tmp_path / "link").symlink_to(folder)
    (folder / "run.json").rename(tmp_path / "moved.json")
    (folder / "run.json").symlink_to(tmp_path / "moved.json")
    assert bits(load(tmp_path / "link")) == bits(run)
