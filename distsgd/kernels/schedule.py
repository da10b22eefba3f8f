"""The order in which a server serves its workers, by an event heap over virtual time.

1. A worker has at most one entry in the heap: the arrival of the next message that it will send.
   What it does between two messages is computed when the first is served, since nothing can come
   between: it pulls nothing, so it knows all that it needs.
2. A push and the next pull, sent at one instant, arrive together and are served back to back. They
   are one entry. A pull before a push is one entry, and the push, sent when the reply is in, another.
3. Entries leave the heap by (arrival, worker), so the links and the server, which serve first come,
   first served, need only remember until when they are busy.
4. Who waits at the server (for a round to close, for slower workers, for a warm start to end) has no
   entry. It comes back when a push is served: right behind that push, in worker order.
5. The entry on top stays there until its worker's next one is known, because one walk down the heap
   is cheaper than two. So others enter only after it has been replaced or removed.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from distsgd.kernels import compiled
from distsgd.kernels.heap import Heap, pop, push, replace
from distsgd.kernels.laws import CONSTANT, sample
from distsgd.kernels.random import COMPUTE, FAILURE, draw, stream_key, uniform

PULL, PUSH, DROP = range(3)
RUNNING, ENOUGH, STUCK, BAD_DURATION, TOO_MANY_FAILURES = range(5)
WAITS = -1.0
"""Stands for the time of the next message of a worker that waits at the server."""
MOST_FAILURES = 1_000_000

ROW = np.dtype(
    [
        ("time", "f8"), ("sent", "f8"), ("done", "f8"), ("worker", "i4"), ("verb", "i4"),
        ("step", "i8"), ("version", "i8"), ("read", "i8"),
    ]
)  # fmt: skip
ROW_RECORD = np.dtype((np.record, ROW))
WORKER = np.dtype(
    (
        np.record,
        [
            ("key", "u8"),  # of its compute times
            ("sent", "f8"),  # when it sent, or will send, its next message [s]
            ("step", "i8"),  # steps completed by then
            ("read", "i8"),  # version pulled last
            ("oldest", "i8"),  # version read by the oldest gradient that is not pushed
            ("pushed", "i8"),  # steps completed at its last push
            ("speed", "f8"),
            ("law", "i4"),
            ("verb", "i4"),  # of its next message
        ],
    )
)
"""64 bytes, a cache line: with a million workers each visit costs one miss and not nine."""
HELD = np.dtype((np.record, [("row", "i8"), ("round", "i8"), ("waits", "i8")]))
"""A worker at the server: its push that is held, the round it may push to, and whether its pull waits."""
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
            ("n_held", "i8"),
            ("slowest", "i8"),  # fewest steps pushed by any worker
            ("n_slowest", "i8"),  # workers that have pushed no more than that
            ("has_risen", "i8"),  # whether `slowest` has risen since the last release
            ("status", "i8"),
            ("blame", "i8"),
        ],
    )
)
Record: TypeAlias = Any


class Plan(NamedTuple):
    """What stays as it is: the cycle, the network, the budget."""

    pull_every: int
    push_every: int
    pulls_at_0: bool
    pushes_at_0: bool
    pushes_first: bool
    quorum: int
    drops_late: bool
    has_bound: bool
    bound: int
    others_after: float
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


class Fleet(NamedTuple):
    """What changes: one record per worker, the server's, and the tables of laws that they draw from."""

    workers: np.ndarray
    held: np.ndarray
    members: np.ndarray
    failures: np.ndarray
    server: Record
    laws: np.ndarray
    samples: np.ndarray
    heap: Heap


@compiled
def run(plan: Plan, fleet: Fleet, rows: np.ndarray) -> np.ndarray:
    """Serve messages until the budget is spent, or nobody can go on; return the rows served."""
    server, heap = fleet.server, fleet.heap
    begin(plan, fleet)
    while server.status == RUNNING:
        if heap.size[0] == 0:
            server.status = STUCK
            break
        if server.n_rows + plan.rows_per_event > rows.size:
            rows = grown(rows, server.n_rows)
        arrival, worker = heap.times[0], heap.workers[0]
        version = server.version
        sends = visit(plan, fleet, rows, worker, arrival)
        if sends == WAITS:
            pop(heap)
        else:
            replace(heap, sends + plan.latency_s, worker)
        if plan.quorum > 1 and server.version > version:
            close_round(plan, fleet, rows)
        if server.has_risen:
            release_waiting(plan, fleet, rows)
        if version < plan.others_after <= server.version:
            start_others(plan, fleet, server.busy)
    return rows[: server.n_rows]


@compiled
def grown(rows: np.ndarray, n_rows: int) -> np.ndarray:
    """Return the rows in a buffer of twice the size."""
    bigger = np.empty(2 * rows.size, rows.dtype)
    bigger[:n_rows] = rows[:n_rows]
    return bigger


