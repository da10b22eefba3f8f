import multiprocessing
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from small_server import LinkOf, SmallServer, answer

from distsgd import algorithms
from distsgd.algorithm import Algorithm
from distsgd.live.messages.link import Ended, Link
from distsgd.live.messages.sockets import knock, make_keys
from distsgd.live.messages.wire import EVALUATOR, LAUNCHER, LEAD, LOSSES, Header, Kind, Message, decode, encode
from distsgd.order import laws
from distsgd.order.budget import Limits
from distsgd.trace import JOIN, LEAVE, PULL, PUSH

SERVED = [
    algorithms.downpour(0.1),
    algorithms.downpour(0.1, 2, 3, warm_start=4),
    algorithms.synchronous(0.1),
    algorithms.synchronous(0.1, backup=1),
    algorithms.adaptive_revision(0.1),
    algorithms.elastic_averaging(0.1, period=2),
    algorithms.stale_synchronous(0.1, bound=1),
]
HOSTILE = 100_000


@pytest.mark.parametrize("shared", [True, False], ids=["memory", "frames"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("algorithm", SERVED, ids=lambda one: f"{one.name}-{len(str(one.cycle))}")
def test_a_run_has_the_bits_of_its_order(algorithm: Algorithm, shards: int, tmp_path: Path, *, shared: bool) -> None:
    """The model of a live run is the fold of its recorded order, for any shards and vectors."""
    with SmallServer(algorithm, tmp_path, shards=shards, shared=shared) as server:
        server.work()
        trace = server.assert_replays()
    assert trace.n_updates == 40


@pytest.mark.parametrize("law", [3, laws.exponential(2.0)], ids=str)
@pytest.mark.parametrize("shards", [1, 3])
def test_injected_staleness_replays(law: int | laws.Law, shards: int, tmp_path: Path) -> None:
    """Pulls of older versions are in the order, and the fold of it has the model's bits."""
    algorithm = algorithms.downpour(0.1)._replace(schedule=falling)
    with SmallServer(algorithm, tmp_path, shards=shards, staleness=law) as server:
        server.work()
        trace = server.assert_replays()
    assert trace.staleness.max() > 2


def falling(epochs: float) -> float:
    """Return the factor of a learning rate that falls."""
    return 1.0 / (1.0 + epochs)


class Raw:
    """A peer that sends what the test says, number by number."""

    def __init__(self, server: SmallServer, number: int) -> None:
        self.server, self.number, self.sequence = server, number, 0
        peer = server.peer(number)
        self.session = peer.session
        self.sockets = [server.stack.enter_context(knock(server.context, door)) for door in peer.doors]

    def send(self, kind: Kind, *frames: bytes, **fields: Any) -> Header:  # noqa: ANN401 # of a Header
        """Send the next request to all shards."""
        self.sequence += 1
        known = {"session": self.session, "sequence": self.sequence}
        header = Header(kind, self.number, **known | fields)
        for one in self.sockets:
            one.send_multipart([encode(header), *frames])
        return header

    def hear(self, timeout_ms: int = 10_000) -> list[Message]:
        """Return one message of each shard, or fewer if they do not come."""
        came = [one for one in self.sockets if one.poll(timeout_ms)]
        return [decode(one.recv_multipart()) for one in came]

    def ask(self, kind: Kind, *frames: bytes, **fields: Any) -> Header:  # noqa: ANN401 # of a Header
        """Send a request, and return the lead's answer."""
        self.send(kind, *frames, **fields)
        return self.hear()[0].header


@pytest.fixture
def frames(tmp_path: Path) -> Iterator[SmallServer]:
    """Return a server of plain asynchronous SGD whose columns come in frames."""
    options = {"shared": False, "limits": Limits(updates=1000)}
    with SmallServer(algorithms.downpour(0.1), tmp_path, **options) as server:
        yield server


COLUMN = np.ones(5).tobytes()


def test_a_request_that_comes_again_is_served_once(frames: SmallServer) -> None:
    """A duplicate is answered as before, and leaves no second row and no second update."""
    raw = Raw(frames, 0)
    assert raw.ask(Kind.JOIN).kind == Kind.WELCOME
    assert raw.ask(Kind.PULL).kind == Kind.VALUES
    raw.send(Kind.EXCHANGE, COLUMN, step=1)
    (first,) = raw.hear()
    for _ in range(3):
        raw.sequence -= 1
        raw.send(Kind.EXCHANGE, COLUMN, step=1)
        (again,) = raw.hear()
        assert again == first
    assert frames.ask().updates == 1
    frames.ask(Kind.STOP)
    trace, x, _ = frames.finish()
    assert trace.rows["verb"].tolist() == [PULL, PUSH, PULL]
    assert x.tobytes() == (frames.start - 0.1).tobytes()


def test_what_nobody_may_send_is_counted_by_reason(frames: SmallServer) -> None:
    """Every wrong message is dropped under the name of what is wrong, and changes nothing."""
    raw, stranger = Raw(frames, 0), Raw(frames, 1)
    stranger.session += 5
    stranger.number = 77
    stranger.send(Kind.JOIN)
    stranger.number = 1
    stranger.send(Kind.JOIN)
    stranger.sockets[0].send(b"short")
    raw.send(Kind.PULL)
    raw.sequence -= 1
    raw.ask(Kind.JOIN)
    raw.send(Kind.STOP)
    raw.sequence -= 1
    for columns in ([], [COLUMN, COLUMN], [COLUMN + b"x"]):
        raw.send(Kind.EXCHANGE, *columns, step=1)
        raw.sequence -= 1
    raw.send(Kind.PULL, b"frame")
    raw.sequence -= 1
    raw.sequence += 3
    raw.send(Kind.PULL)
    raw.sequence -= 4
    raw.send(Kind.PULL, life=3)
    raw.sequence -= 1
    assert raw.ask(Kind.PULL).kind == Kind.VALUES
    assert frames.until(lambda state: sum(state.dropped.values()) >= 11).dropped == {
        "unknown peer": 1,
        "wrong session": 1,
        "malformed": 1,
        "unexpected": 5,
        "not its request": 1,
        "sequence": 1,
        "later life": 1,
    }


def test_a_lost_worker_is_replaced(frames: SmallServer) -> None:
    """Whoever ends leaves a LEAVE row and is told END; its replacement joins under its session."""
    old = Raw(frames, 0)
    old.ask(Kind.JOIN)
    old.ask(Kind.PULL)
    assert frames.tell(Kind.GONE, 0, 1).lost == []  # of another session
    assert frames.tell(Kind.GONE, 0, old.session).lost == [0]
    assert frames.tell(Kind.GONE, 0, old.session).lost == [0]
    assert old.ask(Kind.EXCHANGE, COLUMN, step=1).kind == Kind.END
    assert frames.tell(Kind.ADMIT, 0, 4321).lost == []
    assert frames.tell(Kind.ADMIT, 3, 4321).dropped["malformed"] == 1  # there is no such worker
    assert frames.ask(Kind.ADMIT, step=0, version=4322).dropped["malformed"] == 2
    assert old.ask(Kind.JOIN).kind == Kind.END
    frames.sessions[0] = 4321
    new = Raw(frames, 0)
    welcome = new.ask(Kind.JOIN)
    assert (welcome.kind, welcome.version, welcome.step) == (Kind.WELCOME, 0, 0)
    frames.ask(Kind.STOP)
    trace, _, _ = frames.finish()
    assert trace.rows["verb"].tolist() == [PULL, LEAVE, JOIN]


def test_a_silent_worker_is_lost_and_the_round_goes_on(tmp_path: Path) -> None:
    """Five missed heartbeats are a LEAVE; where workers shrink, the others close the round."""
    options = {"heartbeat": 0.5, "on_loss": "shrink", "limits": Limits(updates=60)}
    with SmallServer(algorithms.synchronous(0.1), tmp_path, **options) as server:
        silent = Raw(server, 2)
        silent.ask(Kind.JOIN)
        server.work(0, 1)
        trace = server.assert_replays()
    assert np.count_nonzero(trace.rows["verb"] == LEAVE) == 1
    assert set(trace.rows["worker"][-10:]) == {0, 1}


def test_snapshots_are_one_version_of_all_shards(tmp_path: Path) -> None:
    """A snapshot has the version asked for; the last one is that of the end, and then comes END."""
    options = {"shards": 3, "evaluates": True, "checkpoint_every": 0.05}
    with SmallServer(algorithms.downpour(0.1), tmp_path, **options) as server, LinkOf(server, EVALUATOR) as link:
        asked = link.ask(Kind.SNAPSHOT, version=7)
        server.work()
        replies = link.wait(asked)
        (x,) = server.vectors.fetch(None, [reply.frames for reply in replies])
        assert {reply.header.version for reply in replies} == {7}
        assert not np.array_equal(x, server.start)
        assert judged(link, server, version=7, loss=0.5).loss == 0.5
        replies = link.wait(link.ask(Kind.SNAPSHOT, version=1000))
        (x,) = server.vectors.fetch(None, [reply.frames for reply in replies])
        last = x.copy()
        assert replies[0].header.version == 40
        for _ in range(10):  # it waits for the loss of the last model, not of an older one
            assert server.ask().phase == "ending"
            time.sleep(0.01)
        judged(link, server, version=40, loss=0.25)
        trace = server.assert_replays()
        assert server.finish()[1].tobytes() == last.tobytes()
        with pytest.raises(Ended):
            link.wait(link.ask(Kind.SNAPSHOT))
    assert trace.n_updates == 40


def judged(link: Link, server: SmallServer, *, version: int, loss: float) -> Any:  # noqa: ANN401 # a State
    """Report a loss, and return what the lead says."""
    frames = [(LOSSES.pack(loss, np.nan, np.nan),)] * server.shards
    return answer(link, link.ask(Kind.EVALUATED, version=version, frames=frames))


@pytest.mark.parametrize(("loss", "status"), [(0.09, "target"), (np.nan, "diverged")])
def test_a_loss_ends_the_run(loss: float, status: str, tmp_path: Path) -> None:
    """The run ends at its target, or where the loss is not finite, and says which."""
    options = {"evaluates": True, "target": 0.1, "limits": Limits(updates=10**9)}
    with SmallServer(algorithms.downpour(0.1), tmp_path, **options) as server, LinkOf(server, EVALUATOR) as link:
        server.work()
        server.until(lambda state: state.updates > 5)
        judged(link, server, version=3, loss=loss)
        assert server.finish()[2].status == status


def test_a_killed_server_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """After kill -9 workers join again, and the whole order still replays."""
    algorithm, options = algorithms.downpour(0.1), {"shared": False, "checkpoint_every": 0.02}
    server = SmallServer(algorithm, tmp_path, limits=Limits(updates=10**9), **options)
    with server.stack:
        server.context = server.stack.enter_context(zmq.Context())
        server.launcher = server.stack.enter_context(LinkOf(server, LAUNCHER))
        first = multiprocessing.get_context("spawn").Process(target=serve_once, args=(tmp_path,))
        server.work()
        first.start()
        reached = server.until(lambda state: len(state.alive) == 3).updates
        server.until(lambda state: state.updates > reached + 50)
        first.kill()
        first.join()
        server.life = 1
        with server:
            server.until(lambda state: len(state.alive) == 3)
            server.ask(Kind.STOP)
            trace = server.assert_replays()
    assert JOIN in trace.rows["verb"]


def serve_once(folder: Path) -> None:
    """Be the server that is killed."""
    options = {"shared": False, "checkpoint_every": 0.02, "limits": Limits(updates=10**9)}
    server = SmallServer(algorithms.downpour(0.1), folder, **options)
    server.serve()
    server.threads[0].join()


def hostile(server: SmallServer, n: int, seed: int) -> None:
    """Send `n` messages that no peer should: garbage, strangers, replays, an insider's nonsense."""
    dice = random.Random(seed)
    sockets = [server.context.socket(zmq.DEALER) for _ in range(4)]
    for one in sockets:
        one.linger, one.sndtimeo = 0, 20_000
        one.connect(server.listening[0])
    for number in range(n):
        one = sockets[number % len(sockets)]
        one.send_multipart(nonsense(dice, server.sessions))
        if number % 100 == 0:  # replies to an insider are not read for ever
            while one.poll(0):
                one.recv_multipart()
    for one in sockets:
        one.linger = 10_000
        one.close()


def nonsense(  # noqa: PLR0911 # one return per kind of nonsense
    dice: random.Random, sessions: dict[int, int]
) -> list[bytes]:
    """Return a hostile message; worker 3 is an insider, who sends no columns of the right size."""
    kind = dice.choice(list(Kind))
    header = Header(
        kind,
        dice.choice([*sessions, 4, 99]),
        dice.randrange(3),
        dice.getrandbits(64),
        dice.randrange(1 << 20),
        dice.randrange(9),
        dice.randrange(99),
        dice.randrange(99),
    )
    match dice.randrange(8):
        case 0:
            return [dice.randbytes(dice.randrange(200)) for _ in range(dice.randrange(1, 5))]
        case 1:
            return [encode(header)[: dice.randrange(72)], dice.randbytes(40)]
        case 2:
            return [encode(header._replace(kind=dice.randrange(1 << 16)))]
        case 3:  # a replay of an honest worker's first request
            worker = dice.randrange(3)
            old = Header(Kind.JOIN, worker, 0, sessions[worker], 1)
            return [encode(old)]
        case 4:
            inside = header._replace(peer=3, session=sessions[3], sequence=dice.randrange(50))
            return [encode(inside), dice.randbytes(dice.choice([0, 8, 39, 41, 80]))]
        case 5:
            return [encode(header._replace(sent=dice.choice([np.nan, -1.0, np.inf])))]
        case 6:
            return [encode(header), b'{"phase": "over"', b"\xff" * 100]
    return [encode(header), bytes(40), bytes(40)]


def test_hostile_frames_change_nothing(tmp_path: Path) -> None:
    """A hundred thousand hostile messages later, honest workers have the bits of their order."""
    options = {"workers": 4, "shared": False, "limits": Limits(updates=10**9)}
    with SmallServer(algorithms.downpour(0.1), tmp_path, **options) as server:
        server.work(0, 1, 2)
        server.until(lambda state: len(state.alive) == 3)
        for seed in range(2):
            server.thread(hostile, server, HOSTILE // 2, seed)
        oversized(server, 20)
        for thread in server.threads[-2:]:
            thread.join(60.0)
        state = server.until(lambda state: sum(state.dropped.values()) > 0.6 * HOSTILE)
        reached = state.updates
        server.until(lambda state: state.updates > reached + 50)
        server.ask(Kind.STOP)
        server.assert_replays()
    assert set(state.dropped) >= {"malformed", "unknown peer", "wrong session", "not its request", "unexpected"}


def oversized(server: SmallServer, n: int) -> None:
    """Send frames that are too large: the connection is closed, and nothing else."""
    for _ in range(n):
        with server.context.socket(zmq.DEALER) as one:
            one.linger = 100
            one.connect(server.listening[0])
            one.send(bytes(1 << 20))


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "curve"])
def test_tcp_with_and_without_keys(tmp_path: Path, *, encrypted: bool) -> None:
    """Over tcp honest workers finish while strangers send, which keys keep out altogether."""
    keys = make_keys(1, [*range(4), LAUNCHER, LEAD]) if encrypted else None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    options = {"workers": 4, "shared": False, "limits": Limits(updates=200), "address": address}
    with SmallServer(algorithms.downpour(0.1), tmp_path, keys=keys, **options) as server:
        if encrypted:
            strange = Raw(server, 3)
            strange.sockets = [knock(server.context, stranger_door(server))]
            strange.send(Kind.JOIN)
            assert strange.hear(300) == []
            strange.sockets[0].close()
        else:
            server.thread(hostile, server, 2000, 5)
        server.work(0, 1, 2)
        trace = server.assert_replays()
    assert trace.n_updates == 200


def stranger_door(server: SmallServer) -> Any:  # noqa: ANN401 # a Door
    """Return the way in of a stranger that knows the server's key, with another key."""
    assert server.keys is not None
    own = make_keys(0, [3]).peers[3]
    return server.peer(3).doors[0]._replace(own=own)
