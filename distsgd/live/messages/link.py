"""A peer's requests to the servers: each is sent again until every shard has answered it.

1. A request goes to all shards under one sequence number, and is answered when all have replied.
2. A shard that has not replied for a while is sent all requests that it owes an answer to, in their
   order. It knows those that it has seen by their numbers.
3. Two answers are no replies, and are raised: the servers have restarted (`Undone`), or the run
   goes on without this peer (`Ended`).
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import zmq

from distsgd.live.messages.rings import WorkerEnd
from distsgd.live.messages.sockets import Context, Door, Socket, knock
from distsgd.live.messages.wire import Frames, Header, Kind, Message, decode, encode

RESEND_S = 1.0
"""How long a request waits for a reply before it is sent again."""
_RESEND_MS = int(1e3 * RESEND_S)
_SHORTEST_POLL_S = 0.002
"""A poll counts in milliseconds; shorter rests are slept."""


class Ended(Exception):  # noqa: N818 # it names what happened
    """The run is over, or goes on without this peer."""


class Undone(Exception):  # noqa: N818 # it names what happened
    """The servers have restarted: what this peer has read and sent may be undone."""


class Peer(NamedTuple):
    """The sender of requests, and its ways to the shards."""

    number: int
    """A worker's, or that of the launcher or the evaluator."""
    session: int
    """What the servers know it by."""
    doors: Sequence[Door]
    """How it reaches each shard; the first is the lead."""
    origin: float
    """When the run began, by the monotonic clock [s]."""
    rings: Sequence[WorkerEnd] = ()
    """Its rings to each shard, if they share memory; otherwise all goes through the doors."""
    is_over: Callable[[], bool] = lambda: False
    """Asked when a reply is late: whether the peer need not wait for it."""

    def now(self) -> float:
        """Return the time since the run began [s]."""
        return time.monotonic() - self.origin


class _Request:
    def __init__(self, messages: list[Frames]) -> None:
        self.messages = messages
        self.replies: list[Message | None] = [None] * len(messages)


class Link:
    """The sockets of one peer, one to each shard."""

    def __init__(self, peer: Peer, context: Context) -> None:
        self._peer = peer
        self._sockets = _lines(peer, context)
        self._none: Sequence[Frames] = [()] * len(self._sockets)
        self._open: dict[int, _Request] = {}
        self._sequence, self._life, self._resumed = 0, 0, 0.0

    def ask(
        self, kind: Kind, *, push: int = 0, step: int = 0, version: int = 0, frames: Sequence[Frames] | None = None
    ) -> int:
        """Send a request, with the `frames` of each shard, and return its sequence number."""
        self._sequence += 1  # rule 1
        peer = self._peer
        known = kind, peer.number, self._life, peer.session, self._sequence
        header = encode(Header(*known, push, step, version, peer.now(), self._resumed))
        request = _Request([(header, *own) for own in frames or self._none])
        self._open[self._sequence] = request
        for socket, message in zip(self._sockets, request.messages, strict=True):
            socket.send_multipart(message)
        return self._sequence

    def settle(self, sequence: int) -> list[Message]:
        """Return the reply of each shard to a request, when all are there, or raise by rule 3."""
        replies: list[Message] = []
        for shard in range(len(self._sockets)):
            while (reply := self._open[sequence].replies[shard]) is None:
                self._receive(shard)
            replies.append(reply)
        del self._open[sequence]
        return replies

    def wait(self, sequence: int) -> list[Message]:
        """Return what `settle` does to a peer that goes on only now."""
        replies = self.settle(sequence)
        self._resumed = self._peer.now()
        return replies

    def forget(self) -> None:
        """Wait no more for any reply; a late one is ignored."""
        self._open.clear()

    def rest(self, seconds: float) -> None:
        """Do nothing for a while [s], but hear the lead: the run may end meanwhile."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0.0:
            if left < _SHORTEST_POLL_S:
                time.sleep(left)
            elif self._sockets[0].poll(int(1e3 * left)):
                self._receive(0)

    def close(self) -> None:
        """Close all sockets."""
        for socket in self._sockets:
            socket.close(linger=0)

    def _receive(self, shard: int) -> None:
        try:
            frames = self._sockets[shard].recv_multipart()
        except zmq.Again:
            if self._peer.is_over():
                raise Ended from None
            for request in self._open.values():  # rule 2: in the order of their numbers
                if request.replies[shard] is None:
                    self._sockets[shard].send_multipart(request.messages[shard])
            return
        self._file(shard, decode(frames))

    def _file(self, shard: int, message: Message) -> None:
        header = message.header
        if header.session != self._peer.session:
            return
        if header.kind == Kind.END:  # rule 3
            raise Ended
        request = self._open.get(header.sequence)
        if request is None:  # answered before
            return
        self._life = header.life
        if header.kind == Kind.REJOIN:
            raise Undone
        request.replies[shard] = message


def _lines(peer: Peer, context: Context) -> Sequence[Socket | WorkerEnd]:
    for end in peer.rings:
        end.rcvtimeo = _RESEND_MS
    return peer.rings or [connected(context, door) for door in peer.doors]


def connected(context: Context, door: Door) -> Socket:
    """Return a socket to one shard that waits for no message longer than `RESEND_S`."""
    socket = knock(context, door)
    socket.rcvtimeo = _RESEND_MS
    return socket
