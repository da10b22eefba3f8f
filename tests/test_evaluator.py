import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import zmq

import distsgd as ds
from distsgd.fold.request import RunConfig, RunRequest
from distsgd.live.messages.columns import FrameVectors, Layout
from distsgd.live.messages.link import Peer
from distsgd.live.messages.sockets import Door
from distsgd.live.messages.wire import EVALUATOR, LOSSES, Header, Kind, Message, State, decode, encode
from distsgd.live.options import LiveFleet, LiveRequest
from distsgd.live.peers.evaluator import Points, evaluate
from distsgd.order.budget import Budget

DOWNPOUR = ds.algorithms.downpour(0.1)
PROBLEM = ds.problems.quadratic([1.0, 2.0])
TWO = LiveFleet("local", 2)
START_LOSS = PROBLEM.loss(PROBLEM.start(0))


@pytest.mark.parametrize(
    ("budget", "evaluate_every", "expected"),
    [
        (Budget("updates", 100), None, ("updates", [25, 50, 75, 100])),
        (Budget("updates", 100), 30, ("updates", [30, 60, 90, 120])),
        (Budget("gradients", 10), None, ("gradients", [3, 5, 8, 10])),
        (Budget("epochs", 0.5), None, ("gradients", [14, 27, 41, 54])),
        (Budget("seconds", 1.0), None, ("seconds", [0.25, 0.5, 0.75, 1.0])),
    ],
)
def test_points_are_equally_spaced(
    budget: Budget, evaluate_every: int | None, expected: tuple[str, list[float]]
) -> None:
    """A history has as many points as were asked for, equally spaced in the budget's unit."""
    config = RunConfig(budget, evaluate_every=evaluate_every, evaluations=None if evaluate_every else 4)
    request = RunRequest(DOWNPOUR, SimpleNamespace(samples=3456), TWO, config)
    points, found = Points(request), []
    for _ in range(4):
        found.append(points.next)
        assert points.pass_by(points.next) == 1
    assert (points.unit, found) == expected


def test_points_that_have_passed_are_counted() -> None:
    """Points up to what has been reached are left out, and counted."""
    points = Points(RunRequest(DOWNPOUR, PROBLEM, TWO, RunConfig(Budget("updates", 50))))
    assert points.pass_by(7) == 7
    assert points.next == 8


@contextmanager
def evaluating(request: LiveRequest, *, is_again: bool = False) -> Iterator[tuple[zmq.Socket, Connection]]:
    """Run the evaluator in a thread; give the lead's socket, and the pipe to the supervisor."""
    with tempfile.TemporaryDirectory() as folder, zmq.Context() as context:
        endpoint = f"ipc://{Path(folder, '0')}"
        with context.socket(zmq.ROUTER) as socket:
            socket.rcvtimeo, socket.linger = 20_000, 0
            socket.bind(endpoint)
            here, there = Pipe()
            peer = Peer(EVALUATOR, 5, [Door(endpoint)], 0.0)
            vectors = FrameVectors(Layout(PROBLEM.dimension, 2, 1, 1, 1))
            thread = threading.Thread(
                target=evaluate, args=(request, vectors, peer, there), kwargs={"is_again": is_again}
            )
            thread.start()
            yield socket, here
            answer(socket, kind=Kind.END)
            thread.join()


def answer(socket: zmq.Socket, *frames: bytes, kind: Kind, **fields: int) -> Message:
    """Answer the next request, and return it."""
    address, *parts = socket.recv_multipart()
    message = decode(parts)
    header = Header(kind, EVALUATOR, 0, 5, message.header.sequence)._replace(**fields)
    socket.send_multipart([address, encode(header), *frames])
    return message


def state(updates: int = 0) -> bytes:
    """Return how a run is going."""
    return msgspec.json.encode(State("running", updates=updates))


def case_of(**options: object) -> LiveRequest:
    """Return a run that is evaluated every 10 updates."""
    return RunRequest(DOWNPOUR, PROBLEM, TWO, RunConfig(Budget("updates", 100), evaluate_every=10, **options))


def test_the_starting_point_comes_first() -> None:
    """The first evaluation is that of the starting point, and the next one that of a point."""
    with evaluating(case_of()) as (socket, pipe):
        first = answer(socket, state(), kind=Kind.STATE)
        asked = answer(socket, np.zeros(2).tobytes(), kind=Kind.VALUES, version=12)
        second = answer(socket, state(12), kind=Kind.STATE)
        found = [pipe.recv(), pipe.recv()]
    assert first.header.kind == second.header.kind == Kind.EVALUATED
    assert (asked.header.kind, asked.header.version) == (Kind.SNAPSHOT, 10)
    assert LOSSES.unpack(first.frames[0])[0] == START_LOSS
    assert (second.header.version, LOSSES.unpack(second.frames[0])[0]) == (12, 0.0)
    assert [one.update for one in found] == [0, 12]


def test_points_are_skipped_while_one_is_evaluated() -> None:
    """Whatever point has passed by the time an evaluation is done is skipped, and counted."""
    with evaluating(case_of()) as (socket, pipe):
        answer(socket, state(35), kind=Kind.STATE)
        asked = answer(socket, np.zeros(2).tobytes(), kind=Kind.VALUES, version=40)
        answer(socket, state(40), kind=Kind.STATE)
        found = [pipe.recv(), pipe.recv()]
    assert asked.header.version == 40
    assert [one.n_skipped for one in found] == [0, 3]


def test_a_run_that_goes_on_is_judged_where_it_is() -> None:
    """After a restart the model of the checkpoint comes first, and no point counts as skipped."""
    with evaluating(case_of(), is_again=True) as (socket, pipe):
        first = answer(socket, np.ones(2).tobytes(), kind=Kind.VALUES, version=50)
        answer(socket, state(50), kind=Kind.STATE)
        second = answer(socket, np.ones(2).tobytes(), kind=Kind.VALUES, version=60)
        answer(socket, state(60), kind=Kind.STATE)
        found = [pipe.recv(), pipe.recv()]
    assert (first.header.kind, first.header.version) == (Kind.SNAPSHOT, 0)
    assert (second.header.kind, second.header.version) == (Kind.SNAPSHOT, 60)
    assert [(one.update, one.n_skipped) for one in found] == [(50, 0), (60, 0)]


@pytest.mark.parametrize(
    ("x", "options", "is_last"),
    [
        ([0.0, 0.0], {"target": 1e-9}, True),
        ([0.0, 0.0], {}, False),
        ([np.nan, 0.0], {}, True),
        ([1e200, 0.0], {}, True),
    ],
)
def test_the_model_that_ends_a_run_is_kept(x: list[float], options: dict[str, float], is_last: bool) -> None:
    """A model that meets the target, or is not finite, goes to the launcher as it is."""
    model = np.array(x).tobytes()
    with evaluating(case_of(**options)) as (socket, pipe):
        answer(socket, state(), kind=Kind.STATE)
        answer(socket, model, kind=Kind.VALUES, version=10)
        answer(socket, state(10), kind=Kind.STATE)
        assert pipe.recv().last is None
        assert pipe.recv().last == (model if is_last else None)
