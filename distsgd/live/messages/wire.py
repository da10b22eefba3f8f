"""Messages between the peers of a live run: a typed header, and raw frames behind it.

1. A message is a header of `HEADER.size` bytes, then a frame per column, or none where columns lie
   in shared memory. Nothing is ever pickled.
2. Every request of a peer's session has a sequence number, one above the last. The reply echoes it.
   A request that comes again is not served again: its reply is sent again.
3. A session is a random number that the launcher gives to a peer and to the servers. A worker that
   was replaced has another one, so that the one that was given up cannot come back.
4. A life counts the restarts of the servers. A worker that has talked to an earlier one is told to
   join again, since what it has read may be undone.
5. Times are seconds since the run began, by a clock that all peers of a machine share.
6. This module knows no socket: bytes in, values out. What it cannot read is a `WireError`.
"""

import math
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from distsgd.errors import WireError
from distsgd.rules.cycle import Due, Pull, Push
from distsgd.status import Status

Frames: TypeAlias = Sequence[bytes | memoryview]
Phase: TypeAlias = Literal["running", "ending", "over"]

MAGIC, PROTOCOL = b"dsgd", 2
HEADER = struct.Struct("<4sHHIIQQQqqdd")
"""Magic number, protocol, and the fields of `Header`."""

LAUNCHER, EVALUATOR, LEAD = 2**32 - 1, 2**32 - 2, 2**32 - 3
"""Numbers of the peers that are no workers; `LEAD` is the first shard, to the others."""
LOSSES = struct.Struct("<ddd")
"""The frame of `Kind.EVALUATED`: training loss, test loss and accuracy; NaN says none."""
WORKER_SESSION = struct.Struct("<IQ")
"""The frame of `Kind.GONE` and `Kind.ADMIT`: a worker, and a session of it."""


class Kind(IntEnum):
    """What a message asks, or answers."""

    JOIN = 1
    """A worker has started, or has dropped its state: may it begin?"""
    PULL = 2
    PUSH = 3
    EXCHANGE = 4
    """A push and the next pull, served back to back."""
    BEAT = 5
    """Still alive; never answered."""
    SNAPSHOT = 6
    """The evaluator asks for the first model with at least `version` updates and `step` gradients
    behind it, or else the last one."""
    STATUS = 7
    """The launcher asks how the run is going."""
    GONE = 8
    """The launcher has seen a worker end, whose session was that in the frame."""
    ADMIT = 9
    """The launcher replaces a worker, whose session is now that in the frame."""
    STOP = 10
    """The launcher ends the run, which is saved as far as it has come; when it has been saved, the
    servers end."""
    DECISIONS = 11
    """The lead tells the other shards what it has decided, in order, in a frame."""
    EVALUATED = 12
    """The evaluator reports the losses of the model at `version`, in a frame of `LOSSES`."""

    WELCOME = 20
    """Begin before step `step`, with the model at `version`; version 0 is the starting point, which
    is not sent."""
    VALUES = 21
    """The columns of a pull at `version`; or the model of a snapshot, which has `step` gradients
    behind it and was made at `sent`."""
    TAKEN = 22
    """A push has been served, or held and its round has closed."""
    REJOIN = 23
    """The servers have restarted: drop your state and join."""
    END = 24
    """The run is over, or goes on without you."""
    STATE = 25
    """How the run is going: a `State` as JSON, to any request of the launcher or an `EVALUATED`."""


REQUESTS: dict[Due, tuple[Kind, ...]] = {
    (): (),
    (Pull,): (Kind.PULL,),
    (Push,): (Kind.PUSH,),
    (Pull, Push): (Kind.PULL, Kind.PUSH),
    (Push, Pull): (Kind.EXCHANGE,),
}
"""What a worker sends for verbs: a push and the pull behind it are one request."""


class Header(NamedTuple):
    """What stands in front of a message's frames."""

    kind: int
    peer: int
    """Number of the worker that asks or is answered; or `LAUNCHER`, `EVALUATOR`."""
    life: int = 0
    session: int = 0
    sequence: int = 0
    push: int = 0
    """Pushes of this session before this one; its parity names the out-box of a push."""
    step: int = 0
    """Gradient steps that the worker has completed; of a snapshot, those that its model has."""
    version: int = 0
    """The server's version that was read, or judged, or that a snapshot shall have at least."""
    sent: float = 0.0
    """When the message was sent [s]."""
    resumed: float = 0.0
    """When the sender went on after the last reply that it waited for [s]."""


class State(msgspec.Struct, frozen=True):
    """How a run is going, as the lead sees it; another shard knows only what it `dropped`."""

    phase: Phase
    """Over means that the last checkpoint is written."""
    status: Status = "done"
    """How the run ended, or would end now."""
    updates: int = 0
    gradients: int = 0
    alive: list[int] = []
    """Workers that have joined and have not been given up."""
    lost: list[int] = []
    """Workers that have been given up and are not replaced; none of them is ever heard again."""
    staleness: float = 0.0
    """Mean of the latest updates [versions]."""
    loss: float | None = None
    """The latest one that was evaluated; None also if it is not finite."""
    evaluated: int | None = None
    """The version that it belongs to."""
    dropped: dict[str, int] = {}
    """Messages that were dropped, by reason."""
    saved: int | None = None
    """The version of the last checkpoint that is known to be complete."""
    unsaved: int = 0
    """Checkpoints that could not be written."""


class Message(NamedTuple):
    """A header and the frames behind it."""

    header: Header
    frames: Frames = ()


def encode(header: Header) -> bytes:
    """Return the bytes of `header`."""
    return HEADER.pack(MAGIC, PROTOCOL, *header)


def decode(frames: Frames) -> Message:
    """Return what `frames` say: a header, and what stands behind it.

    A header that is missing, truncated, of another protocol, of an unknown kind, or that holds an
    impossible number is a `WireError`. Whether the sender may say this, and the frames' sizes, are
    for the receiver to check.
    """
    if not frames or len(frames[0]) != HEADER.size:
        found = f"{len(frames[0])} bytes" if frames else "nothing"
        raise WireError(f"a message must begin with a header of {HEADER.size} bytes, not {found}")
    magic, protocol, *fields = HEADER.unpack(frames[0])
    if magic != MAGIC or protocol != PROTOCOL:
        raise WireError(f"a header must begin with {MAGIC!r} and {PROTOCOL}, not {magic!r} and {protocol}")
    header = Header(*fields)
    if header.kind not in _KINDS:
        raise WireError(f"kind must be one of {sorted(_KINDS)}, not {header.kind}")
    if header.step < 0 or header.version < 0:
        raise WireError(f"step and version must be >= 0, not {header.step} and {header.version}")
    if not (_is_time(header.sent) and _is_time(header.resumed)):
        raise WireError(f"times must be >= 0 s and finite, not {header.sent} and {header.resumed}")
    return Message(header, frames[1:])


def unpack(layout: struct.Struct, frames: Frames) -> tuple[Any, ...]:
    """Return the numbers in the only one of `frames`, or raise a `WireError` if it has others."""
    sizes = [len(frame) for frame in frames]
    if sizes != [layout.size]:
        raise WireError(f"one frame of {layout.size} bytes must stand behind the header, not {sizes}")
    return layout.unpack(frames[0])


_KINDS = frozenset(int(kind) for kind in Kind)


def _is_time(value: float) -> bool:
    return 0.0 <= value < math.inf
