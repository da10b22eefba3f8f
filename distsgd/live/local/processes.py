"""The processes of a live run on one machine: the launcher forks them, and supervises the run.

1. The launcher calls nothing of a problem: frameworks start threads when they are first used, and a
   process with threads must not fork. The starting point comes from the program, and each worker
   evaluates a gradient for itself before it says that it is ready.
2. The time of a run begins when all of its workers are ready.
3. Nothing has to be undone at the end: the processes that are left end with the launcher.
"""

import os
import signal
import time
from collections.abc import Callable, Collection, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from distsgd.live.local.roles import Assignments, Roles
from distsgd.live.local.supervision import Events, LiveOutcome, Processes, Role, Supervision
from distsgd.live.machine import forking
from distsgd.live.machine.channel import Channel
from distsgd.live.machine.forking import End
from distsgd.live.messages.wire import EVALUATOR, LEAD
from distsgd.live.options import LiveRequest
from distsgd.problem import Vector

_LEAD, _EVALUATOR = Role("server"), Role("evaluator")


class LocalJob(NamedTuple):
    """A run, and where it may write."""

    request: LiveRequest
    start: Vector
    """The starting point, float[d]."""
    folder: Path
    """Private, and short enough for socket files."""


def supervise(job: LocalJob, pipe: Connection) -> LiveOutcome:
    """Run `job` in the launcher.

    Each message of the parent says whether to stop, and is answered with a `Progress`. If no server
    can listen at the address, it is a `ConfigError`; processes fail as in `Supervision.heed`.
    """
    processes = ForkedProcesses(job, pipe)
    supervision = Supervision(job.request, processes)
    supervision.start()
    while not supervision.is_over:
        supervision.heed(processes.wait())
        for is_asked_to_stop in processes.messages():
            if is_asked_to_stop:
                supervision.stop()
            pipe.send(supervision.progress())
    supervision.heed(processes.heard())
    return supervision.outcome()


class ForkedProcesses(Processes):
    """Processes of this machine; the pipe goes to the parent."""

    def __init__(self, job: LocalJob, pipe: Connection) -> None:
        super().__init__((*range(job.request.fleet.workers), EVALUATOR, LEAD))
        self._roles = Roles(Assignments(job.request, job.start, job.folder, self.sessions), job.folder)
        self._n_shards = job.request.fleet.shards
        self._starts = [Channel() for _ in range(job.request.fleet.workers)]
        self._parent, self._messages = pipe, list[bool]()
        self._running: dict[int, Role] = {}
        self._evaluator, self._judged = Channel(), list[Any]()

    def start_servers(self, life: int) -> None:
        """Start all shards and the evaluator; the first time when all workers are ready."""
        if life == 0:
            self._assemble()
        with self.control.renew() as control:
            for shard in range(self._n_shards):
                own = None if shard else control
                self._fork(Role("server", shard), self._roles.serve, shard, self.origin, life, own)
        with self._evaluator.renew() as pipe:
            self._fork(_EVALUATOR, self._roles.evaluate, pipe, self.origin, life > 0)

    def start_worker(self, worker: int) -> None:
        """Start a worker under its session of now, or let the one begin that is there."""
        if Role("worker", worker) not in self._running.values():
            self._fork_worker(worker)
        self._starts[worker].send(self.origin)

    def wake(self) -> None:
        """Interrupt the evaluator's rest."""
        self._evaluator.send("the run has ended")

    def kill(self, roles: Collection[Role]) -> None:
        """End processes; when this returns they do nothing more."""
        processes = {process for process, role in self._running.items() if role in roles}
        for process in processes:
            os.kill(process, signal.SIGKILL)
        while processes:
            ended = self._waited(processes)
            processes -= ended.keys()
            self._forget(ended)

    def wait(self) -> Events:
        """Wait until something has happened, or a question is due, and return what has happened."""
        due_s = self.control.ask()
        ended = self._waited(self._running, due_s, [*self.control.pipes, *self._evaluator.pipes])
        return self.heard()._replace(ended=self._forget(ended))

    def heard(self) -> Events:
        """Return what evaluator and lead have sent since the last time."""
        judged, self._judged = self._judged, []
        return Events(judged + self._evaluator.received(), self.control.answers(), {})

    def messages(self) -> list[bool]:
        """Return what the parent has sent since the last time."""
        messages, self._messages = self._messages, []
        return messages

    def _assemble(self) -> None:
        """Fork all workers, and begin the run when each of them is ready, or has ended (rule 2)."""
        for worker in range(len(self._starts)):
            self._fork_worker(worker)
        for start in self._starts:
            while not any(pipe.poll() for pipe in start.pipes):  # at its end there is something, too
                self._waited((), None, start.pipes)
        self.origin = time.monotonic()

    def _fork_worker(self, worker: int) -> None:
        with self._starts[worker].renew() as start:
            self._fork(Role("worker", worker), self._roles.work, worker, start)

    def _forget(self, ended: Mapping[int, End]) -> dict[Role, End]:
        """Return the ends of processes, by role.

        What the evaluator has sent by then is still heard; what the lead has said is not, since it
        may be undone.
        """
        roles = {self._running.pop(process): end for process, end in ended.items()}
        if _EVALUATOR in roles:
            self._judged += self._evaluator.received()
            self._evaluator.close()
        if _LEAD in roles:
            self.control.close()
        return roles

    def _waited(
        self, processes: Collection[int], timeout_s: float | None = None, others: Collection[Connection] = ()
    ) -> dict[int, End]:
        """Wait for ends of processes and whatever else can be heard; keep what the parent says."""
        waited = forking.wait(self._parent, processes, timeout_s, others)
        if waited.message is not None:
            self._messages.append(waited.message)
        return waited.ended

    def _fork(self, role: Role, function: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401 # those of `function`
        self._running[forking.fork(function, *arguments)] = role
