"""What each process of a run on Ray does: the loops of a run on one machine, in an actor each.

1. An actor is asked to meet the driver first, which loads the case, and then to do its part. That
   call lasts as long as the run: when it ends, or its process, Ray tells the driver. What an actor
   raises comes back as a value, a `Failure`.
2. The case lies in the object store of each node. What an actor gets of it are views of that
   memory, which no process may write, so that the data exist once per node.
3. Nodes share no clock. The driver asks every actor for its own, and says when the run began by it.
"""

import os
import queue
import socket
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped] # it ships no types

from distsgd.live.messages.columns import FrameVectors, Layout
from distsgd.live.messages.link import Peer
from distsgd.live.options import LiveRequest
from distsgd.live.peers.evaluator import Judged, evaluate
from distsgd.live.peers.replica import WorkerCase, prepare
from distsgd.live.peers.worker import work
from distsgd.live.ray.failures import reported
from distsgd.live.ray.metrics import Meters, RowMeter
from distsgd.live.server.serve import Post, serve

_HEARD_S = 1.0
"""How long a question for what the evaluator has found waits for it."""


class Common(NamedTuple):
    """What all actors of a run have in common; it is sent to each node once."""

    run: str
    """The run's name."""
    request: LiveRequest
    case: WorkerCase
    layout: Layout
    sizes: tuple[float, float]
    """Of a pull's reply and of a push [bytes]."""


class Met(NamedTuple):
    """Where an actor runs, as it tells the driver."""

    machine: str
    """Names the boot of its machine, all of whose processes share a clock."""
    node: str
    process: int


class Actor:
    """What every actor can do."""

    def __init__(self, sent: list[Any]) -> None:
        # where the `Common` lies: in a list it stays an ``ObjectRef``
        self._sent = sent

    @reported
    def meet(self) -> Met:
        """Load the case, compile what will be called, and say where this runs."""
        ray = import_module("ray")
        self._common: Common = ray.get(self._sent[0])
        case = self._common.case
        # After the case, which imports the libraries: the sums of each depend on its threads.
        threadpool_limits(1)
        case.warm_up()
        prepare(case)
        return Met(boot(), ray.get_runtime_context().get_node_id(), os.getpid())

    def now(self) -> float:
        """Return the actor's monotonic clock [s]."""
        return time.monotonic()


def boot() -> str:
    """Return what names this machine since it was started."""
    return Path("/proc/sys/kernel/random/boot_id").read_text()


class Server(Actor):
    """A shard of the parameter server; number 0 is the lead."""

    @reported
    def open(self, is_one_machine: bool) -> str:
        """Reserve a port, and return the endpoint to listen at: on loopback, or the node's address.

        The port stays bound, but no socket listens: under Linux another socket of this user may
        then bind it too, and the kernel does not give it to a process that asks for any port.
        """
        util = import_module("ray").util
        host = "127.0.0.1" if is_one_machine else util.get_node_ip_address()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._reserved = socket.socket(family, socket.SOCK_STREAM)
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind((host, 0))
        port = self._reserved.getsockname()[1]
        return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"

    @reported
    def serve(self, post: Post, life: int) -> None:
        """Be a shard until the launcher has ended the run."""
        vectors, watch = FrameVectors(self._common.layout), None
        if post.shard == 0:
            watch = RowMeter(Meters(self._common.run, "server-0"), self._common.sizes)
        serve(post, vectors, life=life, watch=watch)


class Worker(Actor):
    """A worker. It is called from two threads: one works, the other may hear of other servers."""

    @reported
    def work(self, peer: Peer) -> None:
        """Be a worker until the run is over, wherever its servers are."""
        self._peer = peer
        while self._works(self._peer):
            pass

    def move(self, peer: Peer) -> None:
        """Leave the servers for those of another life."""
        self._peer = peer

    def _works(self, peer: Peer) -> bool:
        """Work for the servers that `peer` reaches; return whether there are others by now."""
        common, request = self._common, self._common.request
        work(
            common.case,
            FrameVectors(common.layout),
            peer._replace(is_over=lambda: self._peer is not peer),
            delay=request.fleet.delays[peer.number],
            heartbeat_s=request.fleet.heartbeat,
        )
        return self._peer is not peer


class Evaluator(Actor):
    """The evaluator. It is called from two threads: one judges, the other tells the driver."""

    def __init__(self, sent: list[Any]) -> None:
        super().__init__(sent)
        self._mailbox = Mailbox()

    @reported
    def evaluate(self, peer: Peer, *, is_again: bool) -> None:
        """Judge models until the run is over."""
        request, vectors = self._common.request, FrameVectors(self._common.layout)
        self._mailbox.meters = Meters(self._common.run, "evaluator")
        evaluate(request, vectors, peer, self._mailbox, is_again=is_again)  # type: ignore[arg-type] # it has the two methods of a pipe that are called

    def judged(self, wait_s: float = _HEARD_S) -> Judged | None:
        """Return what has been found next, None if nothing has for a while."""
        return self._mailbox.taken(wait_s)

    def wake(self) -> None:
        """Interrupt a rest until the next point."""
        self._mailbox.woken.set()


class Mailbox:
    """What the evaluator takes for its pipe to the supervisor.

    The evaluator goes on when the driver has what was found: its next question says so. Thus the
    driver knows whatever the servers know.
    """

    def __init__(self) -> None:
        self.woken = threading.Event()
        self.meters: Meters | None = None
        self._found: queue.SimpleQueue[Judged] = queue.SimpleQueue()
        self._received = threading.Semaphore(0)
        self._is_sent = False

    def send(self, judged: Judged) -> None:
        """Hand over what has been found."""
        if self.meters is not None:
            self.meters.tell_loss(judged.evaluation.loss)
        self._found.put(judged)
        self._received.acquire()

    def poll(self, timeout: float) -> bool:
        """Rest, and return whether the driver has woken the evaluator."""
        return self.woken.wait(timeout)

    def taken(self, wait_s: float) -> Judged | None:
        """Return what is handed over next; the one before has been received."""
        if self._is_sent:
            self._received.release()
        self._is_sent = False
        try:
            judged = self._found.get(timeout=wait_s)
        except queue.Empty:
            return None
        self._is_sent = True
        return judged
