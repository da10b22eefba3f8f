"""A shard of the parameter server: its socket, the peers that it answers, and when it ends.

1. The first shard, the lead, decides which worker is served when (`service`), and tells the others.
   Each shard applies the decisions to its slice (`store`) and answers the worker itself.
2. The run ends with its budget, at the target, when it diverges or when the launcher says so. From
   then on workers are told `END`, and the evaluator gets the last model. When that has been
   evaluated, the last checkpoint is written: it is what the launcher makes the run of.
3. A server that is killed is started again with the next life, from the last complete checkpoint,
   and all its shards with it.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zmq

from distsgd.algorithm import Algorithm
from distsgd.live.messages.columns import Layout, Vectors
from distsgd.live.messages.rings import Line, Rings
from distsgd.live.messages.sockets import Context, Door, Gate, Socket, knock, listen
from distsgd.live.options import LiveFleet
from distsgd.live.server import checkpoint
from distsgd.live.server.checkpoint import Checkpoint
from distsgd.live.server.config import ServiceConfig
from distsgd.live.server.decisions import DECISION
from distsgd.live.server.follower import Follower
from distsgd.live.server.lead import Lead
from distsgd.live.server.records import Rows
from distsgd.live.server.service import Service
from distsgd.live.server.sessions import Session
from distsgd.live.server.shard import Shard
from distsgd.live.server.store import Store
from distsgd.order.budget import Limits
from distsgd.problem import Vector
from distsgd.sparse import Floats

_TICK_S = 0.02
"""Time after which a shard looks at the clock again [s]."""
_OTHERS_BYTES = 1 << 16
"""Room for a frame that is no column; there are a few decisions for each worker."""


class ServerCase(NamedTuple):
    """A run as its servers see it; every field can be pickled."""

    algorithm: Algorithm
    start: Vector
    """The starting point, float[d]."""
    layout: Layout
    fleet: LiveFleet
    limits: Limits
    epochs_per_step: float
    """Passes over the samples that a step is."""
    sessions: Mapping[int, int]
    """Session of every worker, `LAUNCHER`, `LEAD`, and `EVALUATOR` if there is one: random numbers
    > 0 and < 2**63."""
    origin: float
    """When the run began, by `time.monotonic` [s]."""
    folder: Path
    """Where checkpoints are written; it need not exist."""
    seed: int = 0
    target: float | None = None
    """Training loss at which the run ends."""
    layer_factors: Floats | None = None
    """Factor of each coordinate's layer on the learning rate, float64[d], None if all are 1."""


class Post(NamedTuple):
    """What a shard serves, and where; number 0 is the lead, which alone has followers."""

    case: ServerCase
    shard: int
    gate: Gate
    followers: Sequence[Door] = ()


def serve(
    post: Post,
    vectors: Vectors,
    *,
    life: int = 0,
    rings: Rings | None = None,
    control: Connection | None = None,
    watch: Callable[[Rows], object] | None = None,
) -> None:
    """Be a shard of the server until the run is over and the launcher has said `STOP`.

    It runs in a process of its own, which has no socket yet. `STOP` ends a run that still goes on;
    once its state says "over", a second `STOP` ends this function. The launcher talks to the lead
    alone, which tells the other shards, and which alone has `control` and `watch`.

    Above `life` 0 the run goes on from its last complete checkpoint, or begins again if there is
    none; the sessions of the case are those of now. Workers that share memory with the shard reach
    it by its `rings`, others through the gate. `control` brings an `Instruction` of a supervisor on
    this machine now and then, and takes an `Answer` to each (`distsgd.live.server.control`);
    elsewhere the launcher sends messages. `watch` is shown the trace's rows at every look at the
    clock.

    A `ConfigError` says that no server can listen at the address, or that the checkpoint is of
    another format or type; a `WorkerLost`, that a shard cannot follow the lead, because a worker's
    message has come to the lead alone: all shards must then be started again with the next life.
    """
    case = post.case
    case.folder.mkdir(parents=True, exist_ok=True)
    # a run that diverges overflows, which is a result and no warning
    with (
        zmq.Context() as context,
        listen(context, post.gate, _largest_bytes(case, vectors)) as router,
        contextlib.ExitStack() as stack,
        np.errstate(over="ignore", invalid="ignore", divide="ignore"),
    ):
        last = checkpoint.load(case.folder) if life > 0 else None  # rule 3
        line = router if rings is None else rings.shard_end(post.shard, router)
        config = ServiceConfig.of(case.algorithm, case.fleet, case.limits, case.epochs_per_step, case.seed)
        common = _shard(post, vectors, line, n_past=config.staleness.longest, life=life, last=last)
        if post.shard > 0:
            _listen(Follower(common, case.fleet.heartbeat), common, line, case.origin)
            return
        sockets = [stack.enter_context(_to_follower(context, door)) for door in post.followers]
        service = Service(config) if last is None else Service(config, last.description.memory, last.rows)
        lead = Lead(common, service, sockets, case.fleet, target=case.target, last=last, control=control)
        _listen(lead, common, line, case.origin, watch and partial(watch, service.rows))


def _to_follower(context: Context, door: Door) -> Socket:
    socket = knock(context, door)
    socket.sndhwm, socket.linger = 0, 1000  # the lead waits for no follower
    return socket


def _largest_bytes(case: ServerCase, vectors: Vectors) -> int:
    """Return the size of the largest frame that a shard has to take."""
    layout = case.layout
    column_bytes = 0 if vectors.is_shared else layout.dtype.itemsize * -(-layout.dimension // layout.shards)
    return _OTHERS_BYTES + 4 * DECISION.size * layout.workers + column_bytes


def _shard(post: Post, vectors: Vectors, line: Line, *, n_past: int, life: int, last: Checkpoint | None) -> Shard:
    case, shard = post.case, post.shard
    known: dict[str, Any] = {}
    if last is not None:
        columns = checkpoint.load_columns(case.folder, last.name, shard, case.layout.dtype)
        known = {"columns": columns, "version": last.description.memory.version}
    own = case.layout.slice(shard)
    factors = None if case.layer_factors is None else case.layer_factors[own]
    store = Store(case.algorithm, case.start[own], case.layout.workers, n_past=n_past, layer_factors=factors, **known)
    sessions = {peer: Session(peer, number) for peer, number in case.sessions.items()}
    return Shard(shard, store, vectors, line, sessions=sessions, folder=case.folder, life=life)


def _listen(
    party: Lead | Follower, shard: Shard, line: Line, origin: float, look: Callable[[], object] | None = None
) -> None:
    """Handle what comes, and look at the clock now and then."""
    line.rcvtimeo = int(1e3 * _TICK_S)
    tick_at = 0.0
    while not shard.is_stopped:
        try:
            parts = line.recv_multipart()
        except zmq.Again:
            parts = []
        now = time.monotonic() - origin
        if parts:
            party.handle(parts, now)
        if now >= tick_at:
            party.tick(now)
            if look is not None:
                look()
            tick_at = now + _TICK_S
