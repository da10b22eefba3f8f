"""A live worker: its cycle of verbs, as requests to the servers.

1. It waits for what it pulls, and not for what it pushes; but where the server gathers a round, it
   waits for the round to close.
2. A push and a pull due at the same instant are one request.
"""

import contextlib
import threading
from collections import deque
from typing import NamedTuple

import numpy as np
import zmq

from distsgd.kernels.draws.random import DELAY
from distsgd.live.messages.columns import Vectors
from distsgd.live.messages.link import Ended, Link, Peer, Undone, connected
from distsgd.live.messages.sockets import Context
from distsgd.live.messages.wire import REQUESTS, Header, Kind, encode
from distsgd.live.peers.replica import Replica, WorkerCase
from distsgd.order.laws import Draws, Law
from distsgd.rules.cycle import SyncProtocol


def work(case: WorkerCase, vectors: Vectors, peer: Peer, *, delay: Law | None = None, heartbeat_s: float = 1.0) -> None:
    """Be a worker, which sleeps for a `delay` [s] in each step, until the run is over."""
    ended = threading.Event()
    # a run that diverges overflows, which is a result and no warning
    quiet = np.errstate(over="ignore", invalid="ignore", divide="ignore")
    with contextlib.suppress(Ended), zmq.Context() as context, quiet:
        heart = threading.Thread(target=_beat, args=(context, peer, heartbeat_s, ended))
        heart.start()
        link = Link(peer, context)
        draws = None if delay is None else delays(delay, case, peer.number)
        try:
            _Worker(case, vectors, peer.number, link, draws).run()
        finally:
            ended.set()
            heart.join()
            link.close()


_LONGEST_S = 1e6
"""Of a delay: no operating system sleeps for ever."""


def delays(law: Law, case: WorkerCase, worker: int) -> Draws:
    """Return how long a worker sleeps in each step [s]: a function of (seed, worker, step)."""
    return Draws("delay", law, _LONGEST_S, seed=case.stream.seed, purpose=DELAY, worker=worker)


class _Push(NamedTuple):
    number: int
    sequence: int


class _Worker:
    """The loop of a worker, over the replies of the servers."""

    def __init__(self, case: WorkerCase, vectors: Vectors, number: int, link: Link, draws: Draws | None) -> None:
        self._case, self._vectors, self._number = case, vectors, number
        self._link, self._delays = link, draws
        self._replica = Replica(case, number)
        self._sync = SyncProtocol.of(case.algorithm.cycle, case.workers)
        self._unacknowledged: deque[_Push] = deque()
        self._n_pushes, self._first = 0, 0

    def run(self) -> None:
        """Work until the run ends, and begin again whenever the servers have."""
        while True:
            with contextlib.suppress(Undone):
                self._live()

    def _live(self) -> None:
        self._join()
        while True:
            self._exchange()
            step = self._replica.step
            self._replica.take_step()
            if self._delays is not None:
                self._link.rest(self._delays.of(step))

    def _join(self) -> None:
        self._link.forget()
        self._unacknowledged.clear()
        replies = self._link.wait(self._link.ask(Kind.JOIN))
        welcome, x = replies[0].header, self._case.start
        if welcome.version > 0:
            columns = self._vectors.fetch(self._number, [reply.frames for reply in replies])
            x = np.array(columns[0])
        self._first = welcome.step
        self._replica.begin(x, welcome.version, welcome.step)

    def _exchange(self) -> None:
        """Serve the verbs that are due before the next step."""
        step = self._replica.step
        for kind in REQUESTS[self._sync.due(step, is_first=step == self._first)]:
            match kind:
                case Kind.PULL:
                    self._receive(self._link.ask(kind, step=step))
                case Kind.EXCHANGE:  # rule 2
                    self._receive(self._send(kind).sequence)
                case _:
                    self._push()

    def _receive(self, sequence: int) -> None:
        replies = self._link.wait(sequence)
        columns = self._vectors.fetch(self._number, [reply.frames for reply in replies])
        self._replica.receive(columns, replies[0].header.version)

    def _push(self) -> None:
        push = self._send(Kind.PUSH)
        if self._sync.waits:  # rule 1
            self._link.wait(push.sequence)
        else:
            self._unacknowledged.append(push)

    def _send(self, kind: Kind) -> _Push:
        number = self._n_pushes
        # rule 1 of columns: the push before the last has used this out-box
        while self._unacknowledged and self._unacknowledged[0].number <= number - 2:
            self._link.settle(self._unacknowledged.popleft().sequence)
        frames = self._vectors.post(self._number, number, self._replica.send())
        self._n_pushes += 1
        step = self._replica.step
        return _Push(number, self._link.ask(kind, push=number, step=step, frames=frames))


def _beat(context: Context, peer: Peer, every_s: float, ended: threading.Event) -> None:
    """Tell the lead that the worker is alive, from a thread: a long step is no hang."""
    with connected(context, peer.doors[0]) as socket:
        while not ended.wait(every_s):
            beat = Header(Kind.BEAT, peer.number, session=peer.session, sent=peer.now())
            with contextlib.suppress(zmq.Again):
                socket.send(encode(beat), zmq.NOBLOCK)
