"""The nodes of a Ray cluster: whether they have room for a run, and can do what it needs of them.

1. A run reserves all that it needs at once, or is refused in a sentence. It does not wait
   for ever for nodes to be added.
2. Before a run starts, every node is visited: it must have the packages of the driver, since the
   numbers depend on them, and must see the folder of the checkpoints, since any node may have to go
   on from one.
"""

import contextlib
import math
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from distsgd.errors import ConfigError
from distsgd.live.machine.folder import run_folder
from distsgd.live.options import LiveRequest
from distsgd.live.ray.failures import refused
from distsgd.live.ray.session import Session, package
from distsgd.live.ray.storage import opened, remove
from distsgd.run import versions

_TOKEN = "token"
"""The file by which nodes recognise a folder."""


class Found(NamedTuple):
    """What a visit to a node has found."""

    versions: dict[str, str]
    reason: str
    """Why the folder cannot be used there; nothing if it can."""


# Room


@contextlib.contextmanager
def reserved(session: Session, request: LiveRequest, run: str) -> Iterator[Any]:
    """Reserve what the processes of a run need: a bundle for each, spread over the nodes.

    They are in a ``PlacementGroup``: those of the shards, of the workers, and of the evaluator. A
    cluster that has not enough, or where it does not become free in time, is a `ConfigError`.
    """
    check_room(session, request)
    groups, patience_s = package("ray.util.placement_group"), request.fleet.ray.patience
    bundles = request.fleet.ray.bundles(request.fleet.shards, request.fleet.workers)
    group = groups.placement_group(bundles, strategy="SPREAD", name=run)
    try:
        if not group.wait(math.ceil(patience_s)):
            raise ConfigError(
                f"{shortage(session, request)}: that was not enough for {patience_s:g} s; wait until"
                " others have ended, use fewer workers, or add nodes"
            )
        yield group
    finally:
        groups.remove_placement_group(group)


def check_room(session: Session, request: LiveRequest) -> None:
    """Raise a `ConfigError` if the cluster, were it idle, had not what a run needs."""
    needs = request.fleet.ray.total(request.fleet.shards, request.fleet.workers)
    has = session.ray.cluster_resources()
    if any(has.get(name, 0.0) < amount for name, amount in needs.items()):
        raise ConfigError(f"{shortage(session, request)}; use fewer workers or shards, or add nodes")
    nodes = [node["Resources"] for node in _alive(session)]
    for role in ("server", "worker", "evaluator"):
        bundle = getattr(request.fleet.ray, role)
        if not any(_fits(bundle, node) for node in nodes):
            raise ConfigError(
                f"a process of the kind {role} needs {_listed(bundle)} on one node, which none of"
                f" the {len(nodes)} nodes has; ask for less, or add a node"
            )


def shortage(session: Session, request: LiveRequest) -> str:
    """Return what a run needs and what the cluster has, as the beginning of a sentence."""
    needs = request.fleet.ray.total(request.fleet.shards, request.fleet.workers)
    has, free = session.ray.cluster_resources(), session.ray.available_resources()
    there = ", ".join(f"{has.get(name, 0.0):g} {_unit(name)} ({free.get(name, 0.0):g} free)" for name in needs)
    return (
        f"the run needs {_listed(needs)} ({_counted(request.fleet.shards, 'server shard')} +"
        f" {_counted(request.fleet.workers, 'worker')} + 1 evaluator), the cluster has {there}"
    )


def _fits(bundle: Any, node: Any) -> bool:  # noqa: ANN401 # mappings of str to float
    return all(node.get(name, 0.0) >= amount for name, amount in bundle.items())


def _listed(resources: Any) -> str:  # noqa: ANN401 # a mapping of str to float
    return ", ".join(f"{amount:g} {_unit(name)}" for name, amount in resources.items())


def _unit(name: str) -> str:
    return "CPUs" if name == "CPU" else name


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


# State


@contextlib.contextmanager
def kept(session: Session, request: LiveRequest, run: str) -> Iterator[Path]:
    """Give a fresh folder that every node can read and write, and that is gone afterwards.

    A node that cannot use it, or that has other packages, is a `ConfigError`.
    """
    with contextlib.ExitStack() as stack:
        folder = _made(session, request, run, stack)
        check_nodes(session, folder, request.fleet.ray.patience)
        yield folder


def _made(session: Session, request: LiveRequest, run: str, stack: contextlib.ExitStack) -> Path:
    storage = request.fleet.ray.storage
    if storage is None and is_one_machine(session):
        return stack.enter_context(run_folder())
    parent = Path.home() / ".cache" / "distsgd" if storage is None else storage
    folder = opened(parent) / run
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except Exception as error:  # noqa: BLE001 # stores raise errors of their own
        raise _unusable(parent, "this process", str(error)) from None
    stack.callback(remove, folder)
    return folder


def check_nodes(session: Session, folder: Path, patience_s: float) -> None:
    """Visit every node, and raise a `ConfigError` that names one that cannot take part."""
    token = secrets.token_bytes(16)
    try:
        (folder / _TOKEN).write_bytes(token)
    except Exception as error:  # noqa: BLE001 # stores raise errors of their own
        raise _unusable(folder, "this process", str(error)) from None
    for node, found in _visited(session, folder, token, patience_s).items():
        if found.reason:
            raise _unusable(folder, f"node {node}", found.reason)
        for name, ours in versions().items():
            theirs = found.versions.get(name, "none")
            if theirs != ours:
                raise ConfigError(
                    f"node {node} has {name} {theirs}, and this process {ours}: the run could not"
                    " be replayed; install the same versions"
                )


def _visited(session: Session, folder: Path, token: bytes, patience_s: float) -> dict[str, Found]:
    strategies = package("ray.util.scheduling_strategies")
    task, asked = session.ray.remote(num_cpus=0, max_retries=0)(_look), {}
    for node in _alive(session):
        on_it = strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        name = f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
        asked[task.options(scheduling_strategy=on_it).remote(folder, token)] = name
    done, late = session.ray.wait(list(asked), num_returns=len(asked), timeout=patience_s)
    if late:
        raise ConfigError(f"node {asked[late[0]]} has not answered for {patience_s:g} s; remove or restart it")
    return {asked[one]: _answer(session, one, asked[one]) for one in done}


def _answer(session: Session, visit: Any, node: str) -> Found:  # noqa: ANN401 # a reference
    try:
        found: Found = session.ray.get(visit)
    except package("ray.exceptions").RayError as error:
        raise refused(f"node {node}", error) from None
    return found


def _look(folder: Path, token: bytes) -> Found:
    """Say what a node has, and whether it reads and writes what the driver does."""
    try:
        if not (folder / _TOKEN).exists() or (folder / _TOKEN).read_bytes() != token:
            return Found(versions(), "it sees another folder there")
        own = folder / f"{secrets.token_hex(8)}.part"
        own.write_bytes(token)
        own.unlink()
    except Exception as error:  # noqa: BLE001 # stores raise errors of their own
        return Found(versions(), str(error))
    return Found(versions(), "")


def is_one_machine(session: Session) -> bool:
    """Return whether all nodes have one address, as those of a Ray of our own."""
    return len({node["NodeManagerAddress"] for node in _alive(session)}) == 1


def _alive(session: Session) -> list[Any]:
    return [node for node in session.ray.nodes() if node["Alive"]]


def _unusable(folder: object, who: str, reason: str) -> ConfigError:
    return ConfigError(
        f"storage {folder} cannot be used by {who}: {reason}; give RayOptions(storage=...) a folder"
        " that all nodes share, or a URI such as s3://bucket/folder"
    )
