"""Service: requests in, decisions and trace rows out. No socket, no clock, no numbers.

1. The rules are those of a simulation (`distsgd.order.schedule`): a push is held until its round
   closes; a push and the pull that came along are served back to back, unless the pull has to
   wait; workers that wait are served right behind the push that ends the wait, in worker order.
2. What a worker sends next is known from its cycle. Anything else is a `WireError`.
3. A worker that was given up leaves a `LEAVE` row. Where it is replaced, others wait for the new
   one. Where workers shrink, no worker waits for it: a round needs no more pushes than can come.
4. A worker that begins again leaves a `JOIN` row, and does in front of its step what a worker does
   at its start. The first start of a worker is no row.
5. Times come from the workers. They are moved as far as is needed for an order that a server can
   have served: no worker sends before it went on, nor after it was served.
6. The evaluator is shown a model between two updates: the first that is as far as it has asked for,
   or else the last one.
7. A worker is not waited for that waits for its start, where nothing else would raise the version:
   after a loss a bound and a warm start can wait for each other. A schedule refuses such cycles.
"""

from collections import deque

import msgspec
import numpy as np
from numpy.typing import NDArray

from distsgd.live.messages.wire import REQUESTS, Header, Kind, State
from distsgd.live.server.config import ServiceConfig
from distsgd.live.server.decisions import Action, Decision
from distsgd.live.server.records import Held, Rows, ServiceMemory, WorkerMemory, WorkerRecord
from distsgd.trace import DROP, JOIN, LEAVE, PULL, PUSH

_LATEST = 1000
"""Updates over which the mean staleness is taken."""


