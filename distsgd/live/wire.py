"""Messages between the peers of a live run: a typed header, and raw frames behind it.

1. A message is a header of `HEADER.size` bytes, then a frame per column, or none where columns lie
   in shared memory. Nothing is ever pickled.
2. Every request of a peer's session has a sequence number, one above the last. The reply echoes it.
   A request that comes again is not served again: its reply is sent again.
3. A session is a random number that the launcher gives to a peer and to the servers. A worker that
   was replaced has another one, so that whoever was given up cannot come back.
4. A life counts the restarts of the servers. A worker that has talked to an earlier one is told to
   join again, since what it has read may be undone.
5. Times are seconds since the run began, by a clock that all peers of a machine share.
6. This module knows no socket: bytes in, values out. What it cannot read is a `WireError`.
"""

import math
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, TypeAlias

from distsgd.errors import WireError

Frames: TypeAlias = Sequence[bytes | memoryview]

MAGIC, PROTOCOL = b"dsgd", 1
HEADER = struct.Struct("<4sHHIIQQQqqdd")
"""Magic number, protocol, and the fields of `Header`."""

LAUNCHER, EVALUATOR = 2**32 - 1, 2**32 - 2
"""Numbers of the peers that are no workers."""


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
    """The evaluator asks for the model at `version`, or the first one after it."""
    STATUS = 7
    """The launcher asks how the run is going."""
    GONE = 8
    """The launcher has seen the worker `step` end."""
    ADMIT = 9
    """The launcher replaces the worker `step`: its session is now `version`."""
    STOP = 10
    """The launcher ends the run, which is saved as far as it has come."""
    ORDER = 11
    """The lead tells the other shards whom to serve next."""

    WELCOME = 20
    """Begin before step `step`, with the model at `version`; with no frames, at the start."""
    VALUES = 21
    """The columns of a pull at `version`, or of a snapshot."""
    TAKEN = 22
    """A push has been served, or held and its round has closed."""
    REJOIN = 23
    """The servers have restarted: drop your state and join."""
    END = 24
    """The run is over, or goes on without you."""
    STATE = 25
    """How the run is going, as JSON."""


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
    """Steps that the worker has completed."""
    version: int = 0
    """Of a reply: the server's version that was read."""
    sent: float = 0.0
    """When the message was sent [s]."""
    resumed: float = 0.0
    """When the sender went on after the last reply that it waited for [s]."""


class Message(NamedTuple):
    """A header and the frames behind it."""

    header: Header
    frames: Frames = ()


def encode(header: Header) -> bytes:
    """Return the bytes of `header`."""
    return HEADER.pack(MAGIC, PROTOCOL, *header)


def decode(frames: Frames) -> Message:
    """Return what `frames` say.

    Parameters
    ----------
    frames : sequence of bytes
        A header and what stands behind it.

    Returns
    -------
    Message
        With a known kind, times that are finite, and counts that are not negative.

    Raises
    ------
    WireError
        If the header is missing, truncated, of another protocol, or holds an impossible number.
        Whether the sender may say this, and the frames' sizes, are for the receiver to check.
    """
    if not frames or len(frames[0]) != HEADER.size:
        found = f"{len(frames[0])} bytes" if frames else "nothing"
        msg = f"a message must begin with a header of {HEADER.size} bytes, not {found}"
        raise WireError(msg)
    magic, protocol, *fields = HEADER.unpack(frames[0])
    if magic != MAGIC or protocol != PROTOCOL:
        msg = f"a header must begin with {MAGIC!r} and {PROTOCOL}, not {magic!r} and {protocol}"
        raise WireError(msg)
    header = Header(*fields)
    if header.kind not in _KINDS:
        msg = f"kind must be one of {sorted(_KINDS)}, not {header.kind}"
        raise WireError(msg)
    if header.step < 0 or header.version < 0:
        msg = f"step and version must be >= 0, not {header.step} and {header.version}"
        raise WireError(msg)
    if not (_is_time(header.sent) and _is_time(header.resumed)):
        msg = f"times must be >= 0 s and finite, not {header.sent} and {header.resumed}"
        raise WireError(msg)
    return Message(header, frames[1:])


_KINDS = frozenset(int(kind) for kind in Kind)


def _is_time(value: float) -> bool:
    return 0.0 <= value < math.inf
