"""Where the servers of a cluster keep checkpoints: a folder that all nodes share, or a URI.

A checkpoint is written with a few methods of `Path`; `RemoteFolder` has them for what a URI names,
so that the code that writes one does not know which it is. The paths of universal_pathlib would not
do: they cannot replace a file, they believe listings that are out of date, and they know no file
system that pyarrow has opened.
"""

import contextlib
import posixpath
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from distsgd.errors import ConfigError


class RemoteFolder:
    """A folder or a file of an fsspec file system, with the methods of `Path` that it needs."""

    def __init__(self, files: Any, path: str) -> None:  # noqa: ANN401 # fsspec ships no types
        self._files, self._path = files, path

    def __str__(self) -> str:
        return str(self._files.unstrip_protocol(self._path))

    def __truediv__(self, name: str) -> "RemoteFolder":
        return RemoteFolder(self._files, posixpath.join(self._path, name))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self._path)

    def mkdir(self, *, parents: bool, exist_ok: bool) -> None:  # noqa: ARG002 # parents are always made
        """Make the folder and its parents; many stores have none, and make nothing."""
        self._files.makedirs(self._path, exist_ok=exist_ok)

    def exists(self) -> bool:
        """Return whether it has been written."""
        self._files.invalidate_cache()
        return bool(self._files.exists(self._path))

    def glob(self, pattern: str) -> Iterator["RemoteFolder"]:
        """Yield what lies in the folder under names of a `pattern`."""
        self._files.invalidate_cache()
        for path in self._files.glob(posixpath.join(self._path, pattern)):
            yield RemoteFolder(self._files, path)

    def read_bytes(self) -> bytes:
        """Return the content of the file."""
        content: bytes = self._files.cat_file(self._path)
        return content

    def write_bytes(self, data: bytes) -> int:
        """Write the file."""
        self._files.pipe_file(self._path, data)
        return len(data)

    def replace(self, target: "RemoteFolder") -> "RemoteFolder":
        """Put the file where `target` is."""
        self._files.mv(self._path, target._path)  # noqa: SLF001 # another one of the same class
        return target

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove the file."""
        if not missing_ok or self.exists():
            self._files.rm_file(self._path)

    def remove(self) -> None:
        """Remove the folder and all that is in it."""
        if self.exists():
            self._files.rm(self._path, recursive=True)


def opened(storage: str | Path) -> Path:
    """Return the folder that a path or a URI names: a `Path`, or a `RemoteFolder` in its place.

    A URI that nothing here can open is a `ConfigError`.
    """
    if "://" not in str(storage):
        return Path(storage)
    try:
        return cast("Path", RemoteFolder(*_file_system(str(storage))))
    except (ImportError, ValueError, OSError) as error:
        raise ConfigError(f"storage {storage} cannot be opened: {error}; use a folder that all nodes share") from None


def remove(folder: Path) -> None:
    """Remove a folder and all that is in it, as far as that is possible."""
    if isinstance(folder, RemoteFolder):
        with contextlib.suppress(OSError):
            folder.remove()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _file_system(uri: str) -> tuple[Any, str]:
    """Return the file system of a URI, by fsspec or else by pyarrow, and the path there."""
    from fsspec.core import url_to_fs  # noqa: PLC0415 # comes with parts of ray

    try:
        files, path = url_to_fs(uri)
    except ImportError:
        from fsspec.implementations.arrow import ArrowFSWrapper  # noqa: PLC0415 # as above
        from pyarrow.fs import FileSystem  # noqa: PLC0415 # as above

        arrow, path = FileSystem.from_uri(uri)
        files = ArrowFSWrapper(arrow)
    return files, path
