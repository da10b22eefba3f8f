"""A follower: a shard that does what the lead decides, in the lead's order.

1. A decision is carried out when all before it have been, and what it needs is there. Where columns
   lie in memory that all share, a push is there before any shard hears of it, and so is the answer
   before its request. Frames have to come first.
2. Decisions have no gap: behind one that got lost nothing is carried out, since the shards would
   differ from there on.
3. A worker that dies between its messages to the lead and to a follower leaves a push that the lead
   has taken and that will never come here. Then all shards go on from the last checkpoint.
"""

from collections import deque

from distsgd.errors import WireError, WorkerLost
from distsgd.live.messages.wire import LEAD, Kind, Phase, State
from distsgd.live.server.admission import Request, admitted
from distsgd.live.server.decisions import Action, Decision, decode_decisions
from distsgd.live.server.shard import Shard

_PATIENCE = 10
"""Heartbeats for which a push is waited for whose worker has been given up."""


class Follower:
    """Carries out the lead's decisions, each as soon as what it needs is there."""

    def __init__(self, shard: Shard, heartbeat_s: float) -> None:
        self._shard, self._heartbeat_s = shard, heartbeat_s
        self._queue: deque[Decision] = deque()
        self._n_followed = 0
        self._waits_since: float | None = None

    def handle(self, parts: list[bytes], now: float) -> None:  # noqa: ARG002 # as `Lead`
        """Take decisions or a request, answer or drop it."""
        request = admitted(self._shard, parts)
        if request is None or request.header.kind == Kind.BEAT:
            return
        kind, peer = request.header.kind, request.header.peer
        if peer < self._shard.n_workers:
            self._take(request)
        elif kind == Kind.DECISIONS and peer == LEAD:
            self._follow(request)
        elif kind != Kind.SNAPSHOT:
            phase: Phase = "ending" if self._shard.is_over else "running"
            state = State(phase, dropped=dict(self._shard.drops.counts))
            self._shard.report(request.session, request.header.sequence, state)
        self._carry_on()

    def tick(self, now: float) -> None:
        """Give up if a worker has died between its messages to the lead and to this shard."""
        if not self._queue:
            self._waits_since = None
            return
        self._waits_since = now if self._waits_since is None else self._waits_since
        worker = self._queue[0].worker
        has_left = any(one.action == Action.LEAVE and one.worker == worker for one in self._queue)
        # rule 3: the frames of a worker that lives may still be on their way
        if has_left and now - self._waits_since > _PATIENCE * self._heartbeat_s:
            raise WorkerLost(
                f"shard {self._shard.number}: a push of worker {worker} has come to the lead alone;"
                " start the servers again"
            )

    def _take(self, request: Request) -> None:
        if self._shard.is_over:
            self._shard.tell(request.identity, request.header, Kind.END)
            return
        try:
            self._shard.take(request.header, request.frames)
        except WireError as error:
            self._shard.drops.add("unexpected", error)

    def _follow(self, request: Request) -> None:
        # rule 2
        if request.header.sequence != self._n_followed + 1 or len(request.frames) != 1:
            self._shard.drops.add("sequence", request.header.sequence)
            return
        try:
            self._queue.extend(decode_decisions(request.frames[0]))
        except WireError as error:
            self._shard.drops.add("malformed", error)
            return
        self._n_followed += 1
        request.session.accepted = request.header.sequence

    def _carry_on(self) -> None:
        while self._queue and self._is_ready(self._queue[0]):
            self._shard.carry_out([self._queue.popleft()])
            self._waits_since = None

    def _is_ready(self, decision: Decision) -> bool:
        # rule 1
        if decision.action != Action.HOLD or self._shard.vectors.is_shared:
            return True
        return decision.sequence in self._shard.sessions[decision.worker].pushes
