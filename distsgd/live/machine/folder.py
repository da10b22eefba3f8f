"""Folders that one program at a time works in: that of a comparison, and the private one of a run.

A program holds the lock of its folder. The operating system lets go of the lock however the program
ends, so that a run's folder without a lock is what a killed program has left: the next run removes
it. A process that is forked meanwhile does not hold the lock with its parent.
"""

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from distsgd.errors import ConfigError
from distsgd.files import unwritable

LOCK = ".lock"
"""File that a program holds while it works in a folder."""
_PREFIX = "distsgd-run-"


def _lock(folder: Path) -> FileLock:
    """Return the lock of a folder, not taken yet; taking it fails at once where another has it."""
    # a lock that is no more than a file would outlast a killed program
    return FileLock(folder / LOCK, blocking=False, fallback_to_soft=False)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other programs out of `folder` while the block runs; its lock names the process.

    If another program works in it, or its lock cannot be written, it is a `ConfigError`.
    """
    path = folder / LOCK
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_lock(folder))
            stack.callback(path.unlink, missing_ok=True)
            path.write_text(str(os.getpid()), encoding="ascii")
        except Timeout:
            raise _in_use(folder) from None
        except OSError as error:
            raise unwritable(path, error) from None
        yield


def _in_use(folder: Path) -> ConfigError:
    with contextlib.suppress(OSError):
        holder = (folder / LOCK).read_text(encoding="ascii", errors="replace")
        return ConfigError(f"{folder} is in use by process {holder}; wait, or choose another folder")
    return ConfigError(f"{folder} was in use just now; try again")


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """Give a fresh folder that only this user can enter, and that is gone afterwards.

    It is in the system's folder for temporary files; if it cannot be made, it is a `ConfigError`.
    """
    with contextlib.ExitStack() as stack:
        try:
            remove_dead()
            path = _fresh(stack)
        except OSError as error:
            raise unwritable(Path(error.filename or os.curdir), error) from None
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        yield path


def _fresh(stack: contextlib.ExitStack) -> Path:
    """Make a folder that is locked until `stack` ends."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # before it is locked, another program may take it for a dead one and remove it
        with contextlib.suppress(Timeout, FileNotFoundError, FileExistsError):
            stack.enter_context(_lock(path))
            path.chmod(stat.S_IRWXU)  # a removed one has been made anew by the lock, for all to enter
            return path


def remove_dead() -> None:
    """Remove the folders of runs of this user whose program has ended."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # it is locked, or has gone meanwhile
            if path.lstat().st_uid == os.getuid():
                with _lock(path):
                    shutil.rmtree(path, ignore_errors=True)
