"""Files that are believed when they are read back, and what is said where none can be written.

1. A file, or a folder of files, appears complete or not at all.
2. A sealed file is JSON whose key ``digest`` is the SHA-256 of its other content, keys sorted and
   without spaces. Content that was changed by accident, or by hand, is refused.
3. What cannot be made again is written elsewhere where its place cannot be written.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec

from distsgd.errors import ConfigError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_STANDARD = 3
"""Standard input, output and error."""


def read(path: Path) -> bytes:
    """Return the content of a file, or raise an `OSError`; a pipe would be waited for."""
    _check_file(path)
    return path.read_bytes()


def _check_file(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a file")


def write(path: Path, content: bytes) -> None:
    """Put `content` into the file `path`, completely or not at all."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        _check_file(path)
        fresh.write_bytes(content)
        fresh.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise unwritable(path, error) from None


def content_of(write_into: Callable[[BytesIO], object]) -> bytes:
    """Return what is written into a file, for libraries that write nothing but files."""
    buffer = BytesIO()
    write_into(buffer)
    return buffer.getvalue()


def digest(content: bytes) -> str:
    """Return the SHA-256 of `content` as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def sealed(record: Any) -> bytes:  # noqa: ANN401 # whatever msgspec encodes as an object
    """Return `record` as JSON with its digest."""
    content = msgspec.json.decode(msgspec.json.encode(record))
    return msgspec.json.format(msgspec.json.encode(content | {"digest": _seal(content)}))


def _seal(content: dict[str, Any]) -> str:
    return digest(msgspec.json.encode(content, order="deterministic"))


def unsealed(content: bytes, kind: type[Any], name: object, expected: int) -> Any:  # noqa: ANN401 # a `kind`
    """Return JSON that `sealed` has returned, with a key ``format``, as a msgspec Struct `kind`.

    It is a `ConfigError`, which calls it `name`, if it is not what was written, or of another
    format than the one `expected`.
    """
    found = _decoded(content, name)
    if found["format"] != expected:
        raise ConfigError(f"{name} has format {found['format']}, not {expected}; compute it again")
    if found.pop("digest", None) != _seal(found):
        raise damaged(name, "its digest does not fit its content")
    try:
        return msgspec.convert(found, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise damaged(name, error) from None


def _decoded(content: bytes, name: object) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(content)
    except (ValueError, RecursionError) as error:  # of msgspec, or of text that is not UTF-8
        raise damaged(name, error) from None
    if not isinstance(found, dict) or type(found.get("format")) is not int:
        raise damaged(name, "it has no format")
    return found


def damaged(name: object, reason: object) -> ConfigError:
    """Return the error for what is not as it was written."""
    return ConfigError(f"{name} is damaged ({reason}); compute it again")


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a fresh folder that takes the place of `target`, complete, when the block ends.

    It stands beside that, and is removed if the block fails. A folder that cannot be written is a
    `ConfigError`.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            fresh = Path(scratch, "fresh")
            fresh.mkdir()
            yield fresh
            if target.exists():
                target.rename(Path(scratch, "replaced"))
            fresh.rename(target)
    except OSError as error:
        raise unwritable(target, error) from None


def check_writable(folder: Path) -> None:
    """Make `folder`, or raise a `ConfigError` if nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise unwritable(folder, error) from None


def unwritable(path: Path, error: OSError) -> ConfigError:
    """Return the error for a `path` that cannot be written; of a full disk it says which."""
    reason, advice = error.strerror or error, "choose another folder"
    if error.errno in _FULL:
        whole = path.absolute()  # which need not exist: a file system begins at one of those above it
        place = next(one for one in (whole, *whole.parents) if one.is_mount())
        reason = f"{reason}: {shutil.disk_usage(place).free / 1e6:.1f} MB are free in {place}"
        advice = "free some space, and do the same again"
    return ConfigError(f"cannot write {path} ({reason}); {advice}")


def save_or_keep(save: Callable[[Path], object], target: Path, *, is_unique: bool) -> None:
    """Write a folder; what cannot be made again, `is_unique`, is written elsewhere if that fails.

    `save` writes it completely, or raises a `ConfigError`. So does this, if `target` cannot be
    written; it says where unique content is.
    """
    try:
        save(target)
    except ConfigError as error:
        if not is_unique:
            raise
        raise ConfigError(f"{error}. {_kept_elsewhere(save, target)}") from None


def _kept_elsewhere(save: Callable[[Path], object], target: Path) -> str:
    name = f"distsgd-kept-{secrets.token_hex(4)}"
    for place in _spare_places():
        with contextlib.suppress(ConfigError):
            save(place / name)
            return f"What cannot be made again is kept: mv {place / name} {target}"
    return "No other folder can hold it: free some space before this program ends, and save again"


def _spare_places() -> list[Path]:
    found = []
    for place in (tempfile.gettempdir, Path.home, Path.cwd):
        with contextlib.suppress(OSError, RuntimeError):  # there is none
            found.append(Path(place()))
    return found


def open_standard_streams() -> None:
    """Open the null device in place of each standard stream that a daemon has closed.

    Else a pipe gets its number, and what the program prints goes into the pipe; or a library that
    flushes finds none.
    """
    while (handle := os.open(os.devnull, os.O_RDWR)) < _STANDARD:
        os.set_inheritable(handle, True)
    os.close(handle)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115 # it stays
