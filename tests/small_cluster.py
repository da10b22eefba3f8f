"""A cluster of three nodes on this machine: they can be killed, and nothing may be left on them."""

import gc
import logging
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from distsgd.live.ray.session import package

SETTINGS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # there a cluster stays on 127.0.0.1
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_failure_threshold": "3",
    "RAY_metrics_report_interval_ms": "500",
    "RAY_worker_niceness": "0",  # by default actors wait for everything else on a busy machine
}
"""Ray's own settings: a lost node is seen soon."""
LIMIT_S = 100.0
"""A test that takes longer hangs."""


@contextmanager
def tolerant() -> Iterator[None]:
    """Let Ray leave sockets of its own to the garbage collector, which runs at the end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


class Machines:
    """A cluster of three nodes on this machine, each with 3 CPUs, and a connection to it."""

    def __init__(self, folder: str) -> None:
        node = {"num_cpus": 3, "node_ip_address": "127.0.0.1", "object_store_memory": 80 * 2**20}
        self._node = node | {"temp_dir": folder}
        head = self._node | {"include_dashboard": False}
        self.ray = package("ray")
        with tolerant():
            self._cluster = package("ray.cluster_utils").Cluster(True, False, head)
            self.address = str(self._cluster.address)
            self.ray.init(self.address, log_to_driver=False, logging_level=logging.CRITICAL)
        self.complete()
        self.home = self.ray.get_runtime_context().get_node_id()

    @property
    def _nodes(self) -> list[Any]:
        return list(self._cluster.list_all_nodes())

    def kill(self, node_id: str) -> None:
        """Kill all processes of a node."""
        (node,) = (one for one in self._nodes if one.node_id == node_id)
        self._cluster.remove_node(node, allow_graceful=False)

    def complete(self) -> None:
        """Have three nodes again."""
        with tolerant():
            while len(self._nodes) < 3:
                self._cluster.add_node(**self._node)

    def actors(self) -> list[str]:
        """Return the processes of all actors that are alive, as their titles."""
        return [
            title
            for node in self._nodes
            for service in node.live_processes()
            if service[0] == "raylet"
            for title in titles(service[1].pid)
            if title.startswith("ray::") and any(one in title for one in KINDS)
        ]

    def close(self) -> None:
        """End all nodes."""
        with tolerant():
            self.ray.shutdown()
            for node in self._nodes[::-1]:
                self._cluster.remove_node(node, allow_graceful=False)


KINDS = ("Server", "Worker", "Evaluator", "distsgd")


def titles(process: int) -> list[str]:
    """Return the titles of a process's children."""
    found = []
    for child in psutil.Process(process).children(recursive=True):
        try:
            found.append(" ".join(child.cmdline()))
        except psutil.Error:
            continue
    return found


@contextmanager
def started() -> Iterator[Machines]:
    """Start a cluster in a folder of its own, and end it."""
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        Path(folder, "ray").mkdir()  # where it writes the address of a cluster
        for name, value in (SETTINGS | {"RAY_TMPDIR": folder}).items():
            patch.setenv(name, value)
        patch.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False)
        machines = Machines(folder)
        try:
            yield machines
        finally:
            machines.close()


def check_nothing_is_left(machines: Machines) -> None:
    """Wait until no actor and no placement group is left; the relay has ended by then."""
    assert not any(thread.name == "relay" for thread in threading.enumerate())
    until = time.monotonic() + LIMIT_S
    table = package("ray.util").placement_group_table
    while machines.actors() or {one["state"] for one in table().values()} - {"REMOVED"}:
        assert time.monotonic() < until, machines.actors()
        time.sleep(0.1)
