"""What every shard does: it carries decisions out, in order, and answers the workers.

1. A reply is kept until the worker can no longer ask for it again: a request is served once, and a
   reply that got lost has the same bits when it is sent again.
2. The last sequence number that was accepted never falls. A request and the decision on it come to
   a follower in either order, and a reply may overtake a push that is held.
3. A checkpoint that cannot be written does not end the run: the lead is told, and tries again.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from distsgd.errors import WireError
from distsgd.live.messages.columns import Vectors
from distsgd.live.messages.rings import Line
from distsgd.live.messages.wire import EVALUATOR, LEAD, Frames, Header, Kind, State, encode
from distsgd.live.server.checkpoint import Name, discard, remove_older, save_columns
from distsgd.live.server.decisions import Action, Decision
from distsgd.live.server.sessions import Drops, Session
from distsgd.live.server.store import Store

_BRINGING = frozenset({Kind.PUSH, Kind.EXCHANGE})


class Shard:
    """Columns, peers and a socket; `distsgd.live.server.serve` makes a lead or a follower of it.

    It admits the peers of `sessions`, by their numbers, and writes checkpoints to `folder`; `life`
    says how often the servers have been started before.
    """

    def __init__(
        self,
        number: int,
        store: Store,
        vectors: Vectors,
        socket: Line,
        *,
        sessions: dict[int, Session],
        folder: Path,
        life: int = 0,
    ) -> None:
        self.number, self.life, self.folder = number, life, folder
        self.store, self.vectors, self.sessions = store, vectors, sessions
        self.n_workers = sum(peer < LEAD for peer in sessions)
        self.drops = Drops(number)
        self.is_over = self.is_stopped = False
        self.unsaved: Exception | None = None
        """Why the last checkpoint could not be written."""
        self._socket = socket
        self._do: dict[int, Callable[[Decision], None]] = {
            Action.START: self._welcome,
            Action.JOIN: self._welcome,
            Action.PULL: self._answer,
            Action.HOLD: self._hold,
            Action.DROP: self._drop,
            Action.CLOSE: store.close,
            Action.RELEASE: self._release,
            Action.LEAVE: self._leave,
            Action.ADMIT: self._admit,
            Action.SNAPSHOT: self._show,
            Action.CHECKPOINT: self._save,
            Action.END: self._end,
            Action.STOP: self._stop,
        }

    def carry_out(self, decisions: Sequence[Decision]) -> None:
        """Do what has been decided."""
        for decision in decisions:
            self._do[decision.action](decision)

    def take(self, header: Header, frames: Frames) -> None:
        """Check a worker's frames, and keep those of a push until it is taken.

        Frames that are not the columns of such a request are a `WireError`.
        """
        if header.kind in _BRINGING:
            columns = self.vectors.message(self.number, header.peer, header.push, frames)
            if not self.vectors.is_shared:
                self.sessions[header.peer].pushes[header.sequence] = columns
        elif frames:
            raise WireError(f"a {Kind(header.kind).name.lower()} must have no frames, not {len(frames)}")

    def report(self, session: Session, sequence: int, state: State) -> None:
        """Answer the launcher or the evaluator: say how the run is going."""
        header = Header(Kind.STATE, session.peer, self.life, session.number, sequence)
        self._reply(session, header, (msgspec.json.encode(state),))

    def send(self, session: Session, sequence: int, identity: bytes) -> None:
        """Send a reply again, if it is kept."""
        reply = session.replies.get(sequence)
        if reply is not None:
            self._send(identity, reply)

    def _send(self, identity: bytes, reply: Frames) -> None:
        self._socket.send_multipart((identity, *reply), copy=len(reply) == 1)

    def tell(self, identity: bytes, header: Header, kind: Kind) -> None:
        """Answer a request that is not served, without keeping the answer."""
        told = Header(kind, header.peer, self.life, header.session, header.sequence)
        self._socket.send_multipart((identity, encode(told)))

    def _welcome(self, decision: Decision) -> None:
        frames: Frames = ()
        self.store.detach(decision.worker)  # store's rule 3: it may have been restarted
        if decision.version > 0:
            frames = self.vectors.answer(self.number, decision.worker, [self.store.x])
        self._reply_to(self.sessions[decision.worker], Kind.WELCOME, decision, frames)

    def _answer(self, decision: Decision) -> None:
        columns = self.store.read(decision.version)
        frames = self.vectors.answer(self.number, decision.worker, columns)
        self._reply_to(self.sessions[decision.worker], Kind.VALUES, decision, frames)

    def _hold(self, decision: Decision) -> None:
        session = self.sessions[decision.worker]
        session.accepted = max(session.accepted, decision.sequence)  # rule 2
        if self.vectors.is_shared:
            columns = self.vectors.message(self.number, decision.worker, decision.push, ())
        else:
            columns = session.pushes.pop(decision.sequence)
        self.store.hold(decision.worker, columns)

    def _drop(self, decision: Decision) -> None:
        session = self.sessions[decision.worker]
        session.accepted = max(session.accepted, decision.sequence)  # rule 2
        session.pushes.pop(decision.sequence, None)

    def _release(self, decision: Decision) -> None:
        self._reply_to(self.sessions[decision.worker], Kind.TAKEN, decision)

    def _leave(self, decision: Decision) -> None:
        self.store.detach(decision.worker)

    def _admit(self, decision: Decision) -> None:
        self.sessions[decision.worker].renew(decision.session)

    def _show(self, decision: Decision) -> None:
        frames = self.vectors.answer(self.number, None, [self.store.x])
        self._reply_to(self.sessions[EVALUATOR], Kind.VALUES, decision, frames)

    def _save(self, decision: Decision) -> None:
        name = Name(self.life, decision.checkpoint)
        try:
            save_columns(self.folder, name, self.number, self.store.columns)
            remove_older(self.folder, self.number)
            self.unsaved = None
        except Exception as error:  # noqa: BLE001 # a store raises what it likes
            self.unsaved = error  # rule 3
            discard(self.folder, f"{name}.{self.number}.*")

    def _end(self, decision: Decision) -> None:  # noqa: ARG002 # as every other action
        """Tell all workers that the run is over, whatever they wait for."""
        self.is_over = True
        for one in self.sessions.values():
            if one.peer < LEAD and one.identity:
                self.tell(one.identity, Header(Kind.END, one.peer, 0, one.number, one.accepted), Kind.END)

    def _stop(self, decision: Decision) -> None:  # noqa: ARG002 # as every other action
        self.is_stopped = True

    def _reply_to(self, session: Session, kind: Kind, decision: Decision, frames: Frames = ()) -> None:
        about = decision.step, decision.version, decision.time
        header = Header(kind, session.peer, self.life, session.number, decision.sequence, 0, *about)
        self._reply(session, header, frames)

    def _reply(self, session: Session, header: Header, frames: Frames) -> None:
        reply = (encode(header), *frames)
        session.accepted = max(session.accepted, header.sequence)  # rule 2
        session.keep(header.sequence, reply)  # rule 1, also of a worker that cannot be reached now
        if session.identity:
            self._send(session.identity, reply)
