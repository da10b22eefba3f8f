"""Where servers listen, and whom they hear.

1. By default a server listens on a socket file in a private folder, which only its user can reach.
2. On loopback other users of the machine can connect. What keeps them out is the session: a random
   number of 63 bits that stands in every message and is never sent to anybody but its owner.
3. Any other address can be overheard. There each shard and each peer gets a pair of CURVE keys for
   this run alone; messages are encrypted, and a connection under another key is refused.
"""

from typing import NamedTuple

LONGEST_PATH_BYTES = 107
"""Of a socket file, by ``sockaddr_un`` in Linux."""


class KeyPair(NamedTuple):
    """Keys of one peer or of one shard."""

    public: bytes
    secret: bytes


class Keys(NamedTuple):
    """All keys of a run. The launcher hands each process what it needs."""

    shards: tuple[KeyPair, ...]
    peers: dict[int, KeyPair]


class Door(NamedTuple):
    """How a peer reaches one shard."""

    endpoint: str
    server: bytes | None = None
    """The shard's public key; None where nothing is encrypted."""
    own: KeyPair | None = None
    """The peer's."""


class Gate(NamedTuple):
    """Where a shard listens, and whom it lets in."""

    endpoint: str
    own: KeyPair | None = None
    """The shard's keys; None where nothing is encrypted."""
    admitted: frozenset[bytes] = frozenset()
    """The public keys of its peers."""
