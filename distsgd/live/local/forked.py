"""The crew of a live run on one machine: processes that the nursery forks.

Nothing has to be undone at the end: the processes that are left end with the nursery.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Collection, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from distsgd.live.local.clerk import Errand
from distsgd.live.local.roles import Parties
from distsgd.live.local.supervision import Events, Role, Supervision
from distsgd.live.machine import forking as nursery
from distsgd.live.machine.forking import End
from distsgd.live.options import LiveRequest

_CLERK, _EVALUATOR = Role("clerk"), Role("evaluator")


class Job(NamedTuple):
    """A run, and where it may write."""

    case: LiveRequest
    folder: Path
    """Private, and short enough for socket files."""


def supervise(job: Job, pipe: Connection) -> None:
    """Run `job` in the nursery, and send its `Outcome` to the parent.

    Each message of the parent says whether to stop, and is answered with a `Progress`.

    Raises
    ------
    ConfigError
        If no server can listen at the address.
    DistsgdError
        If a worker or a server has failed.
    WorkerLost
        If workers or servers are lost again and again.
    """
    crew = Forks(job, pipe)
    supervision = Supervision(job.case, crew)
    supervision.start()
    while not supervision.is_over:
        supervision.heed(crew.wait())
        for is_asked_to_stop in crew.messages():
            if is_asked_to_stop:
                supervision.stop()
            pipe.send(supervision.progress())
    supervision.heed(crew.heard())
    pipe.send(supervision.outcome())
    while True:  # the parent may just be asking; its end ends this process and all others
        nursery.wait(pipe, ())


class Forks:
    """Processes of this machine; it is a `distsgd.live.local.supervision.Crew`.

    Parameters
    ----------
    job : Job
        What to run.
    pipe : Connection
        The nursery's, to the parent.
    """

    def __init__(self, job: Job, pipe: Connection) -> None:
        self._parties, self._n_shards = Parties(job.case, job.folder), job.case.fleet.shards
        self.session, self.renew = self._parties.session, self._parties.renew
        self._pipe = pipe
        self._processes: dict[int, Role] = {}
        self._pipes: dict[Role, Connection] = {}
        self._heard: list[tuple[Role, Any]] = []
        self._messages: list[bool] = []

    @property
    def seconds(self) -> float:
        """Time since the run began [s]."""
        return self._parties.seconds

    def start_servers(self, life: int) -> None:
        """Start all shards, the clerk and the evaluator."""
        for shard in range(self._n_shards):
            self._fork(Role("server", shard), self._parties.serve, shard, life)
        self._fork_with_pipe(_CLERK, self._parties.relay)
        self._fork_with_pipe(_EVALUATOR, self._parties.evaluate, life > 0)

    def start_worker(self, worker: int) -> None:
        """Start a worker under its session of now."""
        self._fork(Role("worker", worker), self._parties.work, worker)

    def tell(self, errand: Errand) -> None:
        """Have the clerk tell the lead; if there is none, the next one will be told."""
        self._send(_CLERK, errand)

    def wake(self) -> None:
        """Interrupt the evaluator's rest."""
        self._send(_EVALUATOR, "the run has ended")

    def kill(self, roles: Collection[Role]) -> None:
        """End processes; when this returns they do nothing more."""
        processes = {process for process, role in self._processes.items() if role in roles}
        for process in processes:
            os.kill(process, signal.SIGKILL)
        while processes:
            ended = self._waited(processes, ())
            processes -= ended.keys()
            self._forget(ended)

    def wait(self) -> Events:
        """Wait until something has happened, and return it."""
        ended = self._waited(self._processes, self._pipes.values())
        events = self.heard()
        return events._replace(ended=self._forget(ended))

    def heard(self) -> Events:
        """Return what evaluator and clerk have sent since the last time."""
        for role in list(self._pipes):
            self._hear(role)
        heard, self._heard = self._heard, []
        judged = [message for role, message in heard if role == _EVALUATOR]
        return Events(judged, [message for role, message in heard if role == _CLERK], {})

    def messages(self) -> list[bool]:
        """Return what the parent has sent since the last time."""
        messages, self._messages = self._messages, []
        return messages

    def _hear(self, role: Role) -> None:
        with contextlib.suppress(EOFError, ConnectionResetError):  # its end will be told
            while self._pipes[role].poll():
                self._heard.append((role, self._pipes[role].recv()))

    def _forget(self, ended: Mapping[int, End]) -> dict[Role, End]:
        """Return the ends of processes, by role.

        What the evaluator has sent by then is still heard; what the lead has said is not, since it
        may be undone.
        """
        roles = {self._processes.pop(process): end for process, end in ended.items()}
        for role in roles.keys() & self._pipes.keys():
            if role == _EVALUATOR:
                self._hear(role)
            self._pipes.pop(role).close()
        return roles

    def _waited(self, processes: Collection[int], listened: Collection[Connection]) -> dict[int, End]:
        waited = nursery.wait(self._pipe, processes, None, listened)
        if waited.message is not None:
            self._messages.append(waited.message)
        return waited.ended

    def _send(self, role: Role, message: Any) -> None:  # noqa: ANN401 # whatever can be pickled
        with contextlib.suppress(KeyError, BrokenPipeError):  # it has ended
            self._pipes[role].send(message)

    def _fork(self, role: Role, function: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401 # those of `function`
        self._processes[nursery.fork(function, *arguments)] = role

    def _fork_with_pipe(self, role: Role, function: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401 # same reason
        self._pipes[role], there = Pipe()
        self._fork(role, function, there, *arguments)
        there.close()
