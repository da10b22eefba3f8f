"""What the lead decides, and all shards carry out in one order.

1. No shard decides anything by itself: a decision has all numbers that an update or a reply needs
   beside the columns, so that every shard computes the same.
2. A decision is numbers only, so that it goes to other shards as it is.
"""

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from distsgd.errors import WireError


class Action(IntEnum):
    """What a shard does."""

    START = 1
    """Welcome a worker at the starting point."""
    JOIN = 2
    """Welcome a worker that begins again, with the model as it is now."""
    PULL = 3
    """Answer a pull with the columns of `version`."""
    HOLD = 4
    """Keep a push for its round."""
    DROP = 5
    """Forget a push that has come too late."""
    CLOSE = 6
    """Apply the mean of what is held; the server is at `version` before."""
    RELEASE = 7
    """Tell a worker that its push has been taken."""
    LEAVE = 8
    """A worker has been given up; what it has pushed must outlast its out-box."""
    ADMIT = 9
    """The session of a worker is now `session`."""
    SNAPSHOT = 10
    """Answer the evaluator with the model as it is now, which has `step` gradients behind it."""
    CHECKPOINT = 11
    """Write the checkpoint number `checkpoint`."""
    END = 12
    """The run is over: no worker is served any more."""
    STOP = 13
    """The process ends."""


class Decision(NamedTuple):
    """One action, and what it needs to know (rule 1)."""

    action: int
    worker: int = 0
    sequence: int = 0
    """Of the request that is answered or taken."""
    push: int = 0
    """Number of a push, which says where its columns lie."""
    step: int = 0
    version: int = 0
    staleness: int = 0
    """Of the round that closes: that of its oldest gradient."""
    factor: float = 1.0
    """The schedule's factor for the round that closes."""
    time: float = 0.0
    """When this was decided; of a snapshot, when its model was made [s]."""
    session: int = 0
    checkpoint: int = 0


DECISION = struct.Struct("<IIQQqqqddQQ")
"""The fields of a `Decision`."""


def encode_decisions(decisions: Iterable[Decision]) -> bytes:
    """Return the frame of a `Kind.DECISIONS`."""
    return b"".join(DECISION.pack(*decision) for decision in decisions)


def decode_decisions(frame: bytes | memoryview) -> list[Decision]:
    """Return what `encode_decisions` wrote, or raise a `WireError` if it cannot have."""
    if len(frame) % DECISION.size:
        raise WireError(f"decisions must be a multiple of {DECISION.size} bytes, not {len(frame)}")
    decisions = [Decision(*fields) for fields in DECISION.iter_unpack(frame)]
    for decision in decisions:  # of an unknown action, shards would do nothing, and then differ
        if decision.action not in _ACTIONS:
            raise WireError(f"action must be one of {sorted(_ACTIONS)}, not {decision.action}")
    return decisions


_ACTIONS = frozenset(int(action) for action in Action)
