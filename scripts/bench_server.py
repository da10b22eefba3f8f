"""Push-and-pull round trips per second of the parameter server, against a Ray actor and memcpy."""

import secrets
import shutil
import statistics
import tempfile
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import zmq
from table import Line

import distsgd as ds
from distsgd.live.machine import forking
from distsgd.live.messages.columns import Layout, SharedVectors
from distsgd.live.messages.link import Ended, Link, Peer
from distsgd.live.messages.rings import Rings
from distsgd.live.messages.sockets import doors, endpoints, gates
from distsgd.live.messages.wire import LAUNCHER, LEAD, Kind, State
from distsgd.live.options import LiveFleet
from distsgd.live.server import checkpoint
from distsgd.live.server.serve import Post, ServerCase, serve
from distsgd.live.server.store import prepare
from distsgd.order.budget import Limits
from distsgd.trace import PUSH

SIZES = {"1 k": 1_000, "100 k": 100_000, "1 M": 1_000_000, "10 M": 10_000_000}
"""Parameters of 4 bytes; ours have 8, so that there are half as many in the same bytes."""
SECONDS, QUICK_SECONDS = 4.0, 0.5
RAY_MEMORY_BYTES = 1_000_000_000
REACH = {"1 k": "15 x Ray, 20,000/s (2 workers)", "1 M": "15 x Ray, 0.5 x memcpy"}


class Job(NamedTuple):
    """One measurement."""

    n_bytes: int
    workers: int
    seconds: float
    folder: Path


def exchange(vectors: SharedVectors, peer: Peer, d: int) -> None:
    """Be a worker that computes nothing: push and pull until the end."""
    gradient = np.full(d, 1e-9)
    with zmq.Context() as context:
        link = Link(peer, context)
        try:
            link.wait(link.ask(Kind.JOIN))
            replies = link.wait(link.ask(Kind.PULL))
            push = 0
            while True:
                vectors.fetch(peer.number, [reply.frames for reply in replies])
                frames = vectors.post(peer.number, push, [gradient])
                asked = link.ask(Kind.EXCHANGE, push=push, step=push + 1, frames=frames)
                replies = link.wait(asked)
                push += 1
        except Ended:
            link.close()


def measure(job: Job, pipe: Connection) -> None:
    """Run a server and its workers in the launcher; send how often they have exchanged."""
    algorithm, d = ds.algorithms.downpour(1e-3), job.n_bytes // 8
    layout = Layout(d, job.workers, shards=1, n_reads=1, n_message=1)
    vectors = SharedVectors(layout, memoryview(forking.shared(layout.shared_bytes)))
    prepare(algorithm, layout)
    peers = (*range(job.workers), LAUNCHER, LEAD)
    sessions = {peer: 1 + secrets.randbelow(2**63 - 1) for peer in peers}
    listening, origin = endpoints(None, 1, job.folder), time.monotonic()
    case = ServerCase(
        algorithm,
        np.zeros(d),
        layout,
        LiveFleet("local", job.workers, checkpoint_every=1e9),
        Limits(seconds=job.seconds),
        1.0,
        sessions,
        origin,
        job.folder,
    )
    rings = Rings(job.workers, shards=1)
    server = forking.fork(partial(serve, rings=rings), Post(case, 0, gates(listening)[0]), vectors)
    for worker in range(job.workers):
        own = [rings.worker_end(worker, 0)]
        peer = Peer(worker, sessions[worker], doors(listening, worker), origin, own)
        forking.fork(exchange, vectors, peer, d)
    launcher = Peer(LAUNCHER, sessions[LAUNCHER], doors(listening, LAUNCHER), origin)
    with zmq.Context() as context:
        link = Link(launcher, context)
        while ask(link, Kind.STATUS).phase != "over":
            time.sleep(0.1)
        link.ask(Kind.STOP)
        forking.wait(pipe, [server], 5.0)
        link.close()
    found = checkpoint.load(job.folder)
    times = found.rows["time"][found.rows["verb"] == PUSH]
    pipe.send((times.size - 1) / (times[-1] - times[0]))


