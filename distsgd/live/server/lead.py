"""The lead: the shard that decides, and tells the others.

1. What has been decided goes to the other shards, numbered, before the lead carries it out itself:
   all work at the same time, and in the same order.
2. A request is taken as a whole or not at all. One that the service refuses keeps its number free,
   so that the worker's proper request can still come under it.
3. A worker that was not heard for `MISSED_BEATS` heartbeats is given up. Time in which the lead
   itself did not listen does not count.
4. The last checkpoint is what a run is made of: it is written when the last model has been judged,
   or when the launcher says for a second time that it will not wait.
5. The launcher repeats itself after a restart. `GONE` names the session that has ended and `ADMIT`
   the one that begins, so that neither changes anything twice.
"""

import math
from collections.abc import Sequence
from multiprocessing.connection import Connection

import numpy as np

from distsgd.errors import WireError
from distsgd.live.messages.sockets import Socket
from distsgd.live.messages.wire import (
    EVALUATOR,
    LAUNCHER,
    LEAD,
    LOSSES,
    WORKER_SESSION,
    Header,
    Kind,
    Phase,
    State,
    encode,
    unpack,
)
from distsgd.live.options import LiveFleet
from distsgd.live.server.admission import Request, admitted
from distsgd.live.server.checkpoint import Checkpoint, Evaluation
from distsgd.live.server.control import Instruction
from distsgd.live.server.decisions import Action, Decision, encode_decisions
from distsgd.live.server.saver import Saver
from distsgd.live.server.service import Service
from distsgd.live.server.shard import Shard
from distsgd.status import Status, status_after

_UNKNOWN = np.empty(0)
"""Parameters, of which the lead has a slice at most: where they are not finite, the loss is NaN."""
MISSED_BEATS = 5
"""A worker that was not heard for so many heartbeats is given up."""

_ASKS = {LAUNCHER: {Kind.STATUS, Kind.GONE, Kind.ADMIT, Kind.STOP}, EVALUATOR: {Kind.SNAPSHOT, Kind.EVALUATED}}


