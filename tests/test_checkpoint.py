from pathlib import Path

import numpy as np
import pytest

from distsgd.errors import ConfigError
from distsgd.live.server import checkpoint
from distsgd.live.server.checkpoint import FORMAT, Description, Name, Segment
from distsgd.live.server.records import ServiceMemory
from distsgd.trace import ROW


def described(shards: int, segments: list[Segment], version: int) -> Description:
    """Return what a lead writes."""
    memory = ServiceMemory(version, 0, 0, 0.0, [])
    return Description(FORMAT, shards, is_last=False, status="done", memory=memory, segments=segments, evaluations=[])


def write(folder: Path, number: int, shards: int = 2) -> None:
    """Write a complete checkpoint with one row."""
    name = Name(0, number)
    segment = checkpoint.save_rows(folder, name, 0, np.zeros(number, ROW))
    checkpoint.save_description(folder, name, described(shards, [segment], number))
    for shard in range(shards):
        checkpoint.save_columns(folder, name, shard, {"x": np.full(2, number + shard / 10)})


def test_the_last_complete_checkpoint_is_loaded(tmp_path: Path) -> None:
    """What lacks a part does not count, and what is complete comes back bit for bit."""
    assert checkpoint.load(tmp_path) is None
    write(tmp_path, 1)
    write(tmp_path, 2)
    write(tmp_path, 3)
    (tmp_path / f"{Name(0, 3)}.1.json").unlink()
    last = checkpoint.load(tmp_path)
    assert last is not None
    assert (last.name, last.description.memory.version) == (Name(0, 2), 2)
    assert checkpoint.load_model(tmp_path, last).tolist() == [2.0, 2.0, 2.1, 2.1]


def test_a_later_life_comes_last(tmp_path: Path) -> None:
    """A checkpoint of servers that were started again is newer, whatever its number."""
    assert max(Name(0, 99), Name(1, 1)) == Name(1, 1)
    assert str(Name(1, 1)) > str(Name(0, 99))
    assert list(tmp_path.iterdir()) == []


def test_segments_replace_what_could_change(tmp_path: Path) -> None:
    """A segment begins where rows could still change, and its rows are the ones that hold."""
    rows = np.zeros(5, ROW)
    rows["worker"] = np.arange(5)
    first = checkpoint.save_rows(tmp_path, Name(0, 1), 0, rows[:3])
    rows["done"][2] = 7.0
    second = checkpoint.save_rows(tmp_path, Name(0, 2), 2, rows[2:])
    checkpoint.save_description(tmp_path, Name(0, 2), described(0, [first, second], 0))
    last = checkpoint.load(tmp_path)
    assert last is not None
    assert last.rows.tolist() == rows.tolist()


def test_old_parts_are_removed(tmp_path: Path) -> None:
    """A shard removes its parts from before the last complete checkpoint, and no newer ones."""
    for number in (1, 2):
        write(tmp_path, number)
    checkpoint.save_columns(tmp_path, Name(0, 3), 1, {"x": np.zeros(2)})
    for shard in (0, 1):
        checkpoint.remove_older(tmp_path, shard)
    left = {path.name[:13] for path in tmp_path.glob("*.npz")}
    assert left == {str(Name(0, 2)), str(Name(0, 3))}
    assert checkpoint.load(tmp_path) is not None


def test_others_may_remove_what_one_looks_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that the lead removes while another shard looks at it is not complete."""
    for number in (1, 2):
        write(tmp_path, number)
    read = checkpoint.read_file

    def read_late(folder: Path, name: str) -> bytes:
        if name == f"{Name(0, 1)}.lead.json":
            (folder / name).unlink()
        return read(folder, name)

    monkeypatch.setattr(checkpoint, "read_file", read_late)
    checkpoint.remove_older(tmp_path, 1)
    assert not checkpoint.is_complete(tmp_path, Name(0, 1))
    assert checkpoint.is_complete(tmp_path, Name(0, 2))


def test_damage_and_other_formats_are_named(tmp_path: Path) -> None:
    """A file that is not what was written, or of another format, is an error that says so."""
    write(tmp_path, 1)
    path = tmp_path / f"{Name(0, 1)}.0.npz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="is damaged"):
        checkpoint.load_columns(tmp_path, Name(0, 1), 0)
    lead = tmp_path / f"{Name(0, 1)}.lead.json"
    lead.write_bytes(lead.read_bytes().replace(b'"format": 2', b'"format": 9'))
    with pytest.raises(ConfigError, match="has format 9, not 2"):
        checkpoint.load(tmp_path)


def test_half_a_file_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be written as a whole takes no room afterwards, and the error stays."""

    def fill(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write_file(tmp_path, "name", b"data")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_type_is_refused(tmp_path: Path) -> None:
    """Columns come back in the type in which they were written, and in no other one."""
    name, x = Name(0, 1), np.arange(3, dtype=np.float32)
    checkpoint.save_columns(tmp_path, name, 0, {"x": x})
    found = checkpoint.load_columns(tmp_path, name, 0, x.dtype)["x"]
    assert (found.dtype, found.tobytes()) == (x.dtype, x.tobytes())
    with pytest.raises(ConfigError, match="column x must be float64, as the problem is, not float32; begin a new run"):
        checkpoint.load_columns(tmp_path, name, 0, np.dtype(np.float64))