class Service:
    """Decides which workers to serve.

    It goes on from the memory of a checkpoint, if there is one, and the ``ROW[n]`` up to there.
    """

    def __init__(
        self, config: ServiceConfig, memory: ServiceMemory | None = None, rows: NDArray[np.void] | None = None
    ) -> None:
        self._config, self._sync, self.rows = config, config.sync, Rows(rows)
        self._workers = [WorkerRecord(w) for w in range(config.workers)]
        self.version = self.gradients = self._closed_gradients = 0
        self._closed_at = self._time = 0.0
        self._oldest = 0 if memory is None else memory.version
        if memory is not None:
            self._remember(memory)
        self._held: list[Held] = []
        self._slowest = self._find_slowest()
        self._n_starting = 0
        self._snapshot: Header | None = None
        self._shown = -1
        self._staleness: deque[int] = deque(maxlen=_LATEST)
        self._decisions: list[Decision] = []
        self.is_over = False

    @property
    def n_held(self) -> int:
        """Pushes of the open round."""
        return len(self._held)

    def count(self, state: State) -> State:
        """Return `state` with what is known here."""
        return msgspec.structs.replace(
            state,
            updates=self.version,
            gradients=self.gradients,
            alive=[one.number for one in self._workers if one.is_started],
            lost=[one.number for one in self._workers if not one.is_alive],
            staleness=sum(self._staleness) / max(1, len(self._staleness)),
        )

    def is_alive(self, worker: int) -> bool:
        """Return whether a worker has not been given up."""
        return self._workers[worker].is_alive

    def first_open_row(self) -> int:
        """Return the first row that may still change."""
        opened = (one.row for one in self._workers if one.row >= 0 and one.is_alive)
        return min(opened, default=self.rows.n)

    def memory(self) -> ServiceMemory:
        """Return what a checkpoint keeps beside the rows; no push may be held."""
        workers = [
            WorkerMemory(one.is_alive, one.has_rows, one.served, one.pushed, one.n_pulls) for one in self._workers
        ]
        return ServiceMemory(self.version, self.gradients, self._closed_gradients, self._closed_at, workers)

    def serve(self, header: Header, now: float) -> list[Decision]:
        """Take a JOIN, PULL, PUSH or EXCHANGE at `now` [s], and return what follows from it.

        Nothing follows if the worker has to wait. If its cycle has another request next, that is a
        `WireError`, and nothing has changed.
        """
        worker = self._workers[header.peer]
        kind = header.kind
        if kind != Kind.JOIN:
            worker.check(header)  # rule 2: before anything is changed
        self._time = now = max(now, self._time)
        if self.is_past(now):
            return self.end(now)
        if worker.open_row >= 0:
            worker.went_on = max(worker.went_on, min(header.resumed, now))  # rule 5
            self.rows.set_done(worker.open_row, worker.went_on)
            worker.open_row = -1
        worker.sequence = header.sequence
        worker.sent = min(max(header.sent, worker.went_on), now)  # rule 5
        if kind == Kind.JOIN:
            self._join(worker)
            return self._taken()
        worker.step = header.step
        worker.expected = worker.expected[1:]
        if not worker.expected:
            self._expect(worker, self._sync.next_due(worker.due_step), is_first=False)
        if kind == Kind.PULL:
            self._pull(worker)
        else:
            worker.brings_pull = kind == Kind.EXCHANGE
            self._push(worker, header.push)
        return self._taken()

    def leave(self, number: int, now: float) -> list[Decision]:
        """Give a worker up: write its row, and let those go on that waited for it alone."""
        worker = self._workers[number]
        if not worker.is_alive or self.is_over:
            return []
        self._time = now = max(now, self._time)
        worker.is_alive = worker.is_started = False
        worker.waits, worker.brings_pull, worker.open_row = "", False, -1
        worker.life += 1
        worker.sent, worker.step = now, worker.served
        self._decide(Action.LEAVE, worker)  # first: shards copy its push before the round closes
        closes = not worker.has_left and 0 < len(self._held) >= self._needed()  # rule 3
        self.version += closes
        if not worker.has_left:  # a replacement may be lost before it begins
            self._write(worker, LEAVE, self.version, now)
            worker.has_left = True
        is_enough = self.version >= self._config.limits.updates
        if closes:
            self._close(is_last=is_enough)
        if is_enough:
            self._finish()
        self._start_others()
        self._release_waiting()
        return self._taken()

    def admit(self, number: int, session: int, now: float) -> list[Decision]:
        """Let another process take a worker's place, which it has left."""
        decisions = self.leave(number, now)
        worker = self._workers[number]
        worker.is_alive = True
        self._decide(Action.ADMIT, worker, session=session)
        return decisions + self._taken()

    def show(self, header: Header) -> list[Decision]:
        """Take the evaluator's request for a snapshot, and answer it as soon as possible."""
        self._snapshot = header
        self._offer()
        return self._taken()

    def is_shown(self) -> bool:
        """Return whether the evaluator has the last model."""
        return self.is_over and self._shown == self.version

    def is_past(self, now: float) -> bool:
        """Return whether the time of the run is over."""
        return now > self._config.limits.seconds

    def end(self, now: float) -> list[Decision]:
        """End the run; workers that wait are not served any more."""
        self._time = max(now, self._time)
        if not self.is_over:
            self._finish()
        return self._taken()

    def _remember(self, memory: ServiceMemory) -> None:
        self.version, self.gradients = memory.version, memory.gradients
        self._closed_gradients, self._closed_at = memory.closed_gradients, memory.closed_at
        self._time = memory.closed_at
        last = self.rows.since(0)
        for worker, known in zip(self._workers, memory.workers, strict=True):
            worker.is_alive, worker.has_rows = known.is_alive, known.has_rows
            worker.step = worker.served = known.step
            worker.pushed, worker.n_pulls = known.pushed, known.n_pulls
            own = np.flatnonzero(last["worker"] == worker.number)
            if own.size:
                worker.row, worker.went_on = int(own[-1]), float(last["done"][own[-1]])
                worker.has_left = last["verb"][own[-1]] == LEAVE
                self._time = max(self._time, float(last["time"][own[-1]]))

    def _expect(self, worker: WorkerRecord, step: int, *, is_first: bool) -> None:
        sync = self._sync
        worker.due_step, worker.expected = step, REQUESTS[sync.due(step, is_first=is_first)]
        if not worker.expected:  # nothing is due in front of a first step that is not 0
            worker.due_step = sync.next_due(step)
            worker.expected = REQUESTS[sync.due(worker.due_step, is_first=False)]

    def _join(self, worker: WorkerRecord) -> None:
        worker.life += 1
        worker.is_started, worker.brings_pull = False, False
        worker.waits = "its start"
        self._n_starting = sum(one.waits == "its start" for one in self._workers)
        if self._may_start(worker):
            self._start(worker)
            self._release_waiting()  # steps that were lost are not waited for

    def _may_start(self, worker: WorkerRecord) -> bool:
        if self.version >= self._sync.others_after or self._is_stuck():
            return True
        first = 0
        if self._config.shrinks:
            first = next((one.number for one in self._workers if one.is_alive), 0)
        return worker.number == first

    def _is_stuck(self) -> bool:
        """Return whether all workers wait for slower ones, or for their start (rule 7)."""
        return {"slower workers"} < {one.waits for one in self._workers} <= {"slower workers", "its start"}

    def _start(self, worker: WorkerRecord) -> None:
        worker.waits, worker.is_started, worker.has_left = "", True, False
        worker.step = worker.pushed = worker.served
        if worker.has_rows:  # rule 4
            self._decide(Action.JOIN, worker, version=self.version)
            self._write(worker, JOIN, self.version, self._time)
            worker.read = worker.oldest = worker.joins = self.version
            worker.open_row = worker.row
        else:
            self._decide(Action.START, worker)
        self._expect(worker, worker.step, is_first=True)  # rule 4

    def _start_others(self) -> None:
        for worker in self._workers:
            if worker.waits == "its start" and not self.is_over and self._may_start(worker):
                self._start(worker)

    def _pull(self, worker: WorkerRecord) -> None:
        if worker.pushed - self._slowest > self._sync.bound:
            worker.waits = "slower workers"
            self._start_others()  # rule 7
            return
        worker.waits = ""
        lag = self._config.staleness.lag_of(worker.number, worker.n_pulls)
        read = max(self._oldest, self.version - lag)  # a restart has kept no version before it
        worker.n_pulls += 1
        worker.read, worker.joins = read, self.version
        if worker.step == worker.pushed:
            worker.oldest = read
        self._write(worker, PULL, read, self._time)
        worker.open_row = worker.row
        self._decide(Action.PULL, worker, version=read)

    def _push(self, worker: WorkerRecord, push: int) -> None:
        sync = self._sync
        is_late = sync.drops_late and worker.joins < self.version
        read = worker.read if sync.pushes_before_step else worker.oldest
        self._decide(Action.DROP if is_late else Action.HOLD, worker, push=push)
        if not is_late:
            self._held.append(Held(worker.number, worker.life, worker.step, read))
        closes = not is_late and len(self._held) >= self._needed()
        self.version += closes
        self._write(worker, DROP if is_late else PUSH, read, worker.sent)
        self._count(worker)
        worker.waits = "its round"
        budget = self._config.limits
        is_enough = self.version >= budget.updates or self.gradients >= budget.gradients
        if is_late:
            self._release(worker, is_over=is_enough)
        elif closes:
            self._close(is_last=is_enough)
        if is_enough:
            self._finish()
        elif sync.has_bound:
            self._release_waiting()

    def _count(self, worker: WorkerRecord) -> None:
        self.gradients += worker.step - worker.pushed
        worker.pushed, worker.oldest = worker.step, worker.read
        if self._sync.has_bound:
            self._slowest = self._find_slowest()

    def _find_slowest(self) -> int:
        counted = (w.pushed for w in self._workers if w.is_alive or not self._config.shrinks)  # rule 3
        return min(counted, default=0)

    def _needed(self) -> int:
        """Return how many pushes close the round: all that can come, if workers are lost."""
        sync = self._sync
        if sync.quorum == 1 or not self._config.shrinks:
            return sync.quorum
        n_alive = sum(one.is_alive for one in self._workers)  # rule 3; and pushes of the dead count
        return min(sync.quorum, n_alive + sum(not self._is_waiting(one) for one in self._held))

    def _is_waiting(self, held: Held) -> bool:
        """Return whether the worker of a push that is held still waits for its round."""
        return self._workers[held.worker].life == held.life

    def _close(self, *, is_last: bool = False) -> None:
        """Apply the round, which has raised the version, and release its members in order."""
        members, self._held = self._held, []
        if len(members) > 1:  # rule 1: releases, and shards their sums, in worker order
            members.sort(key=lambda one: one.worker)
        met = self.version - 1
        staleness = met - min([one.read for one in members])
        schedule, factor = self._config.schedule, 1.0
        if schedule is not None:
            factor = schedule(self._closed_gradients * self._config.epochs_per_step)
        self._closed_gradients, self._closed_at = self.gradients, self._time
        self._staleness.append(staleness)
        self._decisions.append(
            Decision(
                Action.CLOSE, step=members[-1].step, version=met, staleness=staleness, factor=factor, time=self._time
            )
        )
        if self._snapshot is not None:  # rule 6: before a release lets the next push in
            self._offer()
        for held in members:
            if self._is_waiting(held):
                self._release(self._workers[held.worker], is_over=is_last)
        if not is_last and self._n_starting:
            self._start_others()

    def _release(self, worker: WorkerRecord, *, is_over: bool) -> None:
        """Let a worker go on behind its push: with the pull that came along, or at once."""
        worker.joins = self.version
        if worker.brings_pull:
            if not is_over:  # an order ends with a push
                worker.brings_pull = False
                self._pull(worker)  # rule 1: back to back
            return
        worker.waits = ""
        self._decide(Action.RELEASE, worker)
        if self._sync.waits:
            self.rows.set_done(worker.row, self._time)
            worker.went_on, worker.open_row = self._time, worker.row

    def _release_waiting(self) -> None:
        """Serve the pulls that waited for slower workers and wait no more, in worker order."""
        self._slowest = self._find_slowest()
        for worker in self._workers:  # rule 1: in worker order
            if worker.waits == "slower workers" and not self.is_over:
                self._pull(worker)

    def _offer(self) -> None:
        """Answer the evaluator if the model is as far as it has asked for, or the last one."""
        header = self._snapshot
        if header is None or (self.is_over and self._shown == self.version):
            return
        is_far = self.version >= header.version and self._closed_gradients >= header.step
        if is_far or self.is_over:
            self._snapshot, self._shown = None, self.version
            about = {"sequence": header.sequence, "step": self._closed_gradients, "version": self.version}
            self._decisions.append(Decision(Action.SNAPSHOT, **about, time=self._closed_at))

    def _finish(self) -> None:
        self.is_over = True
        self._decisions.append(Decision(Action.END, version=self.version, time=self._time))
        self._offer()

    def _decide(
        self, action: Action, worker: WorkerRecord, *, version: int = 0, push: int = 0, session: int = 0
    ) -> None:
        self._decisions.append(
            Decision(action, worker.number, worker.sequence, push, worker.step, version, 0, 1.0, self._time, session)
        )

    def _write(self, worker: WorkerRecord, verb: int, read: int, done: float) -> None:
        row = self._time, worker.sent, done, worker.number, verb, worker.step, self.version, read
        worker.row = self.rows.append(row)
        worker.has_rows, worker.served, worker.went_on = True, worker.step, done

    def _taken(self) -> list[Decision]:
        decisions, self._decisions = self._decisions, []
        return decisions
