"""Work over processes, and a folder that one process at a time works in.

1. What a piece of work returns does not depend on the process that does it: linear algebra has one
   thread everywhere, since its sums depend on their number.
2. What all pieces have in common is sent once to each process, through a file.
3. An interruption ends the processes. What a piece of work has saved by then stays saved.
"""

import contextlib
import fcntl
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle  # type: ignore[import-untyped] # cloudpickle ships no types
import joblib  # type: ignore[import-untyped] # same reason
from joblib.externals.loky.process_executor import TerminatedWorkerError  # type: ignore[import-untyped] # same reason
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped] # same reason

from distsgd.errors import ConfigError, check_count
from distsgd.files import open_standard_streams, unwritable

Common = TypeVar("Common")
Piece = TypeVar("Piece")
Done = TypeVar("Done")

LOCK = ".lock"
"""File that a process holds while it works in a folder; it contains the process's number."""


def n_processes(asked: int | None = None) -> int:
    """Return how many processes work: as many as asked for, or one per core at hand."""
    return joblib.cpu_count() if asked is None else check_count("processes", asked)


def work(
    do: Callable[[Common, Piece], Done], common: Common, pieces: Sequence[Piece], *, processes: int
) -> Iterator[tuple[Piece, Done]]:
    """Do every piece of work, and give each with its result as it is done.

    Parameters
    ----------
    do : callable
        Function of `common` and a piece.
    common : object
        What all pieces need, sent once to each process.
    pieces : sequence
        What is to be done; small, since each is sent to a process.
    processes : int
        How many work at once; 1 works in this process, in the order of `pieces`.

    Yields
    ------
    tuple
        A piece and its result.

    Raises
    ------
    ConfigError
        If a process was killed from outside; or whatever `do` raises.
    """
    if processes == 1 or len(pieces) < 2:
        with threadpool_limits(1):
            for piece in pieces:
                yield piece, do(common, piece)
        return
    open_standard_streams()
    started = {"initializer": _obey, "initargs": (os.getpid(),)}
    with _sent(common) as path, joblib.parallel_config("loky", inner_max_num_threads=1, **started):
        tasks = (joblib.delayed(_do)(do, path, place, piece) for place, piece in enumerate(pieces))
        parallel = joblib.Parallel(processes, return_as="generator_unordered", max_nbytes=None)
        yield from _results(parallel(tasks), pieces)


def _results(found: Iterator[tuple[int, Done]], pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Done]]:
    try:
        for place, done in found:
            yield pieces[place], done
    except TerminatedWorkerError:
        msg = (
            "a process was killed from outside, perhaps for lack of memory; run the same command"
            " again to go on, with fewer processes"
        )
        raise ConfigError(msg) from None


@contextlib.contextmanager
def _sent(common: object) -> Iterator[str]:
    """Write `common` into a file of its own name, which is gone afterwards."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="distsgd-", suffix=".pickle"))
            cloudpickle.dump(common, file)
            file.flush()
        except OSError as error:
            raise unwritable(Path(error.filename or tempfile.gettempdir()), error) from None
        yield file.name


def _do(do: Callable[[Any, Any], Any], path: str, place: int, piece: object) -> tuple[int, Any]:
    return place, do(_received(path), piece)


@lru_cache(maxsize=1)
def _received(path: str) -> Any:  # noqa: ANN401 # what was sent
    return cloudpickle.loads(Path(path).read_bytes())


def _obey(parent: int) -> None:
    """End with the process `parent`, which started this one, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    never = threading.Event()
    while os.getppid() == parent:
        never.wait(1.0)
    os._exit(1)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of `folder` while the block runs.

    The lock is the operating system's, so that it ends with its process, however that ends.

    Parameters
    ----------
    folder : Path
        Folder that exists and can be written.

    Yields
    ------
    None
        While the folder is this process's.

    Raises
    ------
    ConfigError
        If another process works in it, or its lock cannot be written.
    """
    path = folder / LOCK
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("a+", encoding="ascii"))
            _take(file.fileno(), folder)
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        except BlockingIOError:
            raise _in_use(folder) from None
        except OSError as error:
            raise unwritable(path, error) from None
        stack.callback(path.unlink, missing_ok=True)
        yield


def _take(handle: int, folder: Path) -> None:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    path = folder / LOCK
    # The process that held it may have removed the file between our opening and our locking it.
    if not path.exists() or path.stat().st_ino != os.fstat(handle).st_ino:
        raise _in_use(folder)


def _in_use(folder: Path) -> ConfigError:
    with contextlib.suppress(OSError):
        holder = (folder / LOCK).read_text(encoding="ascii", errors="replace")
        return ConfigError(f"{folder} is in use by process {holder}; wait, or choose another folder")
    return ConfigError(f"{folder} was in use just now; try again")
