import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

from distsgd import ConfigError
from distsgd.files import check_writable, replacing
from distsgd.run import FORMAT, Run, identify, load

MakeRun: TypeAlias = Callable[..., Run]

FILES = ("history.parquet", "trace.parquet", "parameters.npy", "run.json")


def test_a_run_prints_as_one_line(make_run: MakeRun) -> None:
    """A run shows what it is, how it ended and how good it got."""
    assert repr(make_run([1.0, 0.25])) == "Run(serial: done, 1 updates, loss 0.25, mean staleness 0)"


@pytest.mark.parametrize("status", ["done", "diverged"])
def test_a_loaded_run_has_the_bits_of_the_saved_one(make_run: MakeRun, tmp_path: Path, status: str) -> None:
    """Loading gives back parameters, history, trace and settings bit for bit, NaN included."""
    saved = make_run([2.0, 1.0, float("nan")], status=status)
    loaded = load(saved.save(tmp_path / "run"))
    assert loaded.x.tobytes() == saved.x.tobytes()
    assert loaded.trace.rows.tobytes() == saved.trace.rows.tobytes()
    assert loaded.trace.workers == saved.trace.workers
    assert loaded.history.equals(saved.history, null_equal=True)
    assert loaded.history.schema == saved.history.schema
    for name in ("status", "diverged_at", "settings", "versions", "hash"):
        assert getattr(loaded, name) == getattr(saved, name)


def test_a_run_remembers_where_it_came_from(make_run: MakeRun, tmp_path: Path) -> None:
    """The tables of a run's experiment are saved with it, and do not change its hash."""
    run = make_run([2.0, 1.0])
    source = {"algorithm": {"algorithm": "serial"}, "problem": {"l2": 0.5}, "folder": "/data"}
    loaded = load(replace(run, source=source).save(tmp_path / "run"))
    assert loaded.source == source
    assert loaded.hash == run.hash


def test_a_hash_depends_on_settings_and_version_alone() -> None:
    """Equal settings in another order have one hash; another value or version has another."""
    first = identify({"seed": 1, "fleet": {"workers": 4, "latency": 0.0}})
    assert first == identify({"fleet": {"latency": 0.0, "workers": 4}, "seed": 1})
    assert first != identify({"seed": 2, "fleet": {"workers": 4, "latency": 0.0}})
    assert first != identify({"seed": 1, "fleet": {"workers": 4, "latency": 0.0}}, version="0")


def test_a_hash_is_known_before_the_run(make_run: MakeRun) -> None:
    """A run's hash is that of its settings, whatever came out."""
    runs = [make_run([2.0, 1.0]), make_run([3.0, float("inf")], status="diverged")]
    assert {run.hash for run in runs} == {identify(runs[0].settings)}


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(make_run: MakeRun, tmp_path: Path, name: str) -> None:
    """A saved run without one of its files is refused, and the file is named."""
    folder = make_run([2.0, 1.0]).save(tmp_path / "run")
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=name):
        load(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named(make_run: MakeRun, tmp_path: Path, name: str) -> None:
    """A saved run with a file cut in half is refused as damaged, and the file is named."""
    folder = make_run([2.0, 1.0]).save(tmp_path / "run")
    os.truncate(folder / name, (folder / name).stat().st_size // 2)
    with pytest.raises(ConfigError, match=rf"{name} is damaged"):
        load(folder)


def test_another_format_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    """A run of a later format is refused with both numbers, even if its record has other keys."""
    folder = make_run([2.0, 1.0]).save(tmp_path / "run")
    (folder / "run.json").write_text(json.dumps({"format": FORMAT + 1, "new": True}))
    with pytest.raises(ConfigError, match=f"format {FORMAT + 1}, not {FORMAT}"):
        load(folder)


def test_a_run_replaces_a_run(make_run: MakeRun, tmp_path: Path) -> None:
    """Saving onto a saved run replaces it, and leaves nothing else behind."""
    make_run([2.0, 1.0]).save(tmp_path / "run")
    make_run([2.0, 1.0, 0.5]).save(tmp_path / "run")
    assert len(load(tmp_path / "run").history) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_never_replaces_anything_else(make_run: MakeRun, tmp_path: Path) -> None:
    """Saving onto a folder with other content is refused, and that content stays."""
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not a saved run"):
        make_run([2.0, 1.0]).save(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_failed_save_leaves_the_old_run(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that fails half way leaves what was there before, and no scraps beside it."""
    make_run([2.0, 1.0]).save(tmp_path / "run")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(ConfigError, match="No space left"):
        make_run([2.0, 1.0, 0.5]).save(tmp_path / "run")
    assert len(load(tmp_path / "run").history) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_interrupted_save_leaves_nothing(tmp_path: Path) -> None:
    """A folder whose writing is interrupted does not appear."""

    def write_half() -> None:
        with replacing(tmp_path / "new") as fresh:
            (fresh / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_found_at_once(tmp_path: Path) -> None:
    """A folder below a file cannot be made, and the error says so before anything is computed."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        check_writable(tmp_path / "file" / "out")


def test_a_moved_run_is_still_the_same(make_run: MakeRun, tmp_path: Path) -> None:
    """A saved run can be moved: nothing in it depends on where it lies."""
    saved = make_run([2.0, 1.0]).save(tmp_path / "here")
    shutil.move(saved, tmp_path / "there")
    assert isinstance(load(tmp_path / "there"), Run)