@compiled
def begin(plan: Plan, fleet: Fleet) -> None:
    """Start worker 0, and the others too unless they wait for a version."""
    enter(plan, fleet, 0, start(plan, fleet, 0, 0.0))
    if plan.others_after <= 0.0:
        start_others(plan, fleet, 0.0)


@compiled
def start_others(plan: Plan, fleet: Fleet, time: float) -> None:
    """Start every worker but the first."""
    for worker in range(1, fleet.workers.size):
        enter(plan, fleet, worker, start(plan, fleet, worker, time))


@compiled
def start(plan: Plan, fleet: Fleet, w: int, time: float) -> float:
    """Return when a worker that starts at `time` sends its first message."""
    if plan.pulls_at_0 or plan.pushes_at_0:
        worker = fleet.workers[w]
        worker.verb = next_verb(plan, 0)
        worker.sent = time
        return time
    return compute(plan, fleet, w, time)


@compiled
def enter(plan: Plan, fleet: Fleet, w: int, sends: float) -> None:
    """Put a worker into the heap, unless it waits."""
    if sends != WAITS:
        push(fleet.heap, sends + plan.latency_s, w)


@compiled
def pulls_at(plan: Plan, step: int) -> bool:
    """Return whether a worker pulls between its steps `step` - 1 and `step`."""
    if step == 0:
        return plan.pulls_at_0
    return plan.pull_every == 1 or step % plan.pull_every == 0


@compiled
def pushes_at(plan: Plan, step: int) -> bool:
    """Return whether a worker pushes between its steps `step` - 1 and `step`."""
    if step == 0:
        return plan.pushes_at_0
    return plan.push_every == 1 or step % plan.push_every == 0


@compiled
def next_verb(plan: Plan, step: int) -> int:
    """Return the verb that comes first among those due."""
    if plan.pushes_first:
        return PUSH if pushes_at(plan, step) else PULL
    return PULL if pulls_at(plan, step) else PUSH


@compiled
def compute(plan: Plan, fleet: Fleet, w: int, time: float) -> float:
    """Let a worker take steps from `time` until a verb is due; return when it sends."""
    worker = fleet.workers[w]
    if worker.pushed == worker.step:
        worker.oldest = worker.read
    step = worker.step
    while True:
        time += duration(plan, fleet, w, step)
        step += 1
        if pulls_at(plan, step) or pushes_at(plan, step):
            break
    worker.step = step
    worker.verb = next_verb(plan, step)
    worker.sent = time
    return time


@compiled
def duration(plan: Plan, fleet: Fleet, w: int, step: int) -> float:
    """Return how long a worker takes for one step, repairs included [s]."""
    worker = fleet.workers[w]
    law = fleet.laws[worker.law]
    seconds = sample(law, fleet.samples, worker.key, step) / worker.speed
    is_asked_for = law.kind == CONSTANT and law.a == 0.0
    if not (0.0 < seconds < np.inf or is_asked_for):
        fleet.server.status, fleet.server.blame = BAD_DURATION, w
    if plan.mean_time_s < np.inf:
        seconds += repairs(plan, fleet, w, seconds)
    return seconds


@compiled
def repairs(plan: Plan, fleet: Fleet, w: int, seconds: float) -> float:
    """Return the time lost to failures during a step that takes `seconds` [s].

    The exponential time to failure has no memory, so what is left of it carries over to the next
    step, and each failure takes one draw more, whatever the algorithm.
    """
    failure = fleet.failures[w]
    lost = 0.0
    for _ in range(MOST_FAILURES):
        if seconds <= failure.left:
            failure.left -= seconds
            return lost
        lost += failure.left + plan.repair_s
        failure.left = -plan.mean_time_s * np.log(uniform(draw(failure.key, failure.n)))
        failure.n += 1
    fleet.server.status, fleet.server.blame = TOO_MANY_FAILURES, w
    return lost


@compiled
def visit(plan: Plan, fleet: Fleet, rows: np.ndarray, w: int, arrival: float) -> float:
    """Serve what a worker sent; return when it sends next, or `WAITS`."""
    worker = fleet.workers[w]
    if worker.verb == PULL:
        return answer(plan, fleet, rows, w, arrival)
    row = serve_push(plan, fleet, rows, w, arrival)
    if fleet.server.status != RUNNING:
        return WAITS
    if plan.quorum == 1:
        return after_push(plan, fleet, rows, w, row, arrival, worker.sent)
    if rows[row].verb == DROP:
        fleet.held[w].round = fleet.server.version
        told = fleet.server.busy + plan.latency_s
        return after_push(plan, fleet, rows, w, row, arrival, told)
    return WAITS


@compiled
def after_push(
    plan: Plan, fleet: Fleet, rows: np.ndarray, w: int, row: int, arrival: float, told: float
) -> float:
    """Let a worker go on behind its push: with a pull that came along, or when it is `told` to."""
    if plan.pushes_first and pulls_at(plan, fleet.workers[w].step):
        return answer(plan, fleet, rows, w, arrival)
    rows[row].done = told
    return compute(plan, fleet, w, told)