def ask(link: Link, kind: Kind) -> State:
    """Return what the lead says to the launcher."""
    (reply,) = link.wait(link.ask(kind))
    state: State = msgspec.json.decode(reply.frames[0], type=State)
    return state


def ours(n_bytes: int, workers: int, seconds: float) -> float:
    """Return our round trips per second."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(n_bytes, workers, seconds, Path(folder))
        with forking.launcher(measure, job) as pipe:
            rate: float = forking.receive(pipe)
    return rate


def copies(n_bytes: int, workers: int, seconds: float) -> float:  # noqa: ARG001 # as `ours`
    """Return how often a push and a pull of these bytes can be copied in a second, by one core."""
    source, target = np.ones((2, n_bytes), np.uint8), np.ones((2, n_bytes), np.uint8)
    n, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds / 4:
        for one, other in zip(source, target, strict=True):
            np.copyto(other, one)
        n += 1
    return n / (time.perf_counter() - start)


class Parameters:
    """A parameter server as it is usually written for Ray."""

    def __init__(self, size: int) -> None:
        self._x = np.zeros(size, np.float32)

    def push_and_pull(self, gradient: np.ndarray) -> np.ndarray:
        """Apply a gradient, and return the parameters."""
        self._x -= np.float32(1e-3) * gradient
        return self._x


def push_and_pull(
    server: Any,  # noqa: ANN401 # an actor's handle has no type
    size: int,
    seconds: float,
) -> tuple[int, float]:
    """Be a worker that computes nothing; return its round trips, and the time they took."""
    import ray  # noqa: PLC0415 # Ray sends this function to its workers

    gradient = np.full(size, 1e-9, np.float32)
    ray.get(server.push_and_pull.remote(gradient))
    n, start = 0, time.perf_counter()
    while (now := time.perf_counter()) < start + seconds:
        ray.get(server.push_and_pull.remote(gradient))
        n += 1
    return n, now - start


def peer(n_bytes: int, workers: int, seconds: float) -> float:
    """Return the round trips per second of a Ray actor."""
    import ray  # noqa: PLC0415 # it takes seconds to import

    size = n_bytes // 4
    server = ray.remote(num_cpus=0)(Parameters).remote(size)
    task = ray.remote(num_cpus=0)(push_and_pull)
    found = ray.get([task.remote(server, size, seconds) for _ in range(workers)])
    ray.kill(server)
    return sum(n / seconds for n, seconds in found)


def measured(name: str, workers: int, seconds: float) -> Line:
    """Return a line; the three are measured in turn."""
    n_bytes = 4 * SIZES[name]
    found = [
        [rate(n_bytes, workers, seconds) for rate in (ours, peer, copies)]
        for _ in range(3 if seconds == SECONDS else 1)
    ]
    fast, slow, bound = (statistics.median(rates) for rates in zip(*found, strict=True))
    who = f"{workers} worker" + "s" * (workers > 1)
    return Line(
        what=f"push and pull {n_bytes / 1e6:g} MB ({name} float32), {who}",
        measured=f"{fast:,.0f}/s",
        against=f"{slow:,.0f} of Ray, {bound:,.0f} of memcpy",
        ratio=f"{fast / slow:.1f} x Ray, {fast / bound:.2f} x memcpy",
        reach=REACH.get(name, "-"),
    )


def rows(*, quick: bool = False) -> list[Line]:
    """Return the table's lines; `quick` runs are too short to quote."""
    import ray  # noqa: PLC0415 # it takes seconds to import

    folder = tempfile.mkdtemp(prefix="ray-")
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        object_store_memory=RAY_MEMORY_BYTES,
        logging_level="error",
        _temp_dir=folder,
    )
    try:
        if quick:
            return [measured(name, 2, QUICK_SECONDS) for name in ("1 k", "1 M")]
        return [measured(name, workers, SECONDS) for name in SIZES for workers in (1, 2)]
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
