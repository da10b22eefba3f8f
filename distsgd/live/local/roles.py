"""The processes of a live run, and what each of them is told."""

import contextlib
import ctypes
import secrets
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distsgd.algorithm import message_columns
from distsgd.data.stream import Stream
from distsgd.live.local.clerk import relay
from distsgd.live.machine import forking as nursery
from distsgd.live.messages.columns import FrameVectors, Layout, SharedVectors
from distsgd.live.messages.link import Peer
from distsgd.live.messages.rings import Bells
from distsgd.live.messages.sockets import doors, endpoints, gates, make_keys, needs_keys
from distsgd.live.messages.wire import EVALUATOR, LAUNCHER, LEAD
from distsgd.live.options import LiveRequest
from distsgd.live.peers.evaluator import evaluate
from distsgd.live.peers.worker import Case, work
from distsgd.live.server.serve import ServerCase, serve
from distsgd.live.server.store import prepare

_PR_SET_NAME = 15
"""From ``linux/prctl.h``."""


def layout_of(case: LiveRequest) -> Layout:
    """Return the sizes that all peers of a run agree on."""
    algorithm = case.algorithm
    n_reads, n_message = len(algorithm.server.reads), len(message_columns(algorithm))
    return Layout(case.problem.dimension, case.fleet.workers, case.fleet.shards, n_reads, n_message)


def stream_of(case: LiveRequest) -> Stream:
    """Return the samples of all workers, or raise a `ConfigError` if they cannot be divided."""
    partition, problem = case.config.partition, case.problem
    data = problem.data if partition.is_divided else None
    parts = partition.divide(data, case.fleet.workers, case.seed)
    return Stream(problem.samples, case.config.batch, case.seed, parts=parts, sampler=partition.sampler)


def server_case(  # noqa: PLR0917 # what a server is told, in the order of `ServerCase`
    case: LiveRequest,
    start: NDArray[np.float64],
    layout: Layout,
    sessions: Mapping[int, int],
    origin: float,
    folder: Path,
) -> ServerCase:
    """Return a run as its servers see it."""
    return ServerCase(
        algorithm=case.algorithm,
        start=start,
        layout=layout,
        batch=case.config.batch,
        samples=case.problem.samples,
        budget=case.budget.limits,
        sessions=sessions,
        origin=origin,
        folder=folder,
        seed=case.seed,
        staleness=case.fleet.staleness,
        target=case.config.target,
        on_loss=case.fleet.on_loss,
        heartbeat_s=case.fleet.heartbeat,
        checkpoint_every_s=case.fleet.checkpoint_every,
    )


class Parties:
    """The processes of a run on this machine: what each of them is, and does.

    Parameters
    ----------
    case : LiveRequest
        What is run.
    folder : Path
        Private, for sockets and checkpoints.

    Raises
    ------
    ConfigError
        If no server can listen at the address, or the samples cannot be divided.
    """

    def __init__(self, case: LiveRequest, folder: Path) -> None:
        self._case, self._folder = case, folder
        self._layout, self._start = layout_of(case), case.problem.start(case.seed)
        self._common = Case(case.algorithm, case.problem, stream_of(case), self._start, case.fleet.workers)
        self._sessions: dict[int, int] = {}
        for number in (*range(case.fleet.workers), LAUNCHER, EVALUATOR, LEAD):
            self.renew(number)
        self._listening = endpoints(case.fleet.address, case.fleet.shards, folder)
        is_secret = needs_keys(case.fleet.address)
        self._keys = make_keys(case.fleet.shards, self._sessions) if is_secret else None
        self._vectors = (
            SharedVectors(self._layout, memoryview(nursery.shared(self._layout.shared_bytes)))
            if case.fleet.address is None
            else FrameVectors(self._layout)
        )
        shares = self._vectors.is_shared
        self._bells = Bells(case.fleet.workers, case.fleet.shards) if shares else None
        self._compile()
        self._origin = time.monotonic()

    def _compile(self) -> None:
        """Compile once what all processes would compile."""
        with contextlib.suppress(Exception):  # a worker will fail in the same way, and be named
            self._case.problem.gradient(self._start, self._common.stream.batch(0, 0))
        prepare(self._case.algorithm, self._layout)

    @property
    def seconds(self) -> float:
        """Time since the run began [s]."""
        return time.monotonic() - self._origin

    def session(self, number: int) -> int:
        """Return the session of a peer."""
        return self._sessions[number]

    def renew(self, number: int) -> int:
        """Give a peer another session, and return it."""
        self._sessions[number] = secrets.randbelow(2**63 - 1) + 1
        return self._sessions[number]

    def serve(self, shard: int, life: int) -> None:
        """Be a shard of the server."""
        _call_it(f"server {shard}")
        case = server_case(self._case, self._start, self._layout, self._sessions, self._origin, self._folder)
        gate = gates(self._listening, self._keys)[shard]
        followers = () if shard else doors(self._listening, LEAD, self._keys)[1:]
        serve(case, shard, self._vectors, gate, followers, life=life, bells=self._bells)

    def work(self, worker: int) -> None:
        """Be a worker."""
        _call_it(f"worker {worker}")
        delay, heartbeat_s = self._case.fleet.delays[worker], self._case.fleet.heartbeat
        peer = self._peer(worker)
        if self._bells is not None:
            shards = range(self._case.fleet.shards)
            peer = peer._replace(bells=[self._bells.bell(worker, shard) for shard in shards])
        work(self._common, self._vectors, peer, delay=delay, heartbeat_s=heartbeat_s)

    def evaluate(self, pipe: Connection, is_again: bool) -> None:
        """Be the evaluator."""
        _call_it("evaluator")
        evaluate(self._case, self._vectors, self._peer(EVALUATOR), pipe, is_again=is_again)

    def relay(self, pipe: Connection) -> None:
        """Be the clerk, which speaks to the lead alone."""
        _call_it("clerk")
        peer = self._peer(LAUNCHER)
        relay(peer._replace(doors=peer.doors[:1]), pipe)

    def _peer(self, number: int) -> Peer:
        own = doors(self._listening, number, self._keys)
        return Peer(number, self._sessions[number], own, self._origin)


def _call_it(name: str) -> None:
    """Give this process a name that tools such as ``ps`` and ``top`` show."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode())
