"""The processes of a run on a Ray cluster, as the supervisor sees them: it starts and ends actors.

1. Every actor has a bundle of the placement group, and a name that the dashboard shows. None is
   detached: all end with the driver.
2. Time begins when every actor has met the driver. One that starts later is asked to do its part
   when it has met the driver. The driver waits for servers only: no worker works without them.
3. When servers start again they listen elsewhere. Workers that live are told where.
"""

import secrets
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from distsgd.errors import WorkerLost
from distsgd.fold.history import message_bytes
from distsgd.live.local.clerk import Errand
from distsgd.live.local.roles import layout_of, server_case, stream_of
from distsgd.live.local.supervision import Events, Role
from distsgd.live.machine.forking import End
from distsgd.live.messages.link import Peer
from distsgd.live.messages.sockets import Door, Keys, doors, gates, make_keys, needs_keys
from distsgd.live.messages.wire import EVALUATOR, LAUNCHER, LEAD
from distsgd.live.options import LiveRequest
from distsgd.live.peers.worker import Case
from distsgd.live.ray.actors import Common, Evaluator, Met, Post, Seat, Server, Worker, boot
from distsgd.live.ray.driver import Clerk, Findings, offset
from distsgd.live.ray.nodes import is_one_machine, refused, shortage
from distsgd.live.ray.session import Session, package

_EVALUATOR = Role("evaluator")
_KINDS = {"server": Server, "worker": Worker, "evaluator": Evaluator}
_THREADS = {"server": 1, "worker": 2, "evaluator": 2}
"""Calls that an actor answers at once: a long one, and short ones meanwhile."""
_KILLED = End(-9, "")
_TICK_S = 0.05
"""How long the end of an actor is not seen, at most."""


class _Start(NamedTuple):
    role: Role
    deadline: float
    """When it is too late, by the monotonic clock [s]."""


