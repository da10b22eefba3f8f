"""Admission: what every shard checks of a message before it acts on it."""

from typing import NamedTuple

from distsgd.errors import WireError
from distsgd.live.messages.wire import Frames, Header, Kind, decode
from distsgd.live.server.sessions import Peer
from distsgd.live.server.shard import Shard


class Heard(NamedTuple):
    """A request of a known peer."""

    peer: Peer
    header: Header
    frames: Frames
    identity: bytes


_OF_WORKERS = frozenset({Kind.JOIN, Kind.PULL, Kind.PUSH, Kind.EXCHANGE})


def hear(shard: Shard, parts: list[bytes], n_workers: int) -> Heard | None:
    """Return a new request, or None if a message has been answered again, refused or dropped.

    Parameters
    ----------
    shard : Shard
        The shard that has received it.
    parts : list of bytes
        Where it comes from, its header, and its frames.
    n_workers : int
        Workers of the run.
    """
    identity = parts[0]
    try:
        header, frames = decode(parts[1:])
    except WireError as error:
        shard.drops.add("malformed", error)
        return None
    peer = shard.peers.get(header.peer)
    if peer is None:
        shard.drops.add("unknown peer", header.peer)
    elif header.session != peer.session:
        if header.session in peer.former:
            shard.tell(identity, header, Kind.END)
        else:
            shard.drops.add("wrong session", header.peer)
    elif (header.kind in _OF_WORKERS) != (header.peer < n_workers) and header.kind != Kind.BEAT:
        shard.drops.add("not its request", Kind(header.kind).name.lower())
    elif header.kind == Kind.BEAT or _is_new(shard, peer, header, identity):
        return Heard(peer, header, frames, identity)
    return None


def _is_new(shard: Shard, peer: Peer, header: Header, identity: bytes) -> bool:
    """Return whether a request is the next one of its session; answer it again if it is not."""
    is_worker = header.kind in _OF_WORKERS
    if header.life > shard.life:
        shard.drops.add("later life", header.life)
    elif is_worker and header.life < shard.life and header.kind != Kind.JOIN:
        shard.tell(identity, header, Kind.REJOIN)
    elif header.sequence <= peer.accepted:
        if header.sequence == peer.accepted:  # it may have connected again; a replay is older
            peer.identity = identity
        shard.send(peer, header.sequence, identity)
    elif is_worker and header.kind != Kind.JOIN and header.sequence > peer.accepted + 4:
        shard.drops.add("sequence", header.sequence)
    else:
        peer.identity = identity
        return True
    return False
