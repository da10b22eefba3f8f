"""What stands for pipes between a driver and its actors: to the lead, to the evaluator; clocks."""

import contextlib
import threading
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

import msgspec
import zmq

from distsgd.live.messages.link import Ended, Link, Peer
from distsgd.live.messages.wire import WORKER_SESSION, State
from distsgd.live.peers.evaluator import Judged
from distsgd.live.ray.session import package
from distsgd.live.server.control import Instruction

QUESTIONS = 5
"""Questions for another machine's clock; the one that was answered soonest counts."""


def offset(ask: Callable[[], float]) -> float:
    """Return how far another machine's clock is ahead of this one's [s].

    Its answer is as old as half of the time that the question took, give or take that half: the
    error is at most half of the shortest time.
    """
    shortest_s, found = float("inf"), 0.0
    for _ in range(QUESTIONS):
        before = time.monotonic()
        there = ask()
        after = time.monotonic()
        if after - before < shortest_s:
            shortest_s, found = after - before, there - (before + after) / 2
    return found


class Relay:
    """Carries instructions to a lead that no pipe reaches, and its answers back, in a thread."""

    def __init__(self) -> None:
        self._is_over, self._thread = threading.Event(), threading.Thread()

    def start(self, lead: Peer, pipe: Connection) -> None:
        """Speak to the lead of now, when the pipe to the one before has been closed.

        `lead` is the launcher, whose first door is the lead's. The pipe brings an `Instruction` now
        and then, and takes an `Answer` to each.
        """
        self.close()
        self._is_over = threading.Event()
        peer = lead._replace(doors=lead.doors[:1], is_over=self._is_over.is_set)
        self._thread = threading.Thread(None, _relay, "relay", (peer, pipe), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End with the pipe, which has been closed; a dead lead is waited for up to a second."""
        self._is_over.set()
        if self._thread.ident is not None:
            self._thread.join()


def _relay(peer: Peer, pipe: Connection) -> None:
    with (
        contextlib.suppress(Ended, EOFError, OSError),
        pipe,
        zmq.Context() as context,
        closing(Link(peer, context)) as link,
    ):
        while True:
            told: Instruction = pipe.recv()
            frame = WORKER_SESSION.pack(told.worker, told.session)
            asked = link.ask(told.kind, frames=[(frame,)] if told.session else None)
            (reply,) = link.wait(asked)
            pipe.send((told, msgspec.json.decode(reply.frames[0], type=State)))


class Findings:
    """What the evaluator has found."""

    def __init__(self, ray: ModuleType) -> None:
        self._ray = ray
        self._actor: Any = None
        self._asked: Any = None

    def listen(self, actor: Any) -> None:  # noqa: ANN401 # ray ships no types for it
        """Ask this evaluator from now on."""
        self._actor, self._asked = actor, actor.judged.remote()

    def heard(self) -> list[Judged]:
        """Return what has been handed over since the last time."""
        if self._asked is None or not self._ray.wait([self._asked], timeout=0)[0]:
            return []
        asked, self._asked = self._asked, None
        try:
            judged = self._ray.get(asked)
            self._asked = self._actor.judged.remote()
        except package("ray.exceptions").RayError:  # its end will be told
            return []
        return [] if judged is None else [judged]

    def wake(self) -> None:
        """Interrupt the evaluator's rest."""
        if self._actor is not None:
            self._actor.wake.remote()
