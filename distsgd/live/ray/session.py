"""A connection to Ray: a cluster that runs already, or a Ray of this machine while it is needed.

1. A cluster is joined where ``RAY_ADDRESS`` or the caller names one, and left as it was found.
   Otherwise a Ray is started here, and nothing of it remains: no process, no file.
2. Whatever keeps Ray from being reached is one sentence within seconds: its own attempts last two
   minutes.
3. A Ray of this machine listens on the network, so it wants a token, which is in no file.
"""

import contextlib
import importlib
import logging
import os
import re
import secrets
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from distsgd.errors import ConfigError

ADDRESS, LOCAL, AUTO = "RAY_ADDRESS", "local", "auto"
"""Variable that names a cluster; the addresses of a Ray of our own, and of one on this machine."""
PROBE_S = 5.0
"""How long a cluster may take to answer [s]."""
STORE_BYTES = 256 * 2**20
"""Memory for the objects of a Ray of this machine [bytes]."""
LONGEST_FOLDER = 40
"""Ray puts sockets below its folder, and the path of a socket has at most 107 bytes."""


class Session(NamedTuple):
    """The package ``ray``, connected."""

    ray: ModuleType

    @property
    def n_cpus(self) -> int:
        """How many CPUs the cluster has now."""
        return int(self.ray.cluster_resources().get("CPU", 0))


@contextlib.contextmanager
def connected(address: str | None = None, *, processes: int | None = None) -> Iterator[Session]:
    """Give a connection to Ray that ends with the block, or raise a `ConfigError`.

    The address is ``HOST:PORT`` of a cluster, ``auto`` for the one on this machine, or ``local``
    for a Ray of our own; by default what ``RAY_ADDRESS`` says, else ``local``. A Ray of our own has
    `processes` CPUs, by default those of the machine. A connection that this process has already
    is used and left open.
    """
    ray = package("ray")
    asked = address or os.environ.get(ADDRESS) or LOCAL
    if ray.is_initialized():
        yield Session(ray)
        return
    with contextlib.ExitStack() as stack:
        if asked == LOCAL:
            folder = stack.enter_context(_folder())
            stack.callback(ray.shutdown)
            _start_own(processes, folder)
        else:
            _join(asked)
            stack.callback(ray.shutdown)
        yield Session(ray)


def package(name: str) -> ModuleType:
    """Return the package of Ray called `name`, or raise a `ConfigError` that says what to install.

    It is imported here and nowhere else: that takes a third of a second.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise ConfigError(
            "Ray needs the package ray, which is not installed; install it with"
            " pip install 'ray[default]', or work without it: on this machine"
        ) from None


def _start_own(processes: int | None, folder: str) -> None:
    ensure_token()
    _start(
        address=LOCAL,
        num_cpus=processes,
        num_gpus=0,
        object_store_memory=STORE_BYTES,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
    )


def _start(**arguments: Any) -> None:  # noqa: ANN401 # those of `ray.init`
    """Connect without a word in the terminal, and without Ray's own way to end at a SIGTERM."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        package("ray").init(log_to_driver=False, logging_level=logging.ERROR, **arguments)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def ensure_token() -> None:
    """Let a new Ray have a token; left alone, it would write one into the user's home."""
    is_chosen = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if not is_chosen and not Path.home().joinpath(".ray", "auth_token").exists():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for Ray's sockets and logs."""
    usual = tempfile.gettempdir()
    parent = usual if len(usual) + len("/ray-12345678") <= LONGEST_FOLDER else "/tmp"
    return tempfile.TemporaryDirectory(prefix="ray-", dir=parent, ignore_cleanup_errors=True)


def _join(address: str) -> None:
    if address != AUTO:
        _probe(address)
    try:
        _start(address=address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _refused(address, str(error)) from None


def _probe(address: str) -> None:
    """Raise a `ConfigError` if no server of Ray's kind answers at `address`."""
    grpc = package("grpc")
    if "://" in address:
        raise ConfigError(
            f"address must be HOST:PORT of a cluster that this machine is a node of, not {address};"
            " from elsewhere, use distsgd submit"
        )
    if os.environ.get("RAY_USE_TLS", "0") == "1":
        return  # an unencrypted question would not be answered
    with contextlib.closing(grpc.insecure_channel(address)) as channel:
        try:
            grpc.channel_ready_future(channel).result(PROBE_S)
        except grpc.FutureTimeoutError:
            raise ConfigError(
                f"no Ray cluster answers at {address}; start one there with"
                " ray start --head, or unset RAY_ADDRESS to use this machine"
            ) from None


def _refused(address: str, reason: str) -> ConfigError:
    """Return the error for a cluster that answers, but cannot be joined."""
    pairs = re.findall(r"Ray: (\S+)\s+Python: (\S+)", reason)
    if len(pairs) == 2:
        theirs, ours = (f"Ray {ray} on Python {python}" for ray, python in pairs)
        return ConfigError(
            f"the cluster at {address} has {theirs}, and this process {ours}; install the same"
            " versions, or use distsgd submit, which needs no equal ones"
        )
    (first, *_) = reason.strip().splitlines() or [""]
    return ConfigError(
        f"cannot join the Ray cluster at {address}: {first.rstrip('.')}. This machine must be one"
        " of its nodes (ray start --address), and have its token if it wants one (RAY_AUTH_MODE="
        "token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH)"
    )
