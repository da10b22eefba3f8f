"""A shard of the parameter server: its socket, whom it answers, and when it ends.

1. The first shard, the lead, decides who is served when (`order`), and tells the others. Each shard
   applies the decisions to its slice (`store`) and answers the worker itself.
2. The run ends with its budget, at the target, when it diverges or when the launcher says so. From
   then on workers are told `END`, and the evaluator gets the last model. When that has been
   evaluated, the last checkpoint is written: it is what the launcher makes the run of.
3. A server that is killed is started again with the next life, from the last complete checkpoint,
   and all its shards with it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.algorithm import Algorithm
from distsgd.laws import Law
from distsgd.live.security import Door, Gate
from distsgd.live.terms import Budget
from distsgd.live.vectors import Layout, Vectors


class ServerCase(NamedTuple):
    """A run as its servers see it; every field can be pickled."""

    algorithm: Algorithm
    start: NDArray[np.float64]
    """The starting point, float64[d]."""
    layout: Layout
    batch: int
    samples: int
    budget: Budget
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

    Raises
    ------
    ConfigError
        If nobody can listen at the address, or the checkpoint is of another format.
    WorkerLost
        If a shard cannot follow the lead, because a worker's message has come to the lead alone;
        all shards must then be started again with the next life.
    """
    raise NotImplementedError