@compiled
def receive(plan: Plan, server: Record, arrival: float, link_s: float) -> float:
    """Return when a message that arrived at `arrival` has been served [s]."""
    server.inbound = max(server.inbound, arrival) + link_s
    server.busy = max(server.busy, server.inbound) + plan.service_s
    if server.busy > plan.seconds:
        server.status = ENOUGH
    return server.busy


@compiled
def serve_push(plan: Plan, fleet: Fleet, rows: np.ndarray, w: int, arrival: float) -> int:
    """Serve a push; return its row."""
    worker, server = fleet.workers[w], fleet.server
    time = receive(plan, server, arrival, plan.push_s)
    row = server.n_rows
    if server.status != RUNNING:
        return row
    is_late = plan.drops_late and fleet.held[w].round < server.version
    rows[row].read = worker.read if plan.pushes_at_0 else worker.oldest
    if not is_late:
        join_round(plan, fleet, w, row)
    write(rows, server, w, DROP if is_late else PUSH, time, worker.sent, worker.sent, worker.step)
    count_steps(plan, fleet, w)
    if server.version >= plan.updates or server.gradients >= plan.gradients:
        server.status = ENOUGH
    return row


@compiled
def join_round(plan: Plan, fleet: Fleet, w: int, row: int) -> None:
    """Add a push to the round, which closes with the last one."""
    server = fleet.server
    if plan.quorum > 1:
        fleet.held[w].row = row
        fleet.members[server.n_held] = w
    server.n_held += 1
    if server.n_held == plan.quorum:
        server.n_held = 0
        server.version += 1


@compiled
def write(
    rows: np.ndarray, server: Record, w: int, verb: int,
    time: float, sent: float, done: float, step: int,
) -> None:  # fmt: skip
    """Write a row, all but what it read."""
    row = rows[server.n_rows]
    row.time, row.sent, row.done = time, sent, done
    row.worker, row.verb, row.step, row.version = w, verb, step, server.version
    server.n_rows += 1


@compiled
def count_steps(plan: Plan, fleet: Fleet, w: int) -> None:
    """Note the steps that a push brings, and whether the slowest worker has moved on."""
    worker, server = fleet.workers[w], fleet.server
    before = worker.pushed
    server.gradients += worker.step - before
    worker.pushed = worker.step
    if not plan.has_bound or before > server.slowest or worker.step == before:
        return
    server.n_slowest -= 1
    if server.n_slowest == 0:
        # Each worker has pushed since the last scan, so a push pays for one worker of it.
        server.slowest = fleet.workers["pushed"].min()
        server.n_slowest = (fleet.workers["pushed"] == server.slowest).sum()
        server.has_risen = 1


@compiled
def answer(plan: Plan, fleet: Fleet, rows: np.ndarray, w: int, arrival: float) -> float:
    """Serve a pull, unless its worker is too far ahead; return when the worker sends next."""
    worker, server = fleet.workers[w], fleet.server
    if server.status != RUNNING:
        return WAITS
    if plan.has_bound and worker.pushed - server.slowest > plan.bound:
        fleet.held[w].waits = 1
        return WAITS
    time = receive(plan, server, arrival, 0.0)
    if server.status != RUNNING:
        return WAITS
    server.outbound = max(server.outbound, time) + plan.pull_s
    done = server.outbound + plan.latency_s
    worker.read = server.version
    if plan.drops_late:
        fleet.held[w].round = server.version
    rows[server.n_rows].read = server.version
    write(rows, server, w, PULL, time, worker.sent, done, worker.step)
    if not plan.pushes_first and pushes_at(plan, worker.step):
        worker.verb = PUSH
        worker.sent = done
        return done
    return compute(plan, fleet, w, done)


@compiled
def close_round(plan: Plan, fleet: Fleet, rows: np.ndarray) -> None:
    """Release the members of the round that has just closed, in worker order."""
    server = fleet.server
    told = server.busy + plan.latency_s
    for w in np.sort(fleet.members):
        fleet.held[w].round = server.version
        enter(plan, fleet, w, after_push(plan, fleet, rows, w, fleet.held[w].row, 0.0, told))


@compiled
def release_waiting(plan: Plan, fleet: Fleet, rows: np.ndarray) -> None:
    """Serve the pulls that waited for slower workers and wait no more, in worker order."""
    fleet.server.has_risen = 0
    for w in range(fleet.workers.size):
        if fleet.held[w].waits:
            fleet.held[w].waits = 0
            enter(plan, fleet, w, answer(plan, fleet, rows, w, 0.0))


@compiled
def fill_keys(workers: np.ndarray, failures: np.ndarray, seed: int, mean_time_s: float) -> None:
    """Give each worker its streams, and the time until its first failure."""
    for w in range(workers.size):
        workers[w].key = stream_key(seed, COMPUTE, w)
    for w in range(failures.size):
        failures[w].key = stream_key(seed, FAILURE, w)
        failures[w].left = -mean_time_s * np.log(uniform(draw(failures[w].key, 0)))
        failures[w].n = 1
