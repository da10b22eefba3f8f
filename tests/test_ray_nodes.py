from pathlib import Path
from types import SimpleNamespace

import pytest

import distsgd as ds
from distsgd import ConfigError, RayOptions
from distsgd.errors import WorkerLost
from distsgd.fold.request import RunConfig, RunRequest
from distsgd.live.local.supervision import Role
from distsgd.live.options import LiveFleet, LiveRequest
from distsgd.live.ray.nodes import _look, check_room
from distsgd.live.ray.processes import Actors, _Start
from distsgd.order.budget import Budget

PROBLEM = ds.problems.quadratic([1.0, 2.0], noise=0.1)


def cluster_of(*nodes: dict[str, float], free: float) -> SimpleNamespace:
    """Return what stands for a connection to a cluster of such nodes."""
    total = {name: sum(node.get(name, 0.0) for node in nodes) for node in nodes for name in node}
    ray = SimpleNamespace(
        cluster_resources=lambda: total,
        available_resources=lambda: {"CPU": free},
        nodes=lambda: [{"Alive": True, "Resources": node} for node in nodes],
    )
    return SimpleNamespace(ray=ray)


def request_of(**given: object) -> LiveRequest:
    """Return a small run."""
    algorithm = ds.algorithms.downpour(0.1)
    fleet = LiveFleet("ray", **{"workers": 4} | given)
    return RunRequest(algorithm, PROBLEM, fleet, RunConfig(Budget("updates", 10)))


def test_a_cluster_that_is_too_small_is_told_so_in_numbers() -> None:
    """A run that can never have its room is refused with what it needs, what is there, and free."""
    with pytest.raises(ConfigError) as caught:
        check_room(cluster_of({"CPU": 3.0}, {"CPU": 1.0}, free=3.0), request_of())
    assert str(caught.value) == (
        "the run needs 6 CPUs (1 server shard + 4 workers + 1 evaluator), the cluster has 4 CPUs"
        " (3 free); use fewer workers or shards, or add nodes"
    )
    check_room(cluster_of({"CPU": 3.0}, {"CPU": 3.0}, free=0.0), request_of())


def test_a_process_must_fit_on_one_node() -> None:
    """Two halves on two nodes are no room for a process that needs the whole."""
    request = request_of(workers=1, ray=RayOptions(worker={"CPU": 4}))
    with pytest.raises(ConfigError, match="kind worker needs 4 CPUs on one node, which none of"):
        check_room(cluster_of({"CPU": 3.0}, {"CPU": 3.0}, free=6.0), request)


def test_a_run_that_has_lost_its_room_ends() -> None:
    """Whoever finds no room in time, after a node was lost, ends the run in a sentence."""
    actors = Actors.__new__(Actors)
    actors._starting = {None: _Start(Role("worker", 1), deadline=0.0)}
    actors._request, actors._session = request_of(), cluster_of({"CPU": 3.0}, free=0.0)
    with pytest.raises(WorkerLost) as caught:
        actors.wait()
    assert str(caught.value) == (
        "worker 1 has found no room for 60 s: the run needs 6 CPUs (1 server shard + 4 workers +"
        " 1 evaluator), the cluster has 3 CPUs (0 free); add a node, or use fewer workers"
    )


def test_a_node_knows_the_folder_by_what_lies_in_it(tmp_path: Path) -> None:
    """A folder with another content is another folder, and a visit leaves nothing there."""
    (tmp_path / "token").write_bytes(b"ours")
    assert _look(tmp_path, b"ours").reason == ""
    assert _look(tmp_path, b"theirs").reason == "it sees another folder there"
    assert [path.name for path in tmp_path.iterdir()] == ["token"]
