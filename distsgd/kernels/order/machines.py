"""A simulated fleet as records, and what a worker does between two messages.

1. A worker's record says what it does next, `verb`, and when, `time`. A push leaves behind it a
   pull, a step or a wait; a pull leaves a step, a push or a wait; steps leave a pull or a push.
2. What is due in front of a step is what `distsgd.rules.cycle.SyncProtocol.due` says. The functions
   here are its compiled twins, and a test holds them against it.
3. How long step k of a worker takes depends on (seed, worker, k) alone, and its n-th failure on
   (seed, worker, n), whatever the cycle and whatever the others do.
4. Kernels pass records on, not the arrays that hold them: a record is an address, while an array
   is counted at every call.
"""

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from distsgd.kernels import compiled
from distsgd.kernels.draws.laws import CONSTANT, sample
from distsgd.kernels.draws.random import COMPUTE, FAILURE, Integer, draw, stream_key, uniform
from distsgd.rules.cycle import SyncProtocol
from distsgd.trace import DROP, PULL, PUSH, ROW

STEP, WAIT = DROP + 1, DROP + 2
"""What a worker may do next beside `PULL` and `PUSH`."""
NO_ROW = -1
RUNNING, ENOUGH, STUCK, BAD_DURATION, TOO_MANY_FAILURES = range(5)
MOST_FAILURES = 1_000_000

ROWS = np.dtype((np.record, ROW))
WORKER = np.dtype(
    (
        np.record,
        [
            ("key", "u8"),  # of its compute times
            ("time", "f8"),  # when it does what `verb` says [s]
            ("step", "i8"),  # steps completed by then
            ("read", "i8"),  # version pulled last
            ("oldest", "i8"),  # version read by the oldest gradient that is not pushed
            ("pushed", "i8"),  # steps completed at its last push
            ("speed", "f8"),
            ("law", "i4"),
            ("verb", "i4"),
        ],
    )
)
"""64 bytes, a cache line: with a million workers a visit costs one miss and not nine."""
HELD = np.dtype((np.record, [("row", "i8"), ("joins", "i8")]))
"""A worker at the server: the row of its push that is held, and the version it joins."""
FAILURES = np.dtype((np.record, [("key", "u8"), ("n", "i8"), ("left", "f8")]))
"""A worker's failures: stream, draws taken, computing time left until the next one [s]."""
SERVER = np.dtype(
    (
        np.record,
        [
            ("inbound", "f8"),  # until when the links and the server are busy [s]
            ("busy", "f8"),
            ("outbound", "f8"),
            ("version", "i8"),
            ("gradients", "i8"),  # steps whose gradients have been served
            ("n_rows", "i8"),
            ("n_started", "i8"),
            ("n_sending", "i8"),  # entries of the heap
            ("n_held", "i8"),
            ("slowest", "i8"),  # fewest steps pushed by any worker
            ("n_slowest", "i8"),  # workers that have pushed no more than that
            ("status", "i8"),
        ],
    )
)
Record: TypeAlias = Any
"""One entry of an array of these dtypes, changed in place."""


class Constants(NamedTuple):
    """What stays as it is: the protocol, the network, the budget, the failures."""

    sync: SyncProtocol
    latency_s: float
    push_s: float
    pull_s: float
    service_s: float
    updates: int
    gradients: int
    seconds: float
    mean_time_s: float
    repair_s: float
    rows_per_event: int
    """Rows that one entry of the heap leads to, at most."""


class FleetState(NamedTuple):
    """What changes: a record per worker and the server's, the heap, and the tables to draw from."""

    workers: np.ndarray
    held: np.ndarray
    members: np.ndarray
    failures: np.ndarray
    server: Record
    laws: np.ndarray
    samples: np.ndarray
    heap: np.ndarray


@compiled
def fill_keys(fleet: FleetState, seed: Integer, mean_time_s: float) -> None:
    """Give each worker its streams, and the time until its first failure."""
    for w in range(fleet.workers.size):
        fleet.workers[w].key = stream_key(seed, COMPUTE, w)
        failure = fleet.failures[w]
        failure.key = stream_key(seed, FAILURE, w)
        failure.left = -mean_time_s * math.log(uniform(draw(failure.key, 0)))
        failure.n = 1


@compiled
def pulls_at(const: Constants, step: int) -> bool:
    """Return whether a worker pulls between its steps `step` - 1 and `step`."""
    if step == 0:  # rule 2: nothing has been computed that a verb behind `Step` could send
        return const.sync.pulls_before_step
    # a division takes longer than all else here
    return const.sync.pull_every == 1 or step % const.sync.pull_every == 0


@compiled
def pushes_at(const: Constants, step: int) -> bool:
    """Return whether a worker pushes between its steps `step` - 1 and `step`."""
    if step == 0:
        return const.sync.pushes_before_step
    return const.sync.push_every == 1 or step % const.sync.push_every == 0


@compiled
def next_verb(const: Constants, step: int) -> int:
    """Return what a worker does first between its steps `step` - 1 and `step`."""
    pulls, pushes = pulls_at(const, step), pushes_at(const, step)
    if pushes and (const.sync.pushes_first or not pulls):
        return PUSH
    return PULL if pulls else STEP


@compiled
def compute(
    const: Constants, server: Record, worker: Record, failure: Record, law: Record, samples: np.ndarray
) -> None:
    """Let a worker take steps until a verb is due; its time is NaN if that cannot be computed."""
    if worker.pushed == worker.step:  # the next gradient is the oldest of the next push
        worker.oldest = worker.read
    time, step = worker.time, worker.step
    verb = STEP
    while verb == STEP:
        seconds = sample(law, samples, worker.key, step) / worker.speed  # rule 3
        is_asked_for = law.kind == CONSTANT and law.a == 0.0
        if not (0.0 < seconds < np.inf or is_asked_for):
            server.status, seconds = BAD_DURATION, math.nan
        if const.mean_time_s < np.inf:
            seconds += repairs(const, server, failure, seconds)
        time += seconds
        step += 1
        verb = next_verb(const, step)
    worker.time, worker.step, worker.verb = time, step, verb


@compiled
def repairs(const: Constants, server: Record, failure: Record, seconds: float) -> float:
    """Return the time lost to failures during a step that takes `seconds` [s].

    The exponential time to failure has no memory: what is left of it carries over to the next step.
    """
    lost = 0.0
    for _ in range(MOST_FAILURES):
        if seconds <= failure.left:
            failure.left -= seconds  # rule 3: the draw is used up by computing, not by steps
            return lost
        lost += failure.left + const.repair_s
        failure.left = -const.mean_time_s * math.log(uniform(draw(failure.key, failure.n)))
        failure.n += 1
    server.status = TOO_MANY_FAILURES
    return math.nan
