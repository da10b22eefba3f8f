"""The clerk of a live run: speaks to the lead for the supervisor, which has no socket."""

from contextlib import closing
from multiprocessing.connection import Connection
from typing import NamedTuple

import zmq

from distsgd.live.messages.link import Link, Peer
from distsgd.live.messages.wire import WORKER_SESSION, Kind

ASK_S = 0.05
"""Time between two questions how the run is going."""


class Errand(NamedTuple):
    """What to tell the lead: the kind of a message, and the worker and the session it is about."""

    kind: Kind
    worker: int = 0
    session: int = 0


def relay(peer: Peer, pipe: Connection) -> None:
    """Carry errands to the lead, and its state back, until the supervisor ends.

    Parameters
    ----------
    peer : Peer
        The launcher, which the lead knows.
    pipe : Connection
        Brings an `Errand` now and then; takes each errand with what the lead has answered, a
        `distsgd.live.messages.wire.State` as JSON.
    """
    with zmq.Context() as context, closing(Link(peer, context)) as link:
        while True:
            errand: Errand = pipe.recv() if pipe.poll(ASK_S) else Errand(Kind.STATUS)
            frame = WORKER_SESSION.pack(errand.worker, errand.session)
            asked = link.ask(errand.kind, frames=[(frame,)] if errand.session else None)
            (reply,) = link.wait(asked)
            pipe.send((errand, reply.frames[0]))
