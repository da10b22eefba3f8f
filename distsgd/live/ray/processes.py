"""The processes of a live run on a Ray cluster, which are actors: they are placed, met and ended.

1. Every actor has a bundle of the placement group, and a name that the dashboard shows. None is
   detached: all end with the driver.
2. Time begins when every actor has met the driver. One that starts later is asked to do its part
   when it has met the driver. The driver waits for servers only: no worker works without them.
3. When servers start again they listen elsewhere. Workers that live are told where.
"""

import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from distsgd.errors import WorkerLost
from distsgd.fold.history import message_bytes
from distsgd.live.local.roles import Assignments
from distsgd.live.local.supervision import Events, Processes, Role
from distsgd.live.machine.failure import Failure
from distsgd.live.machine.forking import End
from distsgd.live.messages.link import Peer
from distsgd.live.messages.sockets import needs_keys
from distsgd.live.messages.wire import EVALUATOR, LAUNCHER, LEAD
from distsgd.live.options import LiveRequest
from distsgd.live.ray.channels import Findings, Relay, offset
from distsgd.live.ray.failures import refused
from distsgd.live.ray.nodes import is_one_machine, shortage
from distsgd.live.ray.roles import Common, Evaluator, Met, Server, Worker, boot
from distsgd.live.ray.session import Session, package

_EVALUATOR = Role("evaluator")
_KINDS = {"server": Server, "worker": Worker, "evaluator": Evaluator}
_THREADS = {"server": 1, "worker": 2, "evaluator": 2}
"""Calls that an actor answers at once: a long one, and short ones meanwhile."""
_KILLED = End(-9)
_TICK_S = 0.05
"""How long the end of an actor is not seen, at most."""


class _Start(NamedTuple):
    role: Role
    deadline: float
    """When it is too late, by the monotonic clock [s]."""


