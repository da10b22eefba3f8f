import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

import distsgd as ds
from distsgd import ConfigError
from distsgd.files import write
from distsgd.run import Run, load

MakeRun: TypeAlias = Callable[..., Run]

LIVE = {"kind": "local", "workers": 1}


class Disk:
    """A folder that holds so many bytes and no more, however they are written."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.free = folder, 10**9
        self._write = Path.write_bytes
        folder.mkdir()
        monkeypatch.setattr(Path, "write_bytes", lambda path, data: self.write(path, data))  # noqa: PLW0108 # a function becomes a method, a method does not

    def write(self, path: Path, data: bytes) -> int:
        """Write what there is room for."""
        if not path.is_relative_to(self.folder):
            return self._write(path, data)
        room, self.free = self.free, max(0, self.free - len(data))
        self._write(path, data[:room])
        if room < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Return a disk that is not full yet; temporary files lie on another one."""
    other = tmp_path / "tmp"
    other.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(other))
    return Disk(tmp_path / "disk", monkeypatch)


def size(folder: Path) -> int:
    """Return the bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


def test_a_full_disk_is_a_sentence(make_run: MakeRun, disk: Disk) -> None:
    """Wherever the disk becomes full while a run is saved, a sentence says so; nothing stays."""
    run = make_run([2.0, 1.0])
    needed = size(run.save(disk.folder / "whole"))
    for free in range(0, needed, needed // 20):
        disk.free = free
        with pytest.raises(ConfigError, match=r"No space left on device.*MB are free in /.*free s"):
            run.save(disk.folder / "run")
        assert [path.name for path in disk.folder.iterdir()] == ["whole"]
    disk.free = needed
    assert load(run.save(disk.folder / "run")).hash == run.hash


def test_a_live_run_is_kept_elsewhere(make_run: MakeRun, disk: Disk) -> None:
    """A live run that cannot be saved is somewhere else, whole, and the error says where."""
    run = make_run([2.0, 1.0], fleet=LIVE)
    disk.free = 100
    with pytest.raises(ConfigError, match="is kept: mv ") as caught:
        run.save(disk.folder / "run")
    kept, target = str(caught.value).split("mv ")[1].split()
    assert target == str(disk.folder / "run")
    assert load(kept).x.tobytes() == run.x.tobytes()


def test_a_live_run_is_kept_where_there_is_room(
    make_run: MakeRun, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where temporary files find no room either, the current folder may; else the error says so."""
    run, disk.free = make_run([2.0, 1.0], fleet=LIVE), 0
    for name in ("tmp", "home", "here"):
        (disk.folder / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(disk.folder / "tmp"))
    monkeypatch.setenv("HOME", str(disk.folder / "home"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"mv {tmp_path}/distsgd-kept-"):
        run.save(disk.folder / "run")
    monkeypatch.chdir(disk.folder / "here")
    with pytest.raises(ConfigError, match="No other folder can hold it"):
        run.save(disk.folder / "run")


def test_a_live_run_never_replaces_anything_else(make_run: MakeRun, disk: Disk) -> None:
    """A live run that may not be saved where other content lies is not lost, either."""
    (disk.folder / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"is not a saved run; .*is kept: mv "):
        make_run([2.0, 1.0], fleet=LIVE).save(disk.folder)
    assert [path.name for path in disk.folder.iterdir()] == ["thesis.tex"]


def test_a_comparison_with_live_runs_is_kept_elsewhere(disk: Disk) -> None:
    """A comparison whose report finds no room leaves the old one, and a whole one elsewhere."""
    problem = ds.problems.quadratic([1.0], noise=0.1)
    found = ds.compare(
        {"own": ds.algorithms.downpour(0.1)}, problem, ds.Fleet(2), updates=9, seeds=1, engine=["simulate", "local"]
    )
    found.save(disk.folder)
    before = (disk.folder / "summary.json").read_bytes()
    needed = sum(size(path) for path in (disk.folder / "runs").iterdir())
    disk.free = needed + len(before) // 2
    with pytest.raises(ConfigError, match=r"summary\.json .*No space left.*is kept: mv ") as caught:
        found.save(disk.folder)
    kept = Path(str(caught.value).split("mv ")[1].split()[0])
    assert json.loads((kept / "summary.json").read_bytes()) == json.loads(before)
    assert len(list((kept / "runs").iterdir())) == 2
    assert (disk.folder / "summary.json").read_bytes() == before
    assert {path.name for path in disk.folder.iterdir()} == {"summary.json", "report.html", "runs"}


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    """What is no file, such as a pipe, is never replaced by one."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="not a file"):
        write(tmp_path / "pipe", b"x")
    assert [path.is_fifo() for path in tmp_path.iterdir()] == [True]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
def test_full_output_is_a_sentence() -> None:
    """A command whose output finds no room says so, and exits with 2."""
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "distsgd", "algorithms"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "distsgd: cannot write the output: the disk is full\n"
