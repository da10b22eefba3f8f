"""The order in which a server serves its workers, by an event heap over virtual time.

1. A worker has at most one entry in the heap: the arrival of the next message that it will send.
   What it does between two messages is computed when the first is served, since nothing can come
   between: it pulls nothing, so it knows all that it needs.
2. A push and the next pull, sent at one instant, arrive together and are served back to back. They
   are one entry. A pull before a push is one entry; the push, sent when the reply is in, another.
3. Entries leave the heap by (arrival, worker), so the links and the server, which serve first come,
   first served, need only remember until when they are busy.
4. A worker that waits at the server (for a round to close, for slower workers, for a warm start to
   end) has no entry. It comes back when a push is served: right behind that push, in worker order.
5. The entry on top stays there until its worker's next one is known, because one walk down the heap
   is cheaper than two. So others enter only after it has been replaced or removed.
6. A trace ends with the push that spends the budget: no pull behind it is served, and no message
   later than the last second.
7. The slowest worker is looked for when the last of those that were as slow has pushed. As each has
   pushed since the last look, a look costs a constant per push.
"""

import numpy as np

from distsgd.kernels import compiled
from distsgd.kernels.order.heap import pop, push, replace
from distsgd.kernels.order.machines import (
    ENOUGH,
    NO_ROW,
    RUNNING,
    STEP,
    STUCK,
    WAIT,
    Constants,
    FleetState,
    Record,
    compute,
    next_verb,
    pulls_at,
    pushes_at,
)
from distsgd.trace import DROP, PULL, PUSH


@compiled
def run(  # noqa: C901 # one loop over arrays at hand: passing them on costs half of the speed
    const: Constants, fleet: FleetState, rows: np.ndarray
) -> np.ndarray:
    """Serve messages until the budget is spent, or no worker can go on; return the rows served."""
    workers, held, members, failures, server, laws, samples, heap = fleet
    start(const, fleet, workers.size if const.sync.others_after <= 0.0 else 1)
    while server.status == RUNNING:
        if server.n_sending == 0:  # rule 4: all wait for a push, and no one is left to send it
            server.status = STUCK
            break
        if server.n_rows + const.rows_per_event > rows.size:
            rows = grown(rows, server.n_rows)
        version, slowest = server.version, server.slowest
        w = heap[0].worker
        worker = workers[w]
        if worker.verb == PUSH:
            serve_push(const, server, worker, held[w], members, rows[server.n_rows], w)
            if server.n_slowest == 0:  # rule 7
                find_slowest(workers, server)
        if worker.verb == PULL and server.status == RUNNING:  # rules 2 and 6
            serve_pull(const, server, worker, held[w], rows[server.n_rows], w)
        if worker.verb == STEP:  # rule 1
            compute(const, server, worker, failures[w], laws[worker.law], samples)
        if worker.verb == WAIT:
            pop(heap, server.n_sending)
            server.n_sending -= 1
        else:
            replace(heap, server.n_sending, worker.time + const.latency_s, w)
        # rule 5: from here on the heap's top is not this worker's old entry, and others may enter
        if server.version > version and const.sync.quorum > 1:
            close_round(const, fleet, rows)
        if version < const.sync.others_after <= server.version:
            start(const, fleet, workers.size)
        if server.slowest > slowest:
            release_waiting(const, fleet, rows)
    return rows[: server.n_rows]


@compiled
def grown(rows: np.ndarray, n_rows: int) -> np.ndarray:
    """Return the rows in a buffer of twice the size."""
    bigger = np.empty(2 * rows.size, rows.dtype)
    for row in range(n_rows):
        bigger[row] = rows[row]
    return bigger


@compiled
def start(const: Constants, fleet: FleetState, end: int) -> None:
    """Start the workers before `end` that have not started, with what comes before step 0."""
    server = fleet.server
    for w in range(server.n_started, end):
        fleet.workers[w].time = server.busy
        fleet.workers[w].verb = next_verb(const, 0)
        go_on(const, fleet, w)
    server.n_started = end


@compiled
def go_on(const: Constants, fleet: FleetState, w: int) -> None:
    """Let a worker compute, if that is its next verb, and enter the heap unless it waits."""
    worker, server = fleet.workers[w], fleet.server
    if worker.verb == STEP:
        law = fleet.laws[worker.law]
        compute(const, server, worker, fleet.failures[w], law, fleet.samples)
    if worker.verb != WAIT:
        push(fleet.heap, server.n_sending, worker.time + const.latency_s, w)
        server.n_sending += 1


@compiled
def receive(const: Constants, server: Record, sent: float, link_s: float) -> float:
    """Return when a message that was sent at `sent` has been served [s]."""
    # rule 3: messages come in the order of their arrival, so that no queue has to be kept
    server.inbound = max(server.inbound, sent + const.latency_s) + link_s
    server.busy = max(server.busy, server.inbound) + const.service_s
    return server.busy


