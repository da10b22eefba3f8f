"""Where servers listen, and which peers they hear.

1. By default a server listens on a socket file in a private folder, which only its user can reach.
2. On loopback other users of the machine can connect. What keeps them out is the session: a random
   number of 63 bits that stands in every message of a peer, and that only it and the servers get.
3. Any other address can be overheard. There each shard and each peer gets a pair of CURVE keys for
   this run alone; messages are encrypted, and a connection under another key is refused.
"""

import contextlib
import errno
import socket
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from urllib.parse import urlsplit

import zmq
from zmq.auth.thread import ThreadAuthenticator

from distsgd.errors import ConfigError

LONGEST_PATH_BYTES = 107
"""Of a socket file, by ``sockaddr_un`` in Linux."""
_HIGH_WATER = 1000
"""Messages that wait for a peer, or from it, before its socket is not read."""

Socket = zmq.Socket[bytes]
Context = zmq.Context[Socket]


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
    """Where a shard listens, and which peers it lets in."""

    endpoint: str
    own: KeyPair | None = None
    """The shard's keys; None where nothing is encrypted."""
    admitted: frozenset[bytes] = frozenset()
    """The public keys of its peers."""


def endpoints(address: str | None, shards: int, folder: Path) -> list[str]:
    """Return where each shard listens, or raise a `ConfigError` if one cannot.

    The address is the lead's, such as ``"tcp://127.0.0.1:5555"``; the others take the ports behind
    it. None stands for socket files in `folder`, which no other user may enter.
    """
    if address is None:
        return [_socket_file(folder, shard) for shard in range(shards)]
    host, port = _host_and_port(address)
    for shard in range(shards):
        _check_free(host, port + shard)
    return [f"tcp://{host}:{port + shard}" for shard in range(shards)]


def needs_keys(address: str | None) -> bool:
    """Return whether messages to `address` can be overheard, and are encrypted."""
    return address is not None and not ip_address(_host_and_port(address)[0]).is_loopback


def make_keys(shards: int, peers: Iterable[int]) -> Keys:
    """Return a pair of keys for every shard and every peer of a run."""
    return Keys(
        tuple(KeyPair(*zmq.curve_keypair()) for _ in range(shards)),
        {peer: KeyPair(*zmq.curve_keypair()) for peer in peers},
    )


def gates(listening: list[str], keys: Keys | None = None) -> list[Gate]:
    """Return the gate of each shard."""
    if keys is None:
        return [Gate(endpoint) for endpoint in listening]
    admitted = frozenset(pair.public for pair in keys.peers.values())
    return [Gate(endpoint, own, admitted) for endpoint, own in zip(listening, keys.shards, strict=True)]


def doors(listening: list[str], peer: int, keys: Keys | None = None) -> list[Door]:
    """Return how the peer number `peer` reaches each shard."""
    if keys is None:
        return [Door(endpoint) for endpoint in listening]
    return [
        Door(endpoint, shard.public, keys.peers[peer]) for endpoint, shard in zip(listening, keys.shards, strict=True)
    ]


@contextlib.contextmanager
def listen(context: Context, gate: Gate, largest_bytes: int) -> Iterator[Socket]:
    """Listen at a gate, or raise a `ConfigError` if no socket can.

    A connection that sends more than `largest_bytes` in a frame is closed.
    """
    with contextlib.ExitStack() as stack:
        if gate.own is not None:
            authenticator = ThreadAuthenticator(context)
            authenticator.start()
            stack.callback(authenticator.stop)
            admission = SimpleNamespace(callback=lambda _domain, key: key in gate.admitted)
            authenticator.configure_curve_callback("*", admission)
        router = stack.enter_context(context.socket(zmq.ROUTER))
        router.maxmsgsize = largest_bytes
        router.rcvhwm = router.sndhwm = _HIGH_WATER
        router.linger = 1000
        if gate.own is not None:
            router.curve_server = True
            router.curve_publickey, router.curve_secretkey = gate.own
        try:
            router.bind(gate.endpoint)
        except zmq.ZMQError as error:
            raise _cannot_listen(gate.endpoint, error.errno) from None
        yield router


def knock(context: Context, door: Door) -> Socket:
    """Return a socket that is connected to a door, or will be when a shard listens there."""
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    if door.own is not None:
        dealer.curve_serverkey = door.server
        dealer.curve_publickey, dealer.curve_secretkey = door.own
    dealer.connect(door.endpoint)
    return dealer


def _socket_file(folder: Path, shard: int) -> str:
    if folder.stat().st_mode & 0o077:
        msg = f"the folder of a socket must be private (mode 700), not {folder.stat().st_mode:o}"
        raise ConfigError(f"{msg}: {folder}; others could speak to the server")
    path = str(folder / str(shard))
    size = len(path.encode())
    if size > LONGEST_PATH_BYTES:
        msg = f"the path of a socket must be <= {LONGEST_PATH_BYTES} bytes, not {size}: {path}"
        raise ConfigError(f"{msg}; choose a shorter folder for temporary files (TMPDIR)")
    return f"ipc://{path}"


def _host_and_port(address: str) -> tuple[str, int]:
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
        ip_address(host)
    except ValueError:
        host, port = "", None
    if not host or not port or not address.startswith("tcp://"):
        raise ConfigError(f"address must look like 'tcp://127.0.0.1:5555', not {address!r}")
    return host, port


def _check_free(host: str, port: int) -> None:
    """Raise a `ConfigError` unless a socket can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise _cannot_listen(f"tcp://{host}:{port}", getattr(error, "errno", None)) from None


def _cannot_listen(endpoint: str, number: int | None) -> ConfigError:
    if number == errno.EADDRINUSE:
        why = "it is in use; choose another port, or end what listens there"
    elif number in {errno.EADDRNOTAVAIL, errno.ENODEV}:
        why = "it is not an address of this machine; use one of its own, or 127.0.0.1"
    else:
        why = f"{errno.errorcode.get(number or 0, 'the port is out of range')}; choose another one"
    return ConfigError(f"address {endpoint} cannot be listened at: {why}")