class Lead:
    """Decides, and acts on what is heard.

    It has a socket to each of the other shards, and `control` to a supervisor on this machine. The
    run ends at a training loss of `target`; `last` is what it goes on from.
    """

    def __init__(
        self,
        shard: Shard,
        service: Service,
        followers: Sequence[Socket],
        fleet: LiveFleet,
        *,
        target: float | None = None,
        last: Checkpoint | None = None,
        control: Connection | None = None,
    ) -> None:
        self._shard, self._service, self._followers = shard, service, followers
        self._control, self._heartbeat_s, self._target = control, fleet.heartbeat, target
        self._saver = Saver(shard, service, 1 + len(followers), fleet.checkpoint_every, last)
        self._n_told = 0
        self._seen: dict[int, float] = {}
        self._ticked_at = -math.inf
        self._status: Status = "done"
        self._evaluations: list[Evaluation] = []
        self._is_judged = EVALUATOR not in shard.sessions
        if last is not None:
            self._remember(last)

    def handle(self, parts: list[bytes], now: float) -> None:
        """Serve, answer or drop a message."""
        request = admitted(self._shard, parts)
        if request is None:
            return
        if request.header.peer < self._shard.n_workers:
            self._seen[request.header.peer] = now
            if request.header.kind != Kind.BEAT:
                self._serve(request, now)
        elif request.header.kind in _ASKS.get(request.header.peer, ()):
            request.session.accepted = request.header.sequence
            self._attend(request, now)
        else:
            self._shard.drops.add("not its request", request.header.peer)

    def tick(self, now: float) -> None:
        """Do what is due by the clock, and what the supervisor wants."""
        while self._control is not None and self._control.poll():
            told: Instruction = self._control.recv()
            self._obey(told, now)
            self._control.send((told, self.state()))
        self._listen_for_beats(now)
        if self._service.is_over:
            self._finish(now)
        else:
            if self._service.is_past(now):
                self._carry_out(self._service.end(now))
            if self._saver.is_due(now):
                self._save(now)

    def _serve(self, request: Request, now: float) -> None:
        session, header = request.session, request.header
        if self._service.is_over or not self._service.is_alive(session.peer):
            self._shard.tell(request.identity, header, Kind.END)
            return
        if header.kind != Kind.JOIN and header.sequence != session.accepted + 1:
            self._shard.drops.add("sequence", header.sequence)
            return
        try:
            self._shard.take(header, request.frames)
            decisions = self._service.serve(header, now)
        except WireError as error:
            self._shard.drops.add("unexpected", error)
            return
        session.accepted = header.sequence  # rule 2: only now
        self._carry_out(decisions)

    def _carry_out(self, decisions: list[Decision]) -> None:
        if not decisions:
            return
        if self._followers:
            self._n_told += 1
            header = encode(Header(Kind.DECISIONS, LEAD, 0, self._shard.sessions[LEAD].number, self._n_told))
            frame = encode_decisions(decisions)
            for follower in self._followers:  # rule 1
                follower.send_multipart((header, frame))
        self._shard.carry_out(decisions)

    def _attend(self, request: Request, now: float) -> None:
        """Do what the launcher or the evaluator asks for, and say how the run is going."""
        header = request.header
        if header.kind == Kind.SNAPSHOT:
            if self._service.is_shown():
                self._shard.tell(request.identity, header, Kind.END)
            else:
                self._carry_out(self._service.show(header))
            return
        try:
            if header.kind == Kind.EVALUATED:
                self._judge(request, now)
            else:
                self._obey(_instruction(request), now)
        except WireError as error:
            self._shard.drops.add("malformed", error)
        self._shard.report(request.session, header.sequence, self.state())

    def state(self) -> State:
        """Return how the run is going."""
        newest = self._evaluations[-1:]
        known = State(
            phase=self._phase(),
            status=self._status,
            dropped=dict(self._shard.drops.counts),
            loss=newest[0][1] if newest else None,
            evaluated=newest[0][0] if newest else None,
            saved=self._saver.version,
            unsaved=self._saver.n_failed,
        )
        return self._service.count(known)

    def _phase(self) -> Phase:
        if not self._service.is_over:
            return "running"
        return "over" if self._saver.is_over else "ending"

    def _judge(self, request: Request, now: float) -> None:
        """Take the losses of a model, and end the run if they say so."""
        found = unpack(LOSSES, request.frames)
        loss, test, accuracy = (value if math.isfinite(value) else None for value in found)
        self._evaluations.append((request.header.version, loss, test, accuracy))
        status = status_after(_UNKNOWN, found[0], self._target)
        if status != "done":
            self._status, self._is_judged = status, True
            self._carry_out(self._service.end(now))
        if self._service.is_over:
            self._finish(now)

    def _obey(self, told: Instruction, now: float) -> None:
        """Do what the supervisor wants, through its pipe or as the launcher."""
        if told.kind == Kind.STOP:
            self._stop(now)
        elif told.kind in {Kind.GONE, Kind.ADMIT}:
            self._change(told, now)

    def _stop(self, now: float) -> None:
        """End the run; if it is over, end the servers; in between, wait no longer."""
        if not self._service.is_over:
            self._status = "stopped"
            self._carry_out(self._service.end(now))
        elif self._phase() == "over":
            self._carry_out([Decision(Action.STOP)])
        else:
            self._is_judged = True  # rule 4

    def _change(self, told: Instruction, now: float) -> None:
        """Give up a worker that has ended, or admit another in its place."""
        kind, worker, session = told
        if worker >= self._shard.n_workers:
            raise WireError(f"worker must be < {self._shard.n_workers}, not {worker}")
        is_same = self._shard.sessions[worker].number == session  # rule 5
        if kind == Kind.GONE and is_same:
            self._carry_out(self._service.leave(worker, now))
        if kind == Kind.ADMIT and not is_same:
            self._seen.pop(worker, None)
            self._carry_out(self._service.admit(worker, session, now))

    def _listen_for_beats(self, now: float) -> None:
        was_away = now - self._ticked_at > self._heartbeat_s
        self._ticked_at = now
        for worker, seen in self._seen.items():
            if was_away:  # what has been sent meanwhile has not been heard yet
                self._seen[worker] = now
            elif now - seen > MISSED_BEATS * self._heartbeat_s and self._service.is_alive(worker):
                self._carry_out(self._service.leave(worker, now))

    def _finish(self, now: float) -> None:
        """Write the last checkpoint once the last model has been judged, perhaps before the end."""
        judged = [version for version, *_ in self._evaluations[-1:]]
        self._is_judged |= judged == [self._service.version]
        if self._is_judged and self._saver.is_last_due(now):  # rule 4
            self._save(now)

    def _save(self, now: float) -> None:
        """Write a checkpoint, and have the others write theirs."""
        number = self._saver.write(self._status, self._evaluations, now)
        if number is not None:
            self._carry_out([Decision(Action.CHECKPOINT, checkpoint=number)])
            if self._shard.unsaved is not None:
                self._saver.fail(self._shard.unsaved)

    def _remember(self, last: Checkpoint) -> None:
        known = last.description
        self._status, self._evaluations = known.status, known.evaluations
        if known.is_last:
            self._is_judged = True
            self._carry_out(self._service.end(0.0))
        for worker, standing in enumerate(known.memory.workers):
            if standing.is_alive:
                self._seen[worker] = math.inf


def _instruction(request: Request) -> Instruction:
    """Return what the launcher asks for, or raise a `WireError` if that names no worker."""
    kind = Kind(request.header.kind)
    return Instruction(kind, *unpack(WORKER_SESSION, request.frames) if kind in {Kind.GONE, Kind.ADMIT} else ())
