import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq

import distsgd as ds
from distsgd.algorithm import Algorithm, Pull, Push, Step
from distsgd.data.stream import Stream
from distsgd.live.messages import link
from distsgd.live.messages.columns import FrameVectors, Layout
from distsgd.live.messages.link import Peer
from distsgd.live.messages.sockets import Door
from distsgd.live.messages.wire import Header, Kind, Message, decode, encode
from distsgd.live.peers.replica import WorkerCase
from distsgd.live.peers.worker import delays, work
from distsgd.order.schedule import schedule
from distsgd.rules.cycle import SyncProtocol
from distsgd.trace import PULL

SESSION, BATCH, SEED = 77, 4, 3
PROBLEM = ds.problems.quadratic([1.0, 2.0, 0.5], noise=0.1)
Answer = Callable[[Message], Header | tuple[Header, np.ndarray] | None]


def case_of(algorithm: Algorithm, workers: int = 1) -> WorkerCase:
    """Return what a worker of `algorithm` computes."""
    stream = Stream(PROBLEM.samples, BATCH, SEED)
    return WorkerCase(algorithm, PROBLEM, stream, PROBLEM.start(SEED), workers)


def reply(message: Message, kind: Kind, version: int = 0, **fields: int) -> Header:
    """Return the header that answers `message`."""
    return message.header._replace(kind=kind, version=version, **fields)


@contextmanager
def working(case: WorkerCase, **options: object) -> Iterator[tuple[zmq.Socket, threading.Thread]]:
    """Run worker 0 in a thread, against the socket that the block speaks through."""
    with tempfile.TemporaryDirectory() as folder, zmq.Context() as context:
        endpoint = f"ipc://{Path(folder, '0')}"
        with context.socket(zmq.ROUTER) as socket:
            socket.rcvtimeo, socket.linger = 20_000, 0
            socket.bind(endpoint)
            vectors = FrameVectors(Layout(PROBLEM.dimension, 1, 1, 1, 1))
            peer = Peer(0, SESSION, [Door(endpoint)], 0.0)
            options = {"heartbeat_s": 60.0} | options
            thread = threading.Thread(target=work, args=(case, vectors, peer), kwargs=options)
            thread.start()
            try:
                yield socket, thread
            finally:
                while thread.is_alive():
                    if socket.poll(100):
                        serve(socket, 1, lambda message: reply(message, Kind.END))
                thread.join()


def serve(socket: zmq.Socket, n_messages: int, answer: Answer) -> list[Message]:
    """Answer messages, and return them."""
    seen = []
    for _ in range(n_messages):
        address, *frames = socket.recv_multipart()
        message = decode(frames)
        seen.append(message)
        match answer(message):
            case Header() as header:
                socket.send_multipart([address, encode(header)])
            case (header, x):
                socket.send_multipart([address, encode(header), x.tobytes()])
    return seen


class Serial:
    """A server of plain SGD that serves whatever comes."""

    def __init__(self, rate: float) -> None:
        self.x, self.version, self.rate = PROBLEM.start(SEED), 0, rate

    def answer(self, message: Message) -> Header | tuple[Header, np.ndarray]:
        """Serve one message."""
        kind = message.header.kind
        if kind == Kind.JOIN:
            return reply(message, Kind.WELCOME)
        if kind in {Kind.PUSH, Kind.EXCHANGE}:
            self.x = self.x - self.rate * 1.0 * np.frombuffer(message.frames[0])
            self.version += 1
        if kind == Kind.PUSH:
            return reply(message, Kind.TAKEN, self.version)
        return reply(message, Kind.VALUES, self.version), self.x


def kinds(messages: list[Message]) -> list[Kind]:
    """Return what messages ask for."""
    return [Kind(message.header.kind) for message in messages]