class Actors:
    """The actors of a run, and the clerk, which is a thread of the driver.

    Parameters
    ----------
    session : Session
        The cluster.
    group : ray.util.placement_group.PlacementGroup
        Their bundles.
    launch : LiveRequest
        What is run.
    folder : Path
        Where checkpoints are written.
    run : str
        The run's name.
    """

    def __init__(
        self,
        session: Session,
        group: Any,  # noqa: ANN401 # ray ships no types
        launch: LiveRequest,
        folder: Path,
        run: str,
    ) -> None:
        self._session, self._ray, self._group = session, session.ray, group
        self._launch, self._folder, self._run = launch, folder, run
        layout, start = layout_of(launch), launch.problem.start(launch.seed)
        case = Case(launch.algorithm, launch.problem, stream_of(launch), start, launch.fleet.workers)
        sizes = message_bytes(launch.algorithm, launch.problem, launch.config.batch)
        self._common = Common(run, launch, case, layout, sizes)
        self._sent = [self._ray.put(self._common)]
        self._sessions: dict[int, int] = {}
        for number in (*range(launch.fleet.workers), LAUNCHER, EVALUATOR, LEAD):
            self.renew(number)
        self._actors: dict[Role, Any] = {}
        self._n_started: Counter[Role] = Counter()
        self._meetings: dict[Role, Any] = {}
        self._starting: dict[Any, _Start] = {}
        self._working: dict[Any, Role] = {}
        self._listening: list[str] = []
        self._keys: Keys | None = None
        self._clerk, self._findings = Clerk(), Findings(self._ray)
        self.met: dict[Role, Met] = {}
        self._clocks: dict[Role, float] = {}
        self._life, self._began = 0, time.monotonic()

    # What the supervisor asks for

    @property
    def seconds(self) -> float:
        """Time since the run began [s]."""
        return time.monotonic() - self._began

    def renew(self, number: int) -> int:
        """Give a peer another session, and return it."""
        self._sessions[number] = secrets.randbelow(2**63 - 1) + 1
        return self._sessions[number]

    def session(self, number: int) -> int:
        """Return the session of a peer."""
        return self._sessions[number]

    def start_servers(self, life: int) -> None:
        """Start all shards, the clerk and the evaluator, and tell the workers that live.

        Raises
        ------
        WorkerLost
            If the cluster has no room for them in time.
        """
        self._life = life
        if life == 0:
            self._assemble()
        offsets = self._open_servers()
        if life == 0:
            self._began = time.monotonic()
        is_secret = any(map(needs_keys, self._listening))
        self._keys = make_keys(len(offsets), self._sessions) if is_secret else None
        for shard, ahead_s in enumerate(offsets):
            self._serve(shard, self._began + ahead_s)
        lead = Peer(LAUNCHER, self._sessions[LAUNCHER], self._doors(LAUNCHER)[:1], self._began)
        self._clerk.start(lead)
        self._start(_EVALUATOR)
        self._move_workers()

    def start_worker(self, worker: int) -> None:
        """Start a worker under its session of now."""
        self._start(Role("worker", worker))

    def tell(self, errand: Errand) -> None:
        """Have the clerk tell the lead; if there is none, the next one will be told."""
        self._clerk.tell(errand)

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

        Raises
        ------
        WorkerLost
            If an actor finds no room for too long.
        """
        self._check_patience()
        references = [*self._starting, *self._working]
        self._ray.wait(references, timeout=_TICK_S)
        done, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        told = self._clerk.heard()
        ends = {self._role_of(one): self._followed(one) for one in done}
        ended = {role: end for role, end in ends.items() if end is not None}
        return Events(self._findings.heard(), told, ended)

    def close(self) -> None:
        """End the clerk, and all actors that are left."""
        self._clerk.close()
        self.kill(set(self._actors))

    # How it is done

    def _assemble(self) -> None:
        """Have all actors meet the driver before the time begins."""
        launch = self._launch
        counts = {"server": launch.fleet.shards, "worker": launch.fleet.workers, "evaluator": 1}
        roles = [Role(name, number) for name, count in counts.items() for number in range(count)]
        waiting = {self._meeting(role): role for role in roles}
        _, late = self._ray.wait(list(waiting), num_returns=len(waiting), timeout=launch.fleet.ray.patience)
        if late:
            raise self._no_room(waiting[late[0]])
        self._meetings = {role: reference for reference, role in waiting.items()}

    def _start(self, role: Role) -> None:
        deadline = time.monotonic() + self._launch.fleet.ray.patience
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
        resources = dict(getattr(self._launch.fleet.ray, role.name))
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
        shards, workers = self._launch.fleet.shards, self._launch.fleet.workers
        return role.number + {"server": 0, "worker": shards, "evaluator": shards + workers}[role.name]

    def _open_servers(self) -> list[float]:
        """Start all shards, and return how far their clocks are ahead; try again if one dies."""
        roles = [Role("server", shard) for shard in range(self._launch.fleet.shards)]
        errors = package("ray.exceptions")
        deadline = time.monotonic() + self._launch.fleet.ray.patience
        while True:
            references = [self._meeting(role) for role in roles]
            left_s = max(0.0, deadline - time.monotonic())
            try:
                met = self._ray.get(references, timeout=left_s)
                actors = [self._actors[role] for role in roles]
                self.met |= zip(roles, met, strict=True)
                is_alone = is_one_machine(self._session)
                endpoints = [actor.open.remote(is_alone) for actor in actors]
                self._listening = self._ray.get(endpoints)
                return [self._ahead(*one) for one in zip(actors, met, strict=True)]
            except errors.GetTimeoutError:
                raise self._no_room(Role("server")) from None
            except errors.RayTaskError as error:
                raise refused("a server", error) from None
            except errors.RayError:
                self.kill(roles)

    def _ahead(self, actor: Any, met: Met) -> float:  # noqa: ANN401 # ray ships no types for it
        """Return how far an actor's clock is ahead of this one [s]: 0 on the same machine."""
        if met.machine == boot():
            return 0.0
        return offset(lambda: float(self._ray.get(actor.now.remote())))

    def _serve(self, shard: int, origin: float) -> None:
        role, gate = Role("server", shard), gates(self._listening, self._keys)[shard]
        common = self._common
        case = server_case(common.launch, common.case.start, common.layout, self._sessions, origin, self._folder)
        followers = () if shard else self._doors(LEAD)[1:]
        post = Post(case, shard, gate, followers)
        self._working[self._actors[role].serve.remote(post, self._life)] = role

    def _doors(self, number: int) -> list[Door]:
        return doors(self._listening, number, self._keys)

    def _seat(self, number: int, ahead_s: float) -> Seat:
        origin = self._began + ahead_s
        return Seat(number, self._sessions[number], self._doors(number), origin)

    def _move_workers(self) -> None:
        """Tell the workers where the servers are; those that start are told when they do."""
        for role in self._working.values():
            if role.name == "worker":
                seat = self._seat(role.number, self._clocks[role])
                self._actors[role].move.remote(seat)

    def _role_of(self, reference: Any) -> Role:  # noqa: ANN401 # ray ships no types for it
        if reference in self._starting:
            return self._starting[reference].role
        return self._working[reference]

    def _followed(self, reference: Any) -> End | None:  # noqa: ANN401 # ray ships no types for it
        """Return how an actor has ended; if it has only met the driver, it begins its part."""
        errors = package("ray.exceptions")
        start = self._starting.pop(reference, None)
        role = start.role if start else self._working.pop(reference)
        try:
            answer = self._ray.get(reference)
            if start is None:
                return End(0, "")
            self._begin(role, answer)
        except errors.RayTaskError as error:
            return _KILLED if isinstance(error.cause, WorkerLost) else End(1, str(error))
        except errors.RayError:
            return _KILLED
        return None

    def _begin(self, role: Role, met: Met) -> None:
        actor, self.met[role] = self._actors[role], met
        self._clocks[role] = ahead_s = self._ahead(actor, met)
        if role == _EVALUATOR:
            seat = self._seat(EVALUATOR, ahead_s)
            self._working[actor.evaluate.remote(seat, is_again=self._life > 0)] = role
            self._findings.listen(actor)
        else:
            self._working[actor.work.remote(self._seat(role.number, ahead_s))] = role

    def _check_patience(self) -> None:
        late = [one.role for one in self._starting.values() if time.monotonic() > one.deadline]
        if late:
            raise self._no_room(late[0])

    def _no_room(self, role: Role) -> WorkerLost:
        return WorkerLost(
            f"{role} has found no room for {self._launch.fleet.ray.patience:g} s:"
            f" {shortage(self._session, self._launch)}; add a node, or use fewer workers"
        )
