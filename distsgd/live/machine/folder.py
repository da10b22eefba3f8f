"""The private folder of a live run: its sockets and checkpoints, while its program lives.

The program holds a lock on the folder. The operating system lets go of it however the program ends,
so that a folder without a lock is what a killed program has left: the next run removes it.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from distsgd.files import unwritable

_PREFIX = "distsgd-run-"


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """Give a fresh folder that only this user can enter, and that is gone afterwards.

    Yields
    ------
    Path
        The folder, in the system's folder for temporary files.

    Raises
    ------
    ConfigError
        If it cannot be made.
    """
    with contextlib.ExitStack() as stack:
        path = None
        try:
            remove_dead()
            while path is None:
                path = _locked(Path(tempfile.mkdtemp(prefix=_PREFIX)), stack)
        except OSError as error:
            raise unwritable(Path(error.filename or os.curdir), error) from None
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        yield path


def remove_dead() -> None:
    """Remove the folders of runs of this user whose program has ended."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.ExitStack() as stack:
            if _locked(path, stack) is not None:
                shutil.rmtree(path, ignore_errors=True)


def _locked(path: Path, stack: contextlib.ExitStack) -> Path | None:
    """Lock a folder until `stack` ends; return None if it is locked, gone, or another user's."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    stack.callback(os.close, handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # another program may have removed the folder between its making and its locking
        is_same = path.stat().st_ino == os.fstat(handle).st_ino
    except OSError:
        return None
    return path if is_same and os.fstat(handle).st_uid == os.getuid() else None
