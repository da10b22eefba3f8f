"""The processes of a live run, and what each of them is told."""

import ctypes
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from distsgd.algorithm import message_columns
from distsgd.data.stream import Stream
from distsgd.live.machine import forking
from distsgd.live.messages.columns import FrameVectors, Layout, SharedVectors
from distsgd.live.messages.link import Peer
from distsgd.live.messages.rings import Rings
from distsgd.live.messages.sockets import Door, Keys, doors, endpoints, gates, make_keys, needs_keys
from distsgd.live.messages.wire import EVALUATOR, LEAD
from distsgd.live.options import LiveRequest
from distsgd.live.peers import replica
from distsgd.live.peers.evaluator import evaluate
from distsgd.live.peers.replica import WorkerCase
from distsgd.live.peers.worker import work
from distsgd.live.server import store
from distsgd.live.server.serve import Post, ServerCase, serve
from distsgd.problem import Vector

_PR_SET_NAME = 15
"""From ``linux/prctl.h``."""


def layout_of(request: LiveRequest) -> Layout:
    """Return the sizes that all peers of a run agree on."""
    algorithm, problem, fleet = request.algorithm, request.problem, request.fleet
    n_reads, n_message = len(algorithm.server.reads), len(message_columns(algorithm))
    return Layout(problem.dimension, fleet.workers, fleet.shards, n_reads, n_message, problem.dtype)


def stream_of(request: LiveRequest) -> Stream:
    """Return the samples of all workers, or raise a `ConfigError` if they cannot be divided."""
    partition, problem = request.config.partition, request.problem
    data = problem.data if partition.is_divided else None
    parts = partition.divide(data, request.fleet.workers, request.seed)
    return Stream(problem.samples, request.config.batch, request.seed, parts=parts, sampler=partition.sampler)


class Assignments:
    """What the processes of a run are told, wherever they are.

    The run begins at `start`, float[d]. The folder is for checkpoints. The sessions of the peers
    change: a process is told those of when it starts. Samples that cannot be divided are a
    `ConfigError`.
    """

    def __init__(self, request: LiveRequest, start: Vector, folder: Path, sessions: Mapping[int, int]) -> None:
        self.request, self.start, self._folder, self._sessions = request, start, folder, sessions
        self.layout, workers = layout_of(request), request.fleet.workers
        self.worker_case = WorkerCase(
            request.algorithm, request.problem, stream_of(request), start, workers, request.layer_factors
        )
        self.keys: Keys | None = None
        self._listening: list[str] = []

    def listen(self, listening: list[str], *, is_secret: bool) -> None:
        """Have the shards listen there from now on, under fresh keys if all is encrypted."""
        self._listening = listening
        self.keys = make_keys(len(listening), self._sessions) if is_secret else None

    def post(self, shard: int, origin: float) -> Post:
        """Return what a shard is told, by whose clock the run began at `origin` [s]."""
        request = self.request
        case = ServerCase(
            request.algorithm,
            self.start,
            self.layout,
            request.fleet,
            request.budget.limits,
            request.config.batch / request.problem.samples,
            self._sessions,
            origin,
            self._folder,
            request.seed,
            request.config.target,
            self.worker_case.layer_factors,
        )
        followers = () if shard else self._doors(LEAD)[1:]
        return Post(case, shard, gates(self._listening, self.keys)[shard], followers)

    def peer(self, number: int, origin: float) -> Peer:
        """Return what any other is told, by whose clock the run began at `origin` [s]."""
        return Peer(number, self._sessions[number], self._doors(number), origin)

    def _doors(self, number: int) -> list[Door]:
        return doors(self._listening, number, self.keys)


class Roles:
    """What each process of a run on this machine does; all of them are forked with this at hand.

    A run begins at `origin` [s], by `time.monotonic`. The folder is private, for sockets. If no
    server can listen at the address, it is a `ConfigError`.
    """

    def __init__(self, assignments: Assignments, folder: Path) -> None:
        self._assignments, self._request = assignments, assignments.request
        fleet, layout = self._request.fleet, assignments.layout
        assignments.listen(endpoints(fleet.address, fleet.shards, folder), is_secret=needs_keys(fleet.address))
        self._vectors = (
            SharedVectors(layout, memoryview(forking.shared(layout.shared_bytes)))
            if fleet.address is None
            else FrameVectors(layout)
        )
        self._rings = Rings(fleet.workers, fleet.shards) if self._vectors.is_shared else None
        # what all processes would compile, or load, is once for all of them
        case = assignments.worker_case
        store.prepare(case.algorithm, layout, case.layer_factors)
        replica.prepare(case)
        case.stream.batch(0, 0)

    def serve(self, shard: int, origin: float, life: int, control: Connection | None) -> None:
        """Be a shard of the server; `control` is the lead's."""
        _call_it(f"server {shard}")
        post = self._assignments.post(shard, origin)
        serve(post, self._vectors, life=life, rings=self._rings, control=control)

    def work(self, worker: int, start: Connection) -> None:
        """Be a worker, which tells `start` when it is ready, and is told the origin."""
        _call_it(f"worker {worker}")
        self._assignments.worker_case.warm_up()
        start.send("ready")
        delay, heartbeat_s = self._request.fleet.delays[worker], self._request.fleet.heartbeat
        peer = self._assignments.peer(worker, start.recv())
        if self._rings is not None:
            shards = range(self._request.fleet.shards)
            peer = peer._replace(rings=[self._rings.worker_end(worker, shard) for shard in shards])
        work(self._assignments.worker_case, self._vectors, peer, delay=delay, heartbeat_s=heartbeat_s)

    def evaluate(self, pipe: Connection, origin: float, is_again: bool) -> None:
        """Be the evaluator."""
        _call_it("evaluator")
        peer = self._assignments.peer(EVALUATOR, origin)
        evaluate(self._request, self._vectors, peer, pipe, is_again=is_again)


def _call_it(name: str) -> None:
    """Give this process a name that tools such as ``ps`` and ``top`` show."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode())
