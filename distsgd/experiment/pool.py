"""Work over processes.

1. What a piece of work returns does not depend on the process that does it: linear algebra has one
   thread everywhere, since its sums depend on their number.
2. What all pieces have in common is sent once to each process, through a file.
3. An interruption ends the processes. What a piece of work has saved by then stays saved.
"""

import contextlib
import os
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle  # type: ignore[import-untyped] # cloudpickle ships no types
import joblib  # type: ignore[import-untyped] # same reason
from joblib.externals.loky.process_executor import TerminatedWorkerError  # type: ignore[import-untyped] # same reason
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped] # same reason

from distsgd.errors import ConfigError, check_count, raised
from distsgd.files import open_standard_streams, unwritable

Common = TypeVar("Common")
Piece = TypeVar("Piece")
Done = TypeVar("Done")


def n_processes(asked: int | None = None) -> int:
    """Return how many processes work: as many as asked for, or one per core at hand."""
    return joblib.cpu_count() if asked is None else check_count("processes", asked)


def work(
    do: Callable[[Common, Piece], Done], common: Common, pieces: Sequence[Piece], *, processes: int
) -> Iterator[tuple[Piece, Done]]:
    """Do every piece of work, and give each with its result as it is done.

    Each process gets `common` once, and pieces one by one: they should be small. With 1 of
    `processes` this one works, in the order of `pieces`. Whatever `do` raises is raised here, and a
    `ConfigError` if a process was killed from outside.
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
        results = joblib.Parallel(processes, return_as="generator_unordered", max_nbytes=None)(tasks)
        try:
            for place, done in results:
                yield pieces[place], done
        except TerminatedWorkerError:
            raise ConfigError(
                "a process was killed from outside, perhaps for lack of memory; run the same command"
                " again to go on, with fewer processes"
            ) from None
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that work is left: it was stopped on purpose
                results.close()


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
        except Exception as error:  # noqa: BLE001 # what a user's object may raise on its way
            raise ConfigError(
                "what is compared cannot be sent to other processes"
                f" ({raised(error)}); let one do everything: processes=1, or --processes 1"
            ) from None
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
