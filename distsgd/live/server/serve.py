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
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import zmq
from numpy.typing import NDArray

from distsgd.algorithm import Algorithm
from distsgd.live.messages.columns import Layout, Vectors
from distsgd.live.messages.rings import Bells, Line
from distsgd.live.messages.sockets import Door, Gate, knock, listen
from distsgd.live.server import checkpoint
from distsgd.live.server.checkpoint import Checkpoint
from distsgd.live.server.decisions import DECISION
from distsgd.live.server.follower import Follower
from distsgd.live.server.lags import Lags
from distsgd.live.server.lead import Lead
from distsgd.live.server.service import Order
from distsgd.live.server.sessions import Peer
from distsgd.live.server.shard import Shard
from distsgd.live.server.standing import Rows
from distsgd.live.server.store import Store
from distsgd.live.server.terms import Terms
from distsgd.order.budget import Limits
from distsgd.order.laws import Law

__all__ = ["ServerCase", "serve"]

_TICK_S = 0.02
"""Time after which a shard looks at the clock again [s]."""
_OTHERS_BYTES = 1 << 16
"""Room for a frame that is no column; an order has a few decisions for each worker."""


class ServerCase(NamedTuple):
    """A run as its servers see it; every field can be pickled."""

    algorithm: Algorithm
    start: NDArray[np.float64]
    """The starting point, float64[d]."""
    layout: Layout
    batch: int
    samples: int
    budget: Limits
    sessions: Mapping[int, int]
    """Session of every worker, `LAUNCHER`, `LEAD`, and `EVALUATOR` if there is one: random numbers
    > 0 and < 2**63."""
    origin: float
    """When the run began, by `time.monotonic` [s]."""
    folder: Path
    """Where checkpoints are written; it need not exist."""
    seed: int = 0
    staleness: Law | int | None = None
    """How many versions ago pulls read [versions]."""
    target: float | None = None
    """Training loss at which the run ends."""
    on_loss: Literal["replace", "shrink"] = "replace"
    heartbeat_s: float = 1.0
    checkpoint_every_s: float = 5.0


def serve(
    case: ServerCase,
    shard: int,
    vectors: Vectors,
    gate: Gate,
    followers: Sequence[Door] = (),
    *,
    life: int = 0,
    bells: Bells | None = None,
    watch: Callable[[Rows], object] | None = None,
) -> None:
    """Be a shard of the server until the run is over and the launcher has said `STOP`.

    It runs in a process of its own, which has no socket yet. `STOP` ends a run that still goes on;
    once its state says "over", a second `STOP` ends this function. The launcher talks to the lead
    alone, which tells the other shards.

    Parameters
    ----------
    case : ServerCase
        The run.
    shard : int
        Which of ``case.layout.shards`` to be; 0 is the lead.
    vectors : SharedVectors or FrameVectors
        Where columns lie.
    gate : Gate
        Where to listen.
    followers : sequence of Door, optional
        Of the lead alone: how it reaches each of the other shards.
    life : int, default 0
        How often the servers have been started before. Above 0 the run goes on from its last
        complete checkpoint, or begins again if there is none; `case.sessions` are those of now.
    bells : Bells, optional
        How workers reach the shard if they share memory with it; otherwise through the gate.
    watch : callable, optional
        Of the lead alone: shown the rows of the trace at every look at the clock.

    Raises
    ------
    ConfigError
        If no server can listen at the address, or the checkpoint is of another format.
    WorkerLost
        If a shard cannot follow the lead, because a worker's message has come to the lead alone;
        all shards must then be started again with the next life.
    """
    largest_bytes = _OTHERS_BYTES + 4 * DECISION.size * case.layout.workers
    if not vectors.is_shared:
        largest_bytes += 8 * -(-case.layout.dimension // case.layout.shards)
    case.folder.mkdir(parents=True, exist_ok=True)
    # a run that diverges overflows, which is a result and no warning
    with (
        zmq.Context() as context,
        listen(context, gate, largest_bytes) as router,
        contextlib.ExitStack() as stack,
        np.errstate(over="ignore", invalid="ignore", divide="ignore"),
    ):
        last = checkpoint.load(case.folder) if life > 0 else None
        line = router if bells is None else bells.desk(shard, router)
        common = _shard(case, shard, vectors, line, life=life, last=last)
        if shard > 0:
            _listen(Follower(common, case.heartbeat_s), common, line, case.origin)
            return
        sockets = [stack.enter_context(knock(context, door)) for door in followers]
        for one in sockets:
            one.sndhwm, one.linger = 0, 1000
        order = _order(case, last)
        lead = Lead(
            common,
            order,
            sockets,
            heartbeat_s=case.heartbeat_s,
            checkpoint_every_s=case.checkpoint_every_s,
            target=case.target,
            last=last,
        )
        look = None if watch is None else partial(watch, order.rows)
        _listen(lead, common, line, case.origin, look)


def _shard(case: ServerCase, shard: int, vectors: Vectors, line: Line, *, life: int, last: Checkpoint | None) -> Shard:
    own, columns, version = case.layout.slice(shard), None, 0
    if last is not None:
        columns = checkpoint.load_columns(case.folder, last.name, shard)
        version = last.description.memory.version
    store = Store(
        case.algorithm,
        case.start[own],
        case.layout.workers,
        n_past=_lags(case).longest,
        columns=columns,
        version=version,
    )
    peers = {number: Peer(number, session) for number, session in case.sessions.items()}
    return Shard(shard, store, vectors, line, peers=peers, folder=case.folder, life=life)


def _order(case: ServerCase, last: Checkpoint | None) -> Order:
    terms = Terms.of(
        case.algorithm,
        case.layout.workers,
        case.budget,
        case.batch / case.samples,
        lags=_lags(case),
        shrinks=case.on_loss == "shrink",
    )
    if last is None:
        return Order(terms)
    return Order(terms, last.description.memory, last.rows)


def _lags(case: ServerCase) -> Lags:
    return Lags(case.staleness, case.seed, case.layout.workers)


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