@compiled
def serve_push(
    const: Constants, server: Record, worker: Record, held: Record, members: np.ndarray, row: Record, w: int
) -> None:
    """Apply a push, hold it for its round, or drop it."""
    time = receive(const, server, worker.time, const.push_s)
    if time > const.seconds:
        server.status = ENOUGH
        return
    is_late = const.sync.drops_late and held.joins < server.version
    is_held = const.sync.quorum > 1 and not is_late  # rule 4: a round of one closes at once
    if is_held:
        held.row = server.n_rows
        members[server.n_held] = w
    if not is_late:
        server.n_held += 1
        if server.n_held == const.sync.quorum:
            server.n_held = 0
            server.version += 1
    row.verb = DROP if is_late else PUSH
    row.read = worker.read if const.sync.pushes_before_step else worker.oldest
    write(row, server, worker, w, time, worker.time)
    count_steps(const, server, worker)
    worker.verb = WAIT
    if not is_held:
        held.joins = server.version
        told = time + const.latency_s if is_late else worker.time
        release(const, worker, row, told)
    if server.version >= const.updates or server.gradients >= const.gradients:
        server.status = ENOUGH


@compiled
def write(row: Record, server: Record, worker: Record, w: int, time: float, done: float) -> None:
    """Write a row, all but its verb and what it read."""
    row.time, row.sent, row.done = time, worker.time, done
    row.worker, row.step, row.version = w, worker.step, server.version
    server.n_rows += 1


@compiled
def count_steps(const: Constants, server: Record, worker: Record) -> None:
    """Count the steps that a push brings, and the workers that are left behind by it."""
    server.gradients += worker.step - worker.pushed
    if const.sync.bound < np.inf and worker.pushed == server.slowest and worker.step > worker.pushed:  # rule 7
        server.n_slowest -= 1
    worker.pushed = worker.step


@compiled
def find_slowest(workers: np.ndarray, server: Record) -> None:
    """Look for the slowest worker; since the last look each has pushed, which pays for it."""
    server.slowest = workers[0].pushed
    for w in range(workers.size):
        if workers[w].pushed < server.slowest:
            server.slowest, server.n_slowest = workers[w].pushed, 0
        if workers[w].pushed == server.slowest:
            server.n_slowest += 1


@compiled
def release(const: Constants, worker: Record, row: Record, told: float) -> None:
    """Let a worker go on behind its push: with the pull that came along, or once it is `told`."""
    if const.sync.pushes_first and pulls_at(const, worker.step):
        worker.verb = PULL
    else:
        worker.verb = STEP
        worker.time = told
        row.done = told


@compiled
def serve_pull(const: Constants, server: Record, worker: Record, held: Record, row: Record, w: int) -> None:
    """Answer a pull, or let it wait while its worker is too far ahead."""
    if worker.pushed - server.slowest > const.sync.bound:
        worker.verb = WAIT
        held.row = NO_ROW  # rule 4: tells a wait for slower workers from one for a round
        return
    time = receive(const, server, worker.time, 0.0)
    if time > const.seconds:
        server.status = ENOUGH
        return
    server.outbound = max(server.outbound, time) + const.pull_s
    done = server.outbound + const.latency_s
    row.verb = PULL
    row.read = server.version
    write(row, server, worker, w, time, done)
    worker.read = server.version
    worker.time = done
    worker.verb = PUSH if pushes_at(const, worker.step) and not const.sync.pushes_first else STEP
    held.joins = server.version


@compiled
def close_round(const: Constants, fleet: FleetState, rows: np.ndarray) -> None:
    """Release the members of the round that has just closed, in worker order."""
    server = fleet.server
    told = server.busy + const.latency_s
    for w in np.sort(fleet.members):  # rule 4
        worker, held = fleet.workers[w], fleet.held[w]
        held.joins = server.version
        release(const, worker, rows[held.row], told)
        if worker.verb == PULL and server.status == RUNNING:  # rule 6
            serve_pull(const, server, worker, held, rows[server.n_rows], w)
        go_on(const, fleet, w)


@compiled
def release_waiting(const: Constants, fleet: FleetState, rows: np.ndarray) -> None:
    """Serve the pulls that waited for slower workers and wait no more, in worker order."""
    server = fleet.server
    for w in range(fleet.workers.size):  # rule 4
        worker, held = fleet.workers[w], fleet.held[w]
        if worker.verb == WAIT and held.row == NO_ROW and server.status == RUNNING:
            serve_pull(const, server, worker, held, rows[server.n_rows], w)
            go_on(const, fleet, w)