class Actors(Processes):
    """The actors of a run; the group has their bundles, and the folder is for checkpoints."""

    def __init__(
        self,
        session: Session,
        group: Any,  # noqa: ANN401 # ray ships no types
        request: LiveRequest,
        folder: Path,
        run: str,
    ) -> None:
        super().__init__((*range(request.fleet.workers), LAUNCHER, EVALUATOR, LEAD))
        self._session, self._ray, self._group = session, session.ray, group
        self._request, self._run = request, run
        self._assignments = Assignments(request, request.problem.start(request.seed), folder, self.sessions)
        sizes = message_bytes(request.algorithm, request.problem, request.config.batch)
        common = Common(run, request, self._assignments.worker_case, self._assignments.layout, sizes)
        self._sent = [self._ray.put(common)]
        self._actors: dict[Role, Any] = {}
        self._n_started: Counter[Role] = Counter()
        self._meetings: dict[Role, Any] = {}
        self._starting: dict[Any, _Start] = {}
        self._working: dict[Any, Role] = {}
        self._relay, self._findings = Relay(), Findings(self._ray)
        self.met: dict[Role, Met] = {}
        self._clocks: dict[Role, float] = {}
        self._life = 0

    # What the supervisor asks for

    def start_servers(self, life: int) -> None:
        """Start all shards and the evaluator, and tell the workers that live.

        If the cluster has no room for them in time, it is a `WorkerLost`.
        """
        self._life = life
        if life == 0:
            self._assemble()
        offsets = self._open_servers()
        if life == 0:
            self.origin = time.monotonic()
        for shard, ahead_s in enumerate(offsets):
            role, post = Role("server", shard), self._assignments.post(shard, self.origin + ahead_s)
            self._working[self._actors[role].serve.remote(post, life)] = role
        self._relay.start(self._assignments.peer(LAUNCHER, self.origin), self.control.renew())
        self._start(_EVALUATOR)
        self._move_workers()

    def start_worker(self, worker: int) -> None:
        """Start a worker under its session of now."""
        self._start(Role("worker", worker))

    def wake(self) -> None:
        """Interrupt the evaluator's rest."""
        self._findings.wake()

    def kill(self, roles: Collection[Role]) -> None:
        """End actors; `wait` will not return their ends."""
        self._starting = {one: start for one, start in self._starting.items() if start.role not in roles}
        self._working = {one: role for one, role in self._working.items() if role not in roles}
        for role in self._actors.keys() & set(roles):
            self._ray.kill(self._actors.pop(role))

    def wait(self) -> Events:
        """Wait a moment, and return what has happened since the last time.

        An actor that finds no room for too long is a `WorkerLost`.
        """
        self._check_patience()
        self.control.ask()
        references = [*self._starting, *self._working]
        self._ray.wait(references, timeout=_TICK_S)
        done, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        answers = self.control.answers()
        ended = {role: end for role, end in map(self._followed, done) if end is not None}
        return Events(self._findings.heard(), answers, ended)

    def close(self) -> None:
        """End the relay, and all actors that are left."""
        self.control.close()
        self._relay.close()
        self.kill(set(self._actors))

    # How it is done

    def _assemble(self) -> None:
        """Have all actors meet the driver before the time begins."""
        request = self._request
        counts = {"server": request.fleet.shards, "worker": request.fleet.workers, "evaluator": 1}
        roles = [Role(name, number) for name, count in counts.items() for number in range(count)]
        waiting = {self._meeting(role): role for role in roles}
        _, late = self._ray.wait(list(waiting), num_returns=len(waiting), timeout=request.fleet.ray.patience)
        if late:
            raise self._no_room(waiting[late[0]])
        self._meetings = {role: reference for reference, role in waiting.items()}

    def _start(self, role: Role) -> None:
        deadline = time.monotonic() + self._request.fleet.ray.patience
        self._starting[self._meeting(role)] = _Start(role, deadline)

    def _meeting(self, role: Role) -> Any:  # noqa: ANN401 # ray ships no types for a reference
        """Return the answer of an actor that has just started, or starts now."""
        meeting = self._meetings.pop(role, None)
        return meeting if meeting is not None else self._placed(role).meet.remote()

    def _placed(self, role: Role) -> Any:  # noqa: ANN401 # ray ships no types for an actor
        """Create an actor in its bundle."""
        self._n_started[role] += 1
        again = f"-{self._n_started[role]}" if self._n_started[role] > 1 else ""
        strategies = package("ray.util.scheduling_strategies")
        resources = dict(getattr(self._request.fleet.ray, role.name))
        actor = (
            self._ray.remote(_KINDS[role.name])
            .options(
                name=f"{self._run}-{str(role).replace(' ', '-')}{again}",
                num_cpus=resources.pop("CPU", 0),
                num_gpus=resources.pop("GPU", 0),
                memory=resources.pop("memory", None),
                resources=resources,
                max_concurrency=_THREADS[role.name],
                max_restarts=0,
                scheduling_strategy=strategies.PlacementGroupSchedulingStrategy(
                    self._group, placement_group_bundle_index=self._bundle(role)
                ),
            )
            .remote(self._sent)
        )
        self._actors[role] = actor
        return actor

    def _bundle(self, role: Role) -> int:
        shards, workers = self._request.fleet.shards, self._request.fleet.workers
        return role.number + {"server": 0, "worker": shards, "evaluator": shards + workers}[role.name]

    def _open_servers(self) -> list[float]:
        """Start all shards, and return how far their clocks are ahead; try again if one dies."""
        roles = [Role("server", shard) for shard in range(self._request.fleet.shards)]
        errors = package("ray.exceptions")
        deadline = time.monotonic() + self._request.fleet.ray.patience
        while True:
            references = [self._meeting(role) for role in roles]
            left_s = max(0.0, deadline - time.monotonic())
            try:
                met = self._answers(references, timeout=left_s)
                actors = [self._actors[role] for role in roles]
                self.met |= zip(roles, met, strict=True)
                is_alone = is_one_machine(self._session)
                endpoints = [actor.open.remote(is_alone) for actor in actors]
                listening = self._answers(endpoints)
                self._assignments.listen(listening, is_secret=any(map(needs_keys, listening)))
                return [self._ahead(*one) for one in zip(actors, met, strict=True)]
            except errors.GetTimeoutError:
                raise self._no_room(Role("server")) from None
            except errors.RayTaskError as error:
                raise refused("a server", error) from None
            except errors.RayError:
                self.kill(roles)

    def _answers(self, references: list[Any], *, timeout: float | None = None) -> list[Any]:
        """Return the answers of servers, or raise the error of one that has failed."""
        answers: list[Any] = self._ray.get(references, timeout=timeout)
        for one in answers:
            if isinstance(one, Failure):
                raise one.error("a server")
        return answers

    def _ahead(self, actor: Any, met: Met) -> float:  # noqa: ANN401 # ray ships no types for it
        """Return how far an actor's clock is ahead of this one [s]: 0 on the same machine."""
        if met.machine == boot():
            return 0.0
        return offset(lambda: float(self._ray.get(actor.now.remote())))

    def _peer(self, number: int, ahead_s: float) -> Peer:
        return self._assignments.peer(number, self.origin + ahead_s)

    def _move_workers(self) -> None:
        """Tell the workers where the servers are; those that start are told when they do."""
        for role in self._working.values():
            if role.name == "worker":
                peer = self._peer(role.number, self._clocks[role])
                self._actors[role].move.remote(peer)

    def _followed(self, reference: Any) -> tuple[Role, End | None]:  # noqa: ANN401 # ray ships no types for it
        """Return how which actor has ended; if it has only met the driver, it begins its part."""
        errors = package("ray.exceptions")
        start = self._starting.pop(reference, None)
        role = start.role if start else self._working.pop(reference)
        try:
            answer = self._ray.get(reference)
            if isinstance(answer, Failure):
                return role, End(1, answer)
            if start is None:
                return role, End(0)
            self._begin(role, answer)
        except errors.RayTaskError as error:  # it was not even called
            return role, End(1, Failure.of(error.cause or error))
        except errors.RayError:
            return role, _KILLED
        return role, None

    def _begin(self, role: Role, met: Met) -> None:
        actor, self.met[role] = self._actors[role], met
        self._clocks[role] = ahead_s = self._ahead(actor, met)
        if role == _EVALUATOR:
            peer = self._peer(EVALUATOR, ahead_s)
            self._working[actor.evaluate.remote(peer, is_again=self._life > 0)] = role
            self._findings.listen(actor)
        else:
            self._working[actor.work.remote(self._peer(role.number, ahead_s))] = role

    def _check_patience(self) -> None:
        late = [one.role for one in self._starting.values() if time.monotonic() > one.deadline]
        if late:
            raise self._no_room(late[0])

    def _no_room(self, role: Role) -> WorkerLost:
        return WorkerLost(
            f"{role} has found no room for {self._request.fleet.ray.patience:g} s:"
            f" {shortage(self._session, self._request)}; add a node, or use fewer workers"
        )
