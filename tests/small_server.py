"""A small live run in one process: servers and workers in threads, and a launcher in the test."""

import mmap
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zmq

import distsgd as ds
from distsgd.algorithm import Algorithm, message_columns
from distsgd.data.stream import Stream
from distsgd.live.messages.columns import FrameVectors, Layout, SharedVectors
from distsgd.live.messages.link import Link, Peer
from distsgd.live.messages.sockets import Keys, doors, endpoints, gates
from distsgd.live.messages.wire import EVALUATOR, LAUNCHER, LEAD, WORKER_SESSION, Kind, State
from distsgd.live.options import LiveFleet
from distsgd.live.peers.replica import WorkerCase
from distsgd.live.peers.worker import work
from distsgd.live.server import checkpoint
from distsgd.live.server.serve import Post, ServerCase, serve
from distsgd.order.budget import Limits
from distsgd.trace import Trace

PROBLEM = ds.problems.quadratic([1.0, 2.0, 3.0, 0.5, 1.5], noise=0.1)
BATCH, SEED = 4, 0
PATIENCE_S = 60.0


class SmallServer:
    """Servers in threads, at a folder's sockets; what they are asked for comes from the test."""

    def __init__(
        self,
        algorithm: Algorithm,
        folder: Path,
        *,
        workers: int = 3,
        shards: int = 1,
        shared: bool = True,
        keys: Keys | None = None,
        address: str | None = None,
        evaluates: bool = False,
        limits: Limits = Limits(updates=40),  # noqa: B008 # immutable
        target: float | None = None,
        **options: Any,  # noqa: ANN401 # those of a LiveFleet
    ) -> None:
        self.algorithm, self.folder, self.workers, self.shards = algorithm, folder, workers, shards
        self.layout = Layout(
            PROBLEM.dimension, workers, shards, len(algorithm.server.reads), len(message_columns(algorithm))
        )
        block = memoryview(mmap.mmap(-1, self.layout.shared_bytes))
        self.vectors = SharedVectors(self.layout, block) if shared else FrameVectors(self.layout)
        self.listening, self.keys = endpoints(address, shards, folder), keys
        peers = [*range(workers), LAUNCHER, LEAD] + [EVALUATOR] * evaluates
        self.sessions = {peer: 1000 + peer for peer in peers}
        self.start, self.origin = PROBLEM.start(SEED), time.monotonic()
        self.limits, self.target = limits, target
        self.fleet = LiveFleet("local", workers, **{"heartbeat": 5.0} | options)
        self.threads: list[threading.Thread] = []
        self.life, self.is_closing = 0, False
        self.stack = ExitStack()

    def __enter__(self) -> "SmallServer":
        """Start the servers, and be their launcher."""
        self.serve()
        self.context = self.stack.enter_context(zmq.Context())
        self.launcher = self.stack.enter_context(LinkOf(self, LAUNCHER))
        return self

    def __exit__(self, *error: object) -> None:
        """End the run, then the others, then the servers."""
        self.launcher.ask(Kind.STOP)
        self.is_closing = True
        servers = [thread for thread in self.threads if thread.name == "serve"]
        for thread in self.threads:
            if thread not in servers:
                thread.join(PATIENCE_S)
        for _ in range(10):
            if any(thread.is_alive() for thread in servers):
                self.launcher.ask(Kind.STOP)
            for thread in servers:
                thread.join(1.0)
        self.stack.close()
        assert not any(thread.is_alive() for thread in self.threads)

    def serve(self) -> None:
        """Start a thread for each shard."""
        case = ServerCase(
            self.algorithm,
            self.start,
            self.layout,
            self.fleet,
            self.limits,
            BATCH / PROBLEM.samples,
            dict(self.sessions),
            self.origin,
            self.folder / "kept",
            target=self.target,
        )
        followers = doors(self.listening, LEAD, self.keys)[1:]
        for shard, gate in enumerate(gates(self.listening, self.keys)):
            post = Post(case, shard, gate, () if shard else followers)
            self.thread(serve, post, self.vectors, life=self.life)

    def thread(self, do: Callable[..., None], *arguments: object, **options: object) -> None:
        """Do something in a thread that ends with the run."""
        thread = threading.Thread(target=do, args=arguments, kwargs=options, daemon=True, name=do.__name__)
        thread.start()
        self.threads.append(thread)

    def peer(self, number: int) -> Peer:
        """Return a peer that may speak to the servers."""
        return Peer(
            number,
            self.sessions[number],
            doors(self.listening, number, self.keys),
            self.origin,
            is_over=lambda: self.is_closing,
        )

    def work(self, *workers: int) -> None:
        """Start honest workers."""
        case = WorkerCase(self.algorithm, PROBLEM, Stream(PROBLEM.samples, BATCH, SEED), self.start, self.workers)
        for worker in workers or range(self.workers):
            self.thread(work, case, self.vectors, self.peer(worker), heartbeat_s=0.1)

    def ask(self, kind: Kind = Kind.STATUS, **fields: int) -> State:
        """Ask the lead, and return what it says."""
        return answer(self.launcher, self.launcher.ask(kind, **fields))

    def tell(self, kind: Kind, worker: int, session: int) -> State:
        """Tell the lead of a worker's session, and return what it says."""
        frames = [(WORKER_SESSION.pack(worker, session),)]
        return answer(self.launcher, self.launcher.ask(kind, frames=frames))

    def until(self, happened: Callable[[State], bool]) -> State:
        """Ask until something has happened."""
        end = time.monotonic() + PATIENCE_S
        while not happened(state := self.ask()):
            assert time.monotonic() < end, state
            time.sleep(0.01)
        return state

    def finish(self) -> tuple[Trace, np.ndarray, State]:
        """Wait for the end; return the order, the model, and the last state."""
        state = self.until(lambda state: state.phase == "over")
        last = checkpoint.load(self.folder / "kept")
        assert last is not None
        assert last.description.is_last
        return (Trace(last.rows, self.workers), checkpoint.load_model(self.folder / "kept", last), state)

    def assert_replays(self) -> Trace:
        """Wait for the end; the model must have the bits of the fold of the order."""
        trace, x, _ = self.finish()
        trace.verify()
        replayed = ds.replay(trace, self.algorithm, PROBLEM, batch=BATCH, seed=SEED)
        assert replayed.x.tobytes() == x.tobytes()
        return trace


class LinkOf:
    """A link that closes with its block; the launcher speaks to the lead alone."""

    def __init__(self, server: SmallServer, number: int) -> None:
        peer = server.peer(number)
        only_lead = peer._replace(doors=peer.doors[:1])
        self.link = Link(only_lead if number == LAUNCHER else peer, server.context)

    def __enter__(self) -> Link:
        """Return the link."""
        return self.link

    def __exit__(self, *error: object) -> None:
        """Close its sockets."""
        self.link.close()


def answer(link: Link, asked: int) -> State:
    """Return the state that the lead replies with."""
    state: State = msgspec.json.decode(link.wait(asked)[0].frames[0], type=State)
    return state
