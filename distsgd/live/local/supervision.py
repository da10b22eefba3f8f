"""The supervision of a live run: which processes are replaced, and what the lead is told.

1. A worker that was killed, or that misses its heartbeats, is replaced under a new session, or the
   others go on without it. One that fails ends the run, since the next one would fail too.
2. The servers and the evaluator live and die together. When one of them is killed, all start again
   with the next life, from the last checkpoint; the workers join again.
3. Nothing here knows whether processes are forked here or placed on a cluster: `Processes` does.
"""

import math
import secrets
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable
from typing import NamedTuple

from distsgd.errors import WorkerLost
from distsgd.fold.request import Progress
from distsgd.live.machine.failure import Failure
from distsgd.live.machine.forking import End
from distsgd.live.messages.wire import Kind, State
from distsgd.live.options import LiveRequest
from distsgd.live.peers.evaluator import Judged
from distsgd.live.server.control import Answer, Control, Instruction

MOST_LOSSES = 10
"""Times that a worker is replaced, or that the servers are started again, in one run."""


class Role(NamedTuple):
    """What a process is there for; `number` counts workers and shards."""

    name: str
    number: int = 0

    def __str__(self) -> str:
        return f"{self.name} {self.number}" if self.name in ("worker", "server") else self.name


_SERVERS = Role("a server")


class LiveOutcome(NamedTuple):
    """What a run leaves beside its last checkpoint."""

    status: str
    judged: list[Judged]
    counts: dict[str, int]


class Events(NamedTuple):
    """What has happened since the last time."""

    judged: list[Judged]
    """What the evaluator has found."""
    answers: list[Answer]
    """What the lead has answered."""
    ended: dict[Role, End]
    """The processes that have ended, except those that were killed on purpose."""


class Processes(ABC):
    """The processes of a run, wherever they are; servers know the `peers` by sessions."""

    def __init__(self, peers: Iterable[int]) -> None:
        self.sessions: dict[int, int] = {}
        """What the servers know each peer by."""
        for number in peers:
            self.renew(number)
        self.control = Control()
        """To the lead of now."""
        self.origin = time.monotonic()
        """When the run began [s]."""

    @property
    def seconds(self) -> float:
        """Time since the run began [s]."""
        return time.monotonic() - self.origin

    def renew(self, number: int) -> int:
        """Give a peer another session, and return it."""
        self.sessions[number] = secrets.randbelow(2**63 - 1) + 1
        return self.sessions[number]

    def tell(self, instruction: Instruction) -> None:
        """Tell the lead; if there is none, the next one has to be told."""
        self.control.send(instruction)

    @abstractmethod
    def start_servers(self, life: int) -> None:
        """Start all shards and the evaluator."""

    @abstractmethod
    def start_worker(self, worker: int) -> None:
        """Start a worker under its session of now."""

    @abstractmethod
    def wait(self) -> Events:
        """Wait until something has happened, at most for a moment, and return it."""

    @abstractmethod
    def kill(self, roles: Collection[Role]) -> None:
        """End processes; when this returns they do nothing more. `wait` does not tell their end."""

    @abstractmethod
    def wake(self) -> None:
        """Interrupt the evaluator's rest."""


