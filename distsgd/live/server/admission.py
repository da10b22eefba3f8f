"""Admission: what every shard checks of a message before it acts on it.

1. A peer is known by the number of its session. A process that shows a former one has been given
   up, and is told the end; any other number is a stranger's, which gets no answer.
2. A request is served once. If it comes again, so does its reply.
3. What a worker has read from an earlier life of the servers may be undone: it has to join again.
"""

from typing import NamedTuple

from distsgd.errors import WireError
from distsgd.live.messages.wire import Frames, Header, Kind, decode
from distsgd.live.server.sessions import Session
from distsgd.live.server.shard import Shard


class Request(NamedTuple):
    """A request that has been admitted."""

    session: Session
    header: Header
    frames: Frames
    identity: bytes


_OF_WORKERS = frozenset({Kind.JOIN, Kind.PULL, Kind.PUSH, Kind.EXCHANGE})
_MOST_OPEN = 4
"""Requests that a worker can have sent behind the last one that was accepted."""


def admitted(shard: Shard, parts: list[bytes]) -> Request | None:
    """Return a new request, or None if a message has been answered again, refused or dropped.

    Its parts are where it comes from, its header, and its frames.
    """
    identity, *rest = parts
    try:
        header, frames = decode(rest)
    except WireError as error:
        shard.drops.add("malformed", error)
        return None
    session = shard.sessions.get(header.peer)
    if session is None:
        shard.drops.add("unknown peer", header.peer)
    elif header.session != session.number:  # rule 1
        if header.session in session.former:
            shard.tell(identity, header, Kind.END)
        else:
            shard.drops.add("wrong session", header.peer)
    elif (header.kind in _OF_WORKERS) != (header.peer < shard.n_workers) and header.kind != Kind.BEAT:
        shard.drops.add("not its request", Kind(header.kind).name.lower())
    elif header.kind == Kind.BEAT or _is_new(shard, session, header, identity):
        return Request(session, header, frames, identity)
    return None


def _is_new(shard: Shard, session: Session, header: Header, identity: bytes) -> bool:
    """Return whether a request is the next one of its session; answer it again if it is not."""
    is_worker = header.kind in _OF_WORKERS
    if header.life > shard.life:  # rule 3: this server is the one that has been replaced
        shard.drops.add("later life", header.life)
    elif is_worker and header.life < shard.life and header.kind != Kind.JOIN:
        shard.tell(identity, header, Kind.REJOIN)
    elif header.sequence <= session.accepted:  # rule 2
        if header.sequence == session.accepted:  # it may have connected again; a replay is older
            session.identity = identity
        shard.send(session, header.sequence, identity)
    elif is_worker and header.kind != Kind.JOIN and header.sequence > session.accepted + _MOST_OPEN:
        shard.drops.add("sequence", header.sequence)
    else:
        session.identity = identity
        return True
    return False
