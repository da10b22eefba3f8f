"""A live worker: its cycle of verbs, with an algorithm's rules called by NumPy.

1. A worker holds what a fold holds of it, and computes it by the same operations, so that a replay
   has its bits.
2. It waits for what it pulls, and not for what it pushes; but where the server gathers a round, it
   waits for the round to close.
3. A push and a pull due at the same instant are one request.
4. Gradients are written into a few arrays in turn: never into one that the worker's state holds,
   since a rule may return what it was given.
"""

import contextlib
import threading
from collections import deque
from typing import Any, NamedTuple

import numpy as np
import zmq

from distsgd.algorithm import Algorithm, At, Rules, State, floats, is_memoryless
from distsgd.data.stream import Stream
from distsgd.kernels.draws.random import DELAY
from distsgd.live.messages.columns import Columns, Vectors
from distsgd.live.messages.link import Ended, Link, Peer, Undone, connected
from distsgd.live.messages.sockets import Context
from distsgd.live.messages.wire import REQUESTS, Header, Kind, encode
from distsgd.order.laws import Draws, Law
from distsgd.problem import Batch, Problem, Vector
from distsgd.rules.cycle import SyncProtocol
from distsgd.rules.formulas import whole
from distsgd.sparse import Floats

_DRAWN = 16
"""Steps whose samples are drawn together."""


class WorkerCase(NamedTuple):
    """What all workers of a run have in common."""

    algorithm: Algorithm
    problem: Problem
    stream: Stream
    start: Vector
    """The starting point, float[d]."""
    workers: int
    layer_factors: Floats | None = None
    """Factor of each coordinate's layer on the learning rate, float64[d], None if all are 1."""

    @property
    def hyper(self) -> Any:  # noqa: ANN401 # the algorithm's own NamedTuple
        """The hyper-parameters as floats, as every engine takes them."""
        return floats(self.algorithm)

    def warm_up(self) -> None:
        """Evaluate a gradient, so that what it compiles and starts is part of no worker's step."""
        batch, key = Samples(self, 0).of(0)
        self.problem.gradient_into(self.start, batch, np.empty_like(self.start), key)


class Samples:
    """What a worker's steps draw: a batch, and the key of a problem that is random, or else 0.

    Those of `_DRAWN` steps are drawn together, which takes hardly longer than those of one.
    """

    def __init__(self, case: WorkerCase, worker: int) -> None:
        self._stream, self._worker, self._is_random = case.stream, worker, case.problem.is_random
        self._block = -1

    def of(self, step: int) -> tuple[Batch, int]:
        """Return the batch, uint32[b], and the key of a step."""
        block, place = divmod(step, _DRAWN)
        if block != self._block:
            self._block = block
            workers, steps = np.full(_DRAWN, self._worker), block * _DRAWN + np.arange(_DRAWN)
            self._batches = self._stream.batches(workers, steps)
            self._keys = self._stream.keys(workers, steps).tolist() if self._is_random else [0] * _DRAWN
        return self._batches[place], self._keys[place]


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


class Replica:
    """A worker's state, and its rules as NumPy calls them."""

    def __init__(self, case: WorkerCase, worker: int) -> None:
        self._case, self._h = case, case.hyper
        self._rules = Rules.of(case.algorithm, case.start.dtype)
        self._samples, self._gradients = Samples(case, worker), list[Vector]()
        self._keeps_views = is_memoryless(case.algorithm)
        self._epochs_per_step = case.stream.batch_size / case.problem.samples
        self.begin(case.start, version=0, step=0)

    def begin(self, x: Vector, version: int, step: int) -> None:
        """Begin at the parameters `x` of a version, with `step` steps behind."""
        self._state: State = self._rules.init(self._h, x)
        self._version, self.step = version, step
        self._at = self._known()

    def receive(self, columns: Columns, version: int) -> None:
        """Take what a pull has returned; a worker that remembers nothing needs no copy of it."""
        self._version, self._at = version, self._at._replace(version=version)
        kept = columns if self._keeps_views else [np.array(column) for column in columns]
        self._state = self._rules.receive(self._h, self._state, *kept, self._at)

    def take_step(self) -> None:
        """Evaluate the gradient of the step's batch, and take the step."""
        point = whole(self._rules.at(self._h, self._state, self._at), self._case.start.size)
        (batch, key), g = self._samples.of(self.step), self._free_array()
        self._case.problem.gradient_into(point, batch, g, key)
        self._state = self._rules.step(self._h, self._state, g, self._at)
        self.step += 1
        self._at = self._known()

    def send(self) -> Columns:
        """Return the columns of a push, each float[d]."""
        self._state, message = self._rules.send(self._h, self._state, self._at)
        return [whole(column, self._case.start.size) for column in message]

    def _free_array(self) -> Vector:
        for g in self._gradients:
            if id(g) not in map(id, self._state):  # rule 4
                return g
        self._gradients.append(np.empty_like(self._case.start))
        return self._gradients[-1]

    def _known(self) -> At:
        schedule, factor = self._case.algorithm.schedule, 1.0
        if schedule is not None:
            factor = schedule(self.step * (self._epochs_per_step * self._case.workers))
        layers = self._case.layer_factors
        return At(self._version, 0, self._case.workers, self.step, factor if layers is None else factor * layers)


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
                case Kind.EXCHANGE:  # rule 3
                    self._receive(self._send(kind).sequence)
                case _:
                    self._push()

    def _receive(self, sequence: int) -> None:
        replies = self._link.wait(sequence)
        columns = self._vectors.fetch(self._number, [reply.frames for reply in replies])
        self._replica.receive(columns, replies[0].header.version)

    def _push(self) -> None:
        push = self._send(Kind.PUSH)
        if self._sync.waits:  # rule 2
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