class Supervision:
    """What is done about the events of a run."""

    def __init__(self, request: LiveRequest, processes: Processes) -> None:
        self._request, self._processes = request, processes
        self._state = State("running")
        self._judged: list[Judged] = []
        self._workers = {Role("worker", worker) for worker in range(request.fleet.workers)}
        self._others = {Role("server", shard) for shard in range(request.fleet.shards)}
        self._others.add(Role("evaluator"))
        self._given_up: set[int] = set()
        self._losses: Counter[Role] = Counter()
        self._life, self._n_unsaved, self._is_stopping = 0, 0, False

    @property
    def is_over(self) -> bool:
        """Whether the last checkpoint is written."""
        return self._state.phase == "over"

    def start(self) -> None:
        """Start all processes of the run."""
        self._start_servers()
        for worker in range(self._request.fleet.workers):
            self._processes.start_worker(worker)

    def stop(self) -> None:
        """End the run, which is kept as far as it has come."""
        if not self._is_stopping:
            self._is_stopping = True
            self._processes.tell(Instruction(Kind.STOP))

    def heed(self, events: Events) -> None:
        """Act on what has happened.

        A process that has failed is a `DistsgdError`, one that is lost again and again a
        `WorkerLost`.
        """
        self._judged += events.judged
        for told, state in events.answers:
            self._heed_lead(told, state)
        for role, end in events.ended.items():
            if end.failure is not None and not _asks_for_restart(role, end.failure):
                raise end.failure.error(str(role))
        # one that has left by itself, with code 0, was told that the run is over
        missing = {role: str(end) for role, end in events.ended.items() if end.code != 0}
        for role in sorted(missing.keys() & self._workers):
            self._lose_worker(role.number, missing[role])
        if others := missing.keys() & self._others:
            self._restart(missing[min(others)])

    def progress(self) -> Progress:
        """Return how far the run has come."""
        state = self._state
        return Progress(
            state.updates,
            state.gradients,
            self._processes.seconds,
            math.nan if state.loss is None else state.loss,
            state.staleness,
            len(state.alive),
            self._n_lost,
            self._n_unsaved + state.unsaved,
            state.saved,
        )

    def outcome(self) -> LiveOutcome:
        """Return what the run leaves."""
        costs_s = sum(one.cost_s for one in self._judged)
        return LiveOutcome(
            self._state.status,
            self._judged,
            {
                "evaluations": len(self._judged),
                "skipped_evaluations": sum(one.n_skipped for one in self._judged),
                "evaluation_us": round(1e6 * costs_s),
                "lost_workers": self._n_lost,
                "server_restarts": self._losses[_SERVERS],
                "failed_checkpoints": self._n_unsaved + self._state.unsaved,
                **{f"dropped: {why}": n for why, n in self._state.dropped.items()},
            },
        )

    @property
    def _n_lost(self) -> int:
        return sum(self._losses[role] for role in self._workers)

    def _start_servers(self) -> None:
        """Start the servers and the evaluator; tell the lead which workers have been given up."""
        self._processes.start_servers(self._life)
        # the lead before may have been told, but not saved it
        for worker in sorted(self._given_up):
            replaces = self._request.fleet.on_loss == "replace"
            kind = Kind.ADMIT if replaces else Kind.GONE
            self._processes.tell(Instruction(kind, worker, self._processes.sessions[worker]))
        if self._is_stopping:
            self._processes.tell(Instruction(Kind.STOP))

    def _heed_lead(self, told: Instruction, state: State) -> None:
        """Act on what the lead has answered when it was told something."""
        if state.phase != "running" and self._state.phase == "running":
            self._processes.wake()  # the evaluator may rest until its next point
        self._state = state
        if told.kind == Kind.ADMIT:  # before, the lead would have sent the new process away
            self._given_up.discard(told.worker)
            self._processes.start_worker(told.worker)
        for worker in state.lost:
            self._lose_worker(worker, "hung: it missed 5 heartbeats")

    def _lose_worker(self, worker: int, how: str) -> None:
        """Replace a worker, or let the others go on without it."""
        # its end and the lead's own count of heartbeats both tell of one loss, and at the end of
        # a run all workers leave
        if worker in self._given_up or self._state.phase != "running":
            return
        role, session = Role("worker", worker), self._processes.sessions[worker]
        self._given_up.add(worker)
        # one that hangs may wake up: no two processes may be this worker
        self._processes.kill({role})
        self._losses[role] += 1
        if self._request.fleet.on_loss == "shrink":
            self._processes.tell(Instruction(Kind.GONE, worker, session))
            if len(self._given_up) == self._request.fleet.workers:
                raise WorkerLost(f"all workers are lost, the last one {how}; use on_loss='replace'")
        else:
            self._check_losses(role, how)
            self._processes.tell(Instruction(Kind.ADMIT, worker, self._processes.renew(worker)))

    def _restart(self, how: str) -> None:
        """Start servers and evaluator again, from the last checkpoint."""
        self._losses[_SERVERS] += 1
        self._check_losses(_SERVERS, how)
        # those that are left know what the checkpoint does not: they must not answer any more
        self._processes.kill(self._others)
        self._life += 1
        self._n_unsaved += self._state.unsaved
        self._state = State("running")
        self._start_servers()

    def _check_losses(self, role: Role, how: str) -> None:
        if self._losses[role] > MOST_LOSSES:
            raise WorkerLost(
                f"{role} was lost {self._losses[role]} times, the last time it {how}; see whether"
                " memory runs out, or use fewer workers"
            )


def _asks_for_restart(role: Role, failure: Failure) -> bool:
    """Return whether a server has ended since it cannot follow the others any more."""
    return role.name == "server" and failure.kind is WorkerLost
