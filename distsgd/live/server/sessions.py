"""Sessions of a shard: sequence numbers, and what has been answered."""

import logging
from collections import Counter
from dataclasses import dataclass, field

from distsgd.live.messages.columns import Columns
from distsgd.live.messages.wire import Frames

log = logging.getLogger("distsgd.live.server.serve")

_REPLIES = 4
"""Replies that are kept: a worker waits for at most two pushes and one more request."""


@dataclass(slots=True)
class Session:
    """What a shard knows of a peer's session; a new process of the peer has another one."""

    peer: int
    number: int
    """Random: what the peer shows to be admitted."""
    identity: bytes = b""
    """Where its last request came from, for the socket."""
    accepted: int = 0
    """Its last sequence number that has been served, or waits to be."""
    replies: dict[int, Frames] = field(default_factory=dict)
    """By sequence number, to be sent again when a request comes again."""
    pushes: dict[int, Columns] = field(default_factory=dict)
    """What has come in frames and has not been taken, by sequence number."""
    former: set[int] = field(default_factory=set)
    """Numbers that it had before; a process that still shows one has been given up."""

    def renew(self, number: int) -> None:
        """Begin another session: nothing of the one before counts."""
        self.former.add(self.number)
        self.number, self.identity, self.accepted = number, b"", 0
        self.replies.clear()
        self.pushes.clear()

    def keep(self, sequence: int, reply: Frames) -> None:
        """Keep a reply, and forget old ones."""
        self.replies[sequence] = reply
        if len(self.replies) > _REPLIES:  # sequence numbers grow, so the first is the oldest
            del self.replies[next(iter(self.replies))]


class Drops:
    """Counts messages that are dropped, by reason, and tells the log of every doubling."""

    def __init__(self, shard: int) -> None:
        self._shard = shard
        self.counts: Counter[str] = Counter()

    def add(self, reason: str, why: object = "") -> None:
        """Count one more."""
        self.counts[reason] += 1
        n = self.counts[reason]
        if n & (n - 1) == 0:
            log.warning("shard %d dropped a message: %s, %d so far; %s", self._shard, reason, n, why)
