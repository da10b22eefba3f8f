"""The supervision of a live run: which processes are replaced, and what the lead is told.

1. A worker that was killed, or that misses its heartbeats, is replaced under a new session, or the
   others go on without it. One that fails ends the run, since the next one would fail too.
2. The servers and the evaluator live and die together. When one of them is killed, all start again
   with the next life, from the last checkpoint; the workers join again.
3. Nothing here knows whether processes are forked here or placed on a cluster: that is the crew's.
"""

import math
from collections import Counter
from typing import NamedTuple, Protocol

import msgspec

from distsgd.errors import ConfigError, DistsgdError, WorkerLost
from distsgd.fold.request import Progress
from distsgd.live.local.clerk import Errand
from distsgd.live.machine.forking import End
from distsgd.live.messages.wire import Kind, State
from distsgd.live.options import LiveRequest
from distsgd.live.peers.evaluator import Judged

MOST_LOSSES = 10
"""Times that a worker is replaced, or that the servers are started again, in one run."""


class Role(NamedTuple):
    """What a process is there for; `number` counts workers and shards."""

    name: str
    number: int = 0

    def __str__(self) -> str:
        return f"{self.name} {self.number}" if self.name in ("worker", "server") else self.name


_SERVERS = Role("a server")


class Outcome(NamedTuple):
    """What a run leaves beside its last checkpoint."""

    status: str
    judged: list[Judged]
    counts: dict[str, int]


class Events(NamedTuple):
    """What has happened since the last time."""

    judged: list[Judged]
    """What the evaluator has found."""
    told: list[tuple[Errand, bytes]]
    """What the lead has answered to which errand: a `State` as JSON."""
    ended: dict[Role, End]
    """The processes that have ended, except those that were killed on purpose."""


class Crew(Protocol):
    """The processes of a run, wherever they are."""

    @property
    def seconds(self) -> float:
        """Time since the run began [s]."""

    def start_servers(self, life: int) -> None:
        """Start all shards, the clerk and the evaluator."""

    def start_worker(self, worker: int) -> None:
        """Start a worker under its session of now."""

    def kill(self, roles: set[Role]) -> None:
        """End processes; when this returns they do nothing more."""

    def tell(self, errand: Errand) -> None:
        """Have the clerk tell the lead; if there is none, the next one will be told."""

    def wake(self) -> None:
        """Interrupt the evaluator's rest."""

    def session(self, number: int) -> int:
        """Return the session of a peer."""

    def renew(self, number: int) -> int:
        """Give a peer another session, and return it."""


class Supervision:
    """What is done about the events of a run.

    Parameters
    ----------
    case : LiveRequest
        What is run.
    crew : Crew
        The processes that run it.
    """

    def __init__(self, case: LiveRequest, crew: Crew) -> None:
        self._case, self._crew = case, crew
        self._state = State("running")
        self._judged: list[Judged] = []
        self._workers = {Role("worker", worker) for worker in range(case.fleet.workers)}
        self._others = {Role("server", shard) for shard in range(case.fleet.shards)}
        self._others |= {Role("clerk"), Role("evaluator")}
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
        for worker in range(self._case.fleet.workers):
            self._crew.start_worker(worker)

    def stop(self) -> None:
        """End the run, which is kept as far as it has come."""
        if not self._is_stopping:
            self._is_stopping = True
            self._crew.tell(Errand(Kind.STOP))

    def heed(self, events: Events) -> None:
        """Act on what has happened.

        Raises
        ------
        DistsgdError
            If a process has failed.
        WorkerLost
            If workers or servers are lost again and again.
        """
        self._judged += events.judged
        for errand, state in events.told:
            self._heed_lead(errand, msgspec.json.decode(state, type=State))
        for role, end in events.ended.items():
            if end.report and not _asks_for_restart(role, end):
                raise failure(role, end)
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
            self._crew.seconds,
            math.nan if state.loss is None else state.loss,
            state.staleness,
            len(state.alive),
            self._n_lost,
            self._n_unsaved + state.unsaved,
            state.saved,
        )

    def outcome(self) -> Outcome:
        """Return what the run leaves."""
        costs_s = sum(one.cost_s for one in self._judged)
        return Outcome(
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
        self._crew.start_servers(self._life)
        for worker in sorted(self._given_up):
            replaces = self._case.fleet.on_loss == "replace"
            kind = Kind.ADMIT if replaces else Kind.GONE
            self._crew.tell(Errand(kind, worker, self._crew.session(worker)))
        if self._is_stopping:
            self._crew.tell(Errand(Kind.STOP))

    def _heed_lead(self, errand: Errand, state: State) -> None:
        """Act on what the lead has answered to an errand."""
        if state.phase != "running" and self._state.phase == "running":
            self._crew.wake()  # the evaluator may rest until its next point
        self._state = state
        if errand.kind == Kind.ADMIT:
            self._given_up.discard(errand.worker)
            self._crew.start_worker(errand.worker)
        for worker in state.lost:
            self._lose_worker(worker, "hung: it missed 5 heartbeats")

    def _lose_worker(self, worker: int, how: str) -> None:
        """Replace a worker, or let the others go on without it."""
        if worker in self._given_up or self._state.phase != "running":
            return
        role, session = Role("worker", worker), self._crew.session(worker)
        self._given_up.add(worker)
        self._crew.kill({role})
        self._losses[role] += 1
        if self._case.fleet.on_loss == "shrink":
            self._crew.tell(Errand(Kind.GONE, worker, session))
            if len(self._given_up) == self._case.fleet.workers:
                msg = f"all workers are lost, the last one {how}; use on_loss='replace'"
                raise WorkerLost(msg)
        else:
            self._check_losses(role, how)
            self._crew.tell(Errand(Kind.ADMIT, worker, self._crew.renew(worker)))

    def _restart(self, how: str) -> None:
        """Start servers, clerk and evaluator again, from the last checkpoint."""
        self._losses[_SERVERS] += 1
        self._check_losses(_SERVERS, how)
        self._crew.kill(self._others)
        self._life += 1
        self._n_unsaved += self._state.unsaved
        self._state = State("running")
        self._start_servers()

    def _check_losses(self, role: Role, how: str) -> None:
        if self._losses[role] > MOST_LOSSES:
            msg = (
                f"{role} was lost {self._losses[role]} times, the last time it {how}; see whether"
                " memory runs out, or use fewer workers"
            )
            raise WorkerLost(msg)


def _asks_for_restart(role: Role, end: End) -> bool:
    """Return whether a server has ended since it cannot follow the others any more."""
    *_, last = end.report.strip().splitlines()
    return role.name == "server" and last.startswith(f"{WorkerLost.__module__}.WorkerLost:")


def failure(role: Role, end: End) -> DistsgdError:
    """Return the error for a process that was ended by an exception, which it has reported.

    A configuration that a server finds unusable is the caller's.
    """
    *_, last = end.report.strip().splitlines()
    name, _, text = last.partition(": ")
    if name == f"{ConfigError.__module__}.{ConfigError.__name__}":
        error: DistsgdError = ConfigError(text)
    else:
        error = DistsgdError(f"{role} failed: {last}")
    error.add_note(f"In {role}:\n{end.report}")
    return error