@pytest.mark.parametrize("periods", [(1, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("order", ["pull step push", "pull push step", "push pull step"])
def test_verbs_are_due_as_in_a_schedule(periods: tuple[int, int], order: str) -> None:
    """Between two steps a worker does what a schedule lets it do, in that order."""
    verbs = {"pull": Pull(periods[0]), "push": Push(periods[1]), "step": Step()}
    cycle = tuple(verbs[name] for name in order.split())
    sync = SyncProtocol.of(cycle, 1)
    rows = schedule(cycle, ds.Fleet(workers=1), gradients=30).rows
    found = [(int(row["step"]), row["verb"] == PULL) for row in rows]
    expected = [(step, one is Pull) for step in range(40) for one in sync.due(step, is_first=step == 0)]
    assert found == expected[: len(found)]


def test_a_worker_that_begins_at_a_step_sends_nothing_from_behind_it() -> None:
    """Whoever joins before a step has computed nothing that a push from behind it could carry."""
    sync = SyncProtocol.of((Pull(), Step(), Push(2)), 1)
    assert sync.due(4, is_first=False) == (Push, Pull)
    assert sync.due(4, is_first=True) == (Pull,)


@pytest.mark.parametrize(("n_fetch", "n_push"), [(1, 1), (2, 3)])
def test_a_worker_has_the_bits_of_a_simulated_one(n_fetch: int, n_push: int) -> None:
    """What a live worker pushes are the bits that a simulated one pushes."""
    algorithm = ds.algorithms.downpour(0.1, n_fetch, n_push)
    server = Serial(0.1)
    with working(case_of(algorithm)) as (socket, _):
        while server.version < 7:
            serve(socket, 1, server.answer)
    run = ds.simulate(algorithm, PROBLEM, ds.Fleet(workers=1), updates=7, batch=BATCH, seed=SEED)
    assert server.x.tobytes() == run.x.tobytes()


def test_a_push_and_a_pull_travel_together() -> None:
    """A push and a pull that fall together are one request, and others are not."""
    with working(case_of(ds.algorithms.downpour(0.1, 2, 1))) as (socket, _):
        seen = serve(socket, 5, Serial(0.1).answer)
    assert kinds(seen) == [Kind.JOIN, Kind.PULL, Kind.PUSH, Kind.EXCHANGE, Kind.PUSH]
    assert [message.header.sequence for message in seen] == [1, 2, 3, 4, 5]
    assert [message.header.push for message in seen] == [0, 0, 0, 1, 2]


def test_two_pushes_may_be_unacknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker goes on while two pushes are unacknowledged, and not with a third."""
    monkeypatch.setattr(link, "RESEND_S", 0.05)
    server = Serial(0.1)
    with working(case_of(ds.algorithms.downpour(0.1, 1000, 1))) as (socket, _):
        serve(socket, 2, server.answer)
        silent = serve(socket, 4, lambda _: None)
        answered = serve(socket, 2, server.answer)
    assert [message.header.push for message in silent] == [0, 1, 0, 1]
    assert [message.header.push for message in answered] == [0, 1]


def test_a_request_without_reply_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What got no reply is sent again, the same to the bit."""
    monkeypatch.setattr(link, "RESEND_S", 0.05)
    with working(case_of(ds.algorithms.downpour(0.1))) as (socket, _):
        serve(socket, 1, Serial(0.1).answer)
        (first, second) = serve(socket, 2, lambda _: None)
    assert first == second


def test_a_worker_waits_for_its_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server gathers a round, a push alone waits for the answer."""
    monkeypatch.setattr(link, "RESEND_S", 0.05)
    algorithm = ds.algorithms.downpour(0.1, 1000, 1)
    cycle = tuple(Push(quorum=2) if isinstance(one, Push) else one for one in algorithm.cycle)
    server = Serial(0.1)
    with working(case_of(algorithm._replace(cycle=cycle), workers=2)) as (socket, _):
        serve(socket, 2, server.answer)
        (push,) = serve(socket, 1, lambda _: None)
        (again,) = serve(socket, 1, server.answer)
        (following,) = serve(socket, 1, server.answer)
    assert (push.header.push, again.header.push, following.header.push) == (0, 0, 1)


def test_a_worker_begins_again_when_the_servers_have() -> None:
    """Told to join again, a worker drops what it had accrued and goes on from what it is given."""
    algorithm, x = ds.algorithms.downpour(0.1, 1000, 5), np.array([3.0, 2.0, 1.0])
    case = case_of(algorithm)
    with working(case) as (socket, _):
        serve(socket, 2, Serial(0.1).answer)
        serve(socket, 3, lambda message: reply(message, Kind.REJOIN, life=4))
        (join,) = serve(socket, 1, lambda m: (reply(m, Kind.WELCOME, 9, step=3), x))
        (push,) = serve(socket, 1, lambda message: reply(message, Kind.TAKEN))
    assert (join.header.kind, join.header.life) == (Kind.JOIN, 4)
    expected, accrued = x, 0.0
    for step in (3, 4):
        g = PROBLEM.gradient(expected, case.stream.batch(0, step))
        expected, accrued = expected - 0.1 * g, accrued + g
    assert push.header.step == 5
    assert bytes(push.frames[0]) == accrued.tobytes()


def test_a_resting_worker_hears_the_end() -> None:
    """The end of a run ends a worker that sleeps for long."""
    options = {"delay": ds.constant(1e6)}
    with working(case_of(ds.algorithms.downpour(0.1)), **options) as (socket, thread):
        server = Serial(0.1)
        serve(socket, 1, server.answer)
        address, *frames = socket.recv_multipart()
        header, x = server.answer(decode(frames))
        socket.send_multipart([address, encode(header), x.tobytes()])
        socket.send_multipart([address, encode(header._replace(kind=Kind.END))])
        thread.join(20)
        assert not thread.is_alive()


def test_a_long_step_is_no_hang() -> None:
    """A worker shows that it is alive while it computes."""
    computed = threading.Event()
    problem = type("Slow", (), {"__getattr__": lambda _, name: getattr(PROBLEM, name)})()
    problem.gradient_into = lambda x, batch, out, key: computed.wait(20)
    case = case_of(ds.algorithms.downpour(0.1))._replace(problem=problem)
    with working(case, heartbeat_s=0.02) as (socket, _):
        seen = []
        while kinds(seen).count(Kind.BEAT) < 3:
            seen += serve(socket, 1, _unless_beat(Serial(0.1)))
        computed.set()
    assert Kind.PUSH not in kinds(seen)
    assert all(message.header.session == SESSION for message in seen)


def _unless_beat(server: Serial) -> Answer:
    return lambda message: None if message.header.kind == Kind.BEAT else server.answer(message)


def test_a_delay_depends_on_worker_and_step_alone() -> None:
    """Injected delays are a function of (seed, worker, step), whatever was asked before."""
    law, case = ds.exponential(1.0), case_of(ds.algorithms.downpour(0.1))
    forwards, backwards = delays(law, case, 1), delays(law, case, 1)
    steps = range(200)
    assert [forwards.of(step) for step in steps] == [backwards.of(step) for step in reversed(steps)][::-1]
    assert forwards.of(0) != delays(law, case, 2).of(0)
