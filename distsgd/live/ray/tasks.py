"""Work over a Ray cluster: `distsgd.experiment.pool.work` with tasks instead of processes.

1. What all pieces have in common goes into the object store once, as bytes: a node gets it once,
   and a process of it unpacks it once.
2. Results come back as bytes too, and are unpacked here: an array that Ray lends would fill its
   store for as long as the run is kept.
3. An interruption cancels the tasks. What has been given by then is the caller's.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, TypeVar

import cloudpickle  # type: ignore[import-untyped] # cloudpickle ships no types
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped] # same reason

from distsgd.errors import ConfigError, sendable
from distsgd.live.ray.failures import missing_package
from distsgd.live.ray.session import Session, connected, package

Common = TypeVar("Common")
Piece = TypeVar("Piece")
Done = TypeVar("Done")

AHEAD = 4
"""Tasks in flight per CPU: none waits for the driver, and a cluster sees that it may grow."""
FEWEST = 16
"""Tasks in flight at least, also on a cluster whose nodes are yet to come."""
RETRIES = 3
"""Times that a task is done again whose process or node ended."""
PATIENCE_S = 300.0
"""How long a cluster may have no CPU at all, while its nodes start [s]."""


def work(
    do: Callable[[Common, Piece], Done], common: Common, pieces: Sequence[Piece], *, processes: int | None = None
) -> Iterator[tuple[Piece, Done]]:
    """Do every piece of work as a task of Ray, and give each with its result as it is done.

    All nodes can import `do`, or it pickles by value. Pieces are small, since each is sent for
    itself. By default as many `processes` work at once as the cluster has CPUs. A cluster that
    cannot be used, or ended a task, is a `ConfigError`; whatever `do` raises is raised here.
    """
    if not pieces:
        return
    with connected(processes=processes) as session:
        task = session.ray.remote(num_cpus=1, max_retries=RETRIES)(_done)
        # In a list it stays a reference: as an argument it would be copied for every task.
        with sendable():
            sent = [session.ray.put(cloudpickle.dumps((do, common)))]
        yield from _results(session, partial(task.remote, sent), iter(pieces), processes)


def _results(
    session: Session, submit: Callable[[bytes], Any], waiting: Iterator[Piece], most: int | None
) -> Iterator[tuple[Piece, Any]]:
    running: dict[Any, Piece] = {}
    try:
        while True:
            room = max(0, _in_flight(session.n_cpus, most) - len(running))
            for piece in itertools.islice(waiting, room):
                running[submit(cloudpickle.dumps(piece))] = piece
            if not running:
                return
            for done in _finished(session, list(running)):
                yield running.pop(done), _result(session, done)
    finally:
        for left in running:
            session.ray.cancel(left, force=True)


def _in_flight(n_cpus: int, most: int | None) -> int:
    """Return how many tasks to have sent; fewer than `most` CPUs keep to their number anyway."""
    return most if most is not None and most < n_cpus else max(FEWEST, AHEAD * n_cpus)


def _finished(session: Session, running: list[Any]) -> list[Any]:
    """Wait for one, and return all that are done."""
    if not session.ray.wait(running, timeout=PATIENCE_S)[0] and session.n_cpus < 1:
        raise ConfigError(
            f"the Ray cluster has had no CPU for {PATIENCE_S:g} s; add a node to it, or give its"
            " head some with ray start --head --num-cpus"
        )
    found: list[Any] = session.ray.wait(running, num_returns=len(running), timeout=0)[0]
    return found


def _result(session: Session, done: Any) -> Any:  # noqa: ANN401 # what `do` returns
    errors = package("ray.exceptions")
    try:
        return cloudpickle.loads(session.ray.get(done))
    except errors.RayTaskError as error:
        # what the task raised, or a sentence about a package that its node lacks
        raise (missing_package("a node of the Ray cluster", error) or error.cause or error) from None
    except errors.RayError as error:
        raise ConfigError(
            f"Ray ended a task ({type(error).__name__}), perhaps for lack of memory; run the same"
            " command again to go on, with fewer processes"
        ) from None


def _done(sent: list[Any], piece: bytes) -> bytes:
    """Do a piece of work in a process of Ray."""
    do, common = _received(sent[0])
    content: bytes = cloudpickle.dumps(do(common, cloudpickle.loads(piece)))
    return content


@lru_cache(maxsize=1)
def _received(sent: Any) -> Any:  # noqa: ANN401 # what was sent
    unpacked = cloudpickle.loads(package("ray").get(sent))
    # After unpacking, which imports the libraries: the sums of each depend on its threads.
    threadpool_limits(1)
    return unpacked
