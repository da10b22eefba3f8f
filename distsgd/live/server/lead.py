"""The lead: it decides, carries out its own part, and tells the other shards."""

import math
from collections.abc import Sequence
from multiprocessing.connection import Connection

import msgspec

from distsgd.errors import WireError
from distsgd.live.messages.sockets import Socket
from distsgd.live.messages.wire import EVALUATOR, LAUNCHER, LEAD, LOSSES, Header, Kind, Phase, State, encode
from distsgd.live.server.admission import Heard, hear
from distsgd.live.server.checkpoint import Checkpoint, Evaluation, Status
from distsgd.live.server.control import Instruction
from distsgd.live.server.decisions import Action, Decision, encode_decisions
from distsgd.live.server.saver import Saver
from distsgd.live.server.service import Order
from distsgd.live.server.shard import Shard

MISSED_BEATS = 5
"""A worker that was not heard for so many heartbeats is given up."""

_ASKS = {LAUNCHER: {Kind.STATUS, Kind.GONE, Kind.ADMIT, Kind.STOP}, EVALUATOR: {Kind.SNAPSHOT, Kind.EVALUATED}}


class Lead:
    """Decides, and acts on what is heard.

    Parameters
    ----------
    shard : Shard
        What it carries out decisions with.
    order : Order
        What decides.
    followers : sequence of Socket
        To each of the other shards.
    heartbeat_s, checkpoint_every_s : float
        Time between two signs of life, and between two checkpoints [s].
    target : float, optional
        Training loss at which the run ends.
    last : Checkpoint, optional
        What it goes on from.
    control : Connection, optional
        To the supervisor, if it is on this machine.
    """

    def __init__(
        self,
        shard: Shard,
        order: Order,
        followers: Sequence[Socket],
        *,
        heartbeat_s: float,
        checkpoint_every_s: float,
        target: float | None = None,
        last: Checkpoint | None = None,
        control: Connection | None = None,
    ) -> None:
        self._shard, self._order, self._followers = shard, order, followers
        self._control = control
        self._heartbeat_s, self._target = heartbeat_s, target
        self._saver = Saver(shard, order, 1 + len(followers), checkpoint_every_s, last)
        self._n_workers = sum(peer < LEAD for peer in shard.peers)
        self._session = shard.peers[LEAD].session
        self._n_orders = 0
        self._seen: dict[int, float] = {}
        self._ticked_at = -math.inf
        self._status: Status = "done"
        self._evaluations: list[Evaluation] = []
        self._is_judged = EVALUATOR not in shard.peers
        if last is not None:
            self._remember(last)

    def handle(self, parts: list[bytes], now: float) -> None:
        """Serve, answer or drop a message."""
        heard = hear(self._shard, parts, self._n_workers)
        if heard is None:
            return
        if heard.header.peer < self._n_workers:
            self._seen[heard.header.peer] = now
            if heard.header.kind != Kind.BEAT:
                self._serve(heard, now)
        elif heard.header.kind in _ASKS.get(heard.header.peer, ()):
            heard.peer.accepted = heard.header.sequence
            self._attend(heard, now)
        else:
            self._shard.drops.add("not its request", heard.header.peer)

    def tick(self, now: float) -> None:
        """Do what is due by the clock, and what the supervisor wants."""
        while self._control is not None and self._control.poll():
            told: Instruction = self._control.recv()
            self._obey(told, now)
            self._control.send((told, self.state()))
        self._listen_for_beats(now)
        if self._order.is_over:
            self._finish(now)
        else:
            if self._order.is_past(now):
                self._carry_out(self._order.end(now))
            if self._saver.is_due(now):
                self._save(now)

    def _serve(self, heard: Heard, now: float) -> None:
        peer, header = heard.peer, heard.header
        if self._order.is_over or not self._order.is_alive(peer.number):
            self._shard.tell(heard.identity, header, Kind.END)
            return
        if header.kind != Kind.JOIN and header.sequence != peer.accepted + 1:
            self._shard.drops.add("sequence", header.sequence)
            return
        try:
            self._shard.take(header, heard.frames)
            decisions = self._order.serve(header, now)
        except WireError as error:
            self._shard.drops.add("unexpected", error)
            return
        peer.accepted = header.sequence
        self._carry_out(decisions)

    def _carry_out(self, decisions: list[Decision]) -> None:
        if not decisions:
            return
        if self._followers:
            self._n_orders += 1
            header = encode(Header(Kind.ORDER, LEAD, 0, self._session, self._n_orders))
            frame = encode_decisions(decisions)
            for follower in self._followers:
                follower.send_multipart((header, frame))
        was_over = self._shard.is_over
        self._shard.carry_out(decisions)
        if self._shard.is_over and not was_over:
            self._shard.tell_workers()

    def _attend(self, heard: Heard, now: float) -> None:
        """Do what the launcher or the evaluator asks for, and say how the run is going."""
        header = heard.header
        match header.kind:
            case Kind.SNAPSHOT:
                if self._order.is_shown():
                    self._shard.tell(heard.identity, header, Kind.END)
                else:
                    self._carry_out(self._order.show(header))
                return
            case Kind.EVALUATED:
                self._judge(heard, now)
            case _:
                self._obey(Instruction(Kind(header.kind), header.step, header.version), now)
        state = msgspec.json.encode(self.state())
        self._shard.reply(heard.peer, Kind.STATE, header.sequence, frames=(state,))

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
        return self._order.count(known)

    def _phase(self) -> Phase:
        if not self._order.is_over:
            return "running"
        return "over" if self._saver.is_over else "ending"

    def _judge(self, heard: Heard, now: float) -> None:
        """Take the losses of a model, and end the run if they say so."""
        if [len(frame) for frame in heard.frames] != [LOSSES.size]:
            self._shard.drops.add("malformed", "losses")
            return
        found = LOSSES.unpack(heard.frames[0])
        loss, test, accuracy = (value if math.isfinite(value) else None for value in found)
        self._evaluations.append((heard.header.version, loss, test, accuracy))
        if loss is None:
            self._status = "diverged"
        elif self._target is not None and loss <= self._target:
            self._status = "target"
        if self._status in {"diverged", "target"}:
            self._is_judged = True
            self._carry_out(self._order.end(now))
        self._is_judged |= self._order.is_over and heard.header.version == self._order.version
        if self._order.is_over:
            self._finish(now)

    def _obey(self, told: Instruction, now: float) -> None:
        """Do what the supervisor wants, through its pipe or as the launcher."""
        match told.kind:
            case Kind.STOP:
                self._stop(now)
            case Kind.GONE | Kind.ADMIT:
                self._change(told, now)

    def _stop(self, now: float) -> None:
        """End the run; if it is over, end the servers; in between, wait no longer."""
        if not self._order.is_over:
            self._status = "stopped"
            self._carry_out(self._order.end(now))
        elif self._phase() == "over":
            self._carry_out([Decision(Action.STOP)])
        else:
            self._is_judged = True

    def _change(self, told: Instruction, now: float) -> None:
        """Give up a worker that has ended, or admit another in its place."""
        worker = told.worker
        if worker >= self._n_workers:
            self._shard.drops.add("malformed", f"worker {worker}")
            return
        is_same = self._shard.peers[worker].session == told.session
        if told.kind == Kind.GONE and is_same:
            self._carry_out(self._order.leave(worker, now))
        if told.kind == Kind.ADMIT and not is_same:
            self._seen.pop(worker, None)
            self._carry_out(self._order.admit(worker, told.session, now))

    def _listen_for_beats(self, now: float) -> None:
        was_away = now - self._ticked_at > self._heartbeat_s
        self._ticked_at = now
        for worker, seen in self._seen.items():
            if was_away:  # what has been sent meanwhile has not been heard yet
                self._seen[worker] = now
            elif now - seen > MISSED_BEATS * self._heartbeat_s and self._order.is_alive(worker):
                self._carry_out(self._order.leave(worker, now))

    def _finish(self, now: float) -> None:
        """Write the last checkpoint once the last model has been judged, perhaps before the end."""
        judged = [version for version, *_ in self._evaluations[-1:]]
        self._is_judged |= judged == [self._order.version]
        if self._is_judged and self._saver.is_last_due(now):
            self._save(now)

    def _save(self, now: float) -> None:
        """Write a checkpoint, and have the others write theirs."""
        number = self._saver.write(self._status, self._evaluations, now)
        if number is not None:
            self._carry_out([Decision(Action.CHECKPOINT, version=number)])
            if self._shard.unsaved is not None:
                self._saver.fail(self._shard.unsaved)

    def _remember(self, last: Checkpoint) -> None:
        known = last.description
        self._status, self._evaluations = known.status, known.evaluations
        if known.is_last:
            self._is_judged = True
            self._carry_out(self._order.end(0.0))
        for worker, standing in enumerate(known.memory.workers):
            if standing.is_alive:
                self._seen[worker] = math.inf
