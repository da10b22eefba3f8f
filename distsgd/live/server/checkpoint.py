"""Checkpoints of the servers: columns of each shard, rows, and where every worker stands.

1. A checkpoint is named by the life of the servers and a number, and lies between two rows of the
   order: all shards write theirs there, each on its own. It is complete when every part is there.
2. A file is written under another name first, so that under its own it is whole. The description of
   a part holds the digest of its numbers, is sealed with its own and is written after them.
3. Rows are written once, in segments. When a worker went on is known only afterwards, so a segment
   begins with the first row that could still change, and replaces the end of the one before.
4. Nothing is pickled. Files are read and written in `read_file` and `write_file` alone.
"""

import contextlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from distsgd.errors import ConfigError
from distsgd.files import damaged, digest, sealed, unsealed
from distsgd.live.server.records import ServiceMemory
from distsgd.problem import Vector
from distsgd.status import Status
from distsgd.trace import ROW

FORMAT = 2
Evaluation: TypeAlias = tuple[int, float | None, float | None, float | None]
"""Version, training loss, test loss and accuracy; None where there is none."""


class Name(NamedTuple):
    """Which checkpoint: later ones are greater."""

    life: int
    number: int

    def __str__(self) -> str:
        return f"{self.life:04d}-{self.number:08d}"


class Part(msgspec.Struct):
    """What describes the columns of one shard."""

    format: int
    columns: str
    """Digest of the file that holds them."""


class Segment(msgspec.Struct):
    """Some rows of the trace."""

    first: int
    file: str
    digest: str


class Description(msgspec.Struct):
    """What the lead writes beside its columns."""

    format: int
    shards: int
    is_last: bool
    status: Status
    memory: ServiceMemory
    segments: list[Segment]
    evaluations: list[Evaluation]


class Checkpoint(NamedTuple):
    """A complete checkpoint."""

    name: Name
    description: Description
    rows: NDArray[np.void]


def write_file(folder: Path, name: str, data: bytes) -> None:
    """Write a file as a whole, or not at all."""
    temporary = folder / f"{name}.part"  # rule 2
    try:
        temporary.write_bytes(data)
        temporary.replace(folder / name)
    except Exception:
        discard(folder, temporary.name)  # half of it takes room, too
        raise


def discard(folder: Path, pattern: str) -> None:
    """Remove files that no server will read, as far as that is possible."""
    with contextlib.suppress(Exception):  # a store raises what it likes
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def read_file(folder: Path, name: str) -> bytes:
    """Return the content of a file."""
    return (folder / name).read_bytes()


def save_columns(folder: Path, name: Name, shard: int, columns: Mapping[str, Vector]) -> None:
    """Write a shard's part."""
    buffer = io.BytesIO()
    np.savez(buffer, **columns)  # type: ignore[arg-type] # columns are arrays
    data = buffer.getvalue()
    # rule 2: a description that is there says that its numbers are
    write_file(folder, f"{name}.{shard}.npz", data)
    write_file(folder, f"{name}.{shard}.json", sealed(Part(FORMAT, digest(data))))


def save_rows(folder: Path, name: Name, first: int, rows: NDArray[np.void]) -> Segment:
    """Write the rows from number `first` on, and return what describes them."""
    buffer = io.BytesIO()
    np.save(buffer, rows, allow_pickle=False)  # rule 4
    data = buffer.getvalue()
    write_file(folder, f"{name}.rows.npy", data)
    return Segment(first, f"{name}.rows.npy", digest(data))


def save_description(folder: Path, name: Name, description: Description) -> None:
    """Write what the lead knows, after its rows."""
    write_file(folder, f"{name}.lead.json", sealed(description))


def load(folder: Path) -> Checkpoint | None:
    """Return the last complete checkpoint, or None if there is none.

    Another format, or a file that is not what was written, is a `ConfigError`.
    """
    for name in sorted(_names(folder), reverse=True):
        description = _description(folder, name)
        if _is_complete(folder, name, description.shards):
            return Checkpoint(name, description, _load_rows(folder, description))
    return None


def load_columns(folder: Path, name: Name, shard: int, dtype: np.dtype[Any] | None = None) -> dict[str, Vector]:
    """Return the columns of one shard.

    If the file is damaged, or its columns are not of the type that is asked for, it is a
    `ConfigError`.
    """
    part: Part = _unsealed(folder, f"{name}.{shard}.json", Part)
    data = _checked(folder, f"{name}.{shard}.npz", part.columns)
    with np.load(io.BytesIO(data), allow_pickle=False) as columns:
        found = {column: np.array(columns[column]) for column in columns.files}
    for column, numbers in found.items():
        if dtype is not None and numbers.dtype != dtype:
            what = f"{folder / str(name)}: column {column} must be {dtype}, as the problem is, not {numbers.dtype}"
            raise ConfigError(f"{what}; begin a new run in another folder")
    return found


def load_model(folder: Path, checkpoint: Checkpoint) -> Vector:
    """Return the whole column x of a checkpoint, float[d]."""
    shards = range(checkpoint.description.shards)
    parts = [load_columns(folder, checkpoint.name, shard)["x"] for shard in shards]
    return np.concatenate(parts)


def is_complete(folder: Path, name: Name) -> bool:
    """Return whether every part of a checkpoint is there."""
    path = folder / f"{name}.lead.json"
    try:
        return path.exists() and _is_complete(folder, name, _description(folder, name).shards)
    except Exception:  # noqa: BLE001 # removed meanwhile, damaged, or what a store likes to raise
        return False


def remove_older(folder: Path, shard: int) -> None:
    """Remove a shard's part of what is older than the last complete checkpoint; rows stay."""
    last = max((name for name in _names(folder) if is_complete(folder, name)), default=None)
    # rule 3: rows of older checkpoints are the beginning of the last one's
    patterns = [f"*.{shard}.*"] + ["*.lead.json"] * (shard == 0)
    for pattern in patterns if last else ():
        for path in folder.glob(pattern):
            if path.name < str(last):
                path.unlink(missing_ok=True)


def _names(folder: Path) -> list[Name]:
    found = (re.fullmatch(r"(\d+)-(\d+)\.lead\.json", path.name) for path in folder.glob("*"))
    return [Name(int(one[1]), int(one[2])) for one in found if one]


def _description(folder: Path, name: Name) -> Description:
    found: Description = _unsealed(folder, f"{name}.lead.json", Description)
    return found


def _unsealed(folder: Path, name: str, kind: type[Any]) -> Any:  # noqa: ANN401 # a `kind`
    return unsealed(_read(folder, name), kind, folder / name, FORMAT)


def _read(folder: Path, name: str) -> bytes:
    try:
        return read_file(folder, name)
    except OSError as error:
        raise damaged(folder / name, error.strerror or error) from None


def _is_complete(folder: Path, name: Name, shards: int) -> bool:
    return all((folder / f"{name}.{shard}.json").exists() for shard in range(shards))


def _load_rows(folder: Path, description: Description) -> NDArray[np.void]:
    rows = np.empty(0, ROW)
    for segment in description.segments:
        data = _checked(folder, segment.file, segment.digest)
        more = np.load(io.BytesIO(data), allow_pickle=False)
        rows = np.concatenate([rows[: segment.first], more])  # rule 3
    return rows


def _checked(folder: Path, name: str, expected: str) -> bytes:
    data = _read(folder, name)
    if digest(data) != expected:
        raise damaged(folder / name, "its digest does not fit its content")
    return data
