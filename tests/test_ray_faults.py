import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from disturbance import Disturbance
from small_cluster import LIMIT_S, Machines, check_nothing_is_left, started

import distsgd as ds
from distsgd import ConfigError, RayOptions, Run
from distsgd.algorithm import Algorithm
from distsgd.fold.request import Progress, RunConfig, RunRequest
from distsgd.live.local.roles import layout_of, stream_of
from distsgd.live.local.supervision import Role
from distsgd.live.options import LiveFleet
from distsgd.live.peers.replica import WorkerCase
from distsgd.live.ray import launch as ray_cluster
from distsgd.live.ray import processes as ray_processes
from distsgd.live.ray.metrics import COUNTERS, GAUGES, HISTOGRAMS
from distsgd.live.ray.processes import Actors
from distsgd.live.ray.roles import Common
from distsgd.live.ray.session import package
from distsgd.order.budget import Budget
from distsgd.trace import JOIN, LEAVE, PUSH

pytestmark = [pytest.mark.ray, pytest.mark.long]

PROBLEM = ds.problems.softmax(ds.data.digits())
ASYNCHRONOUS = ds.algorithms.downpour(0.1, n_push=2, n_fetch=3)
SYNCHRONOUS = ds.algorithms.synchronous(0.1)


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """Return a cluster; all tests share it, and leave it complete."""
    with started() as machines:
        yield machines


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Actors]:
    """Return the actors of the runs that are launched."""
    launched = []

    class Noted(Actors):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type] # they are those of `Actors`
            launched.append(self)

    monkeypatch.setattr(ray_cluster, "Actors", Noted)
    return launched


class DisturbedRun(Disturbance):
    """Does something to a run on a cluster, and replays it."""

    limit_s = LIMIT_S

    def launch(self, machines: Machines, algorithm: Algorithm, **options: object) -> Run:
        """Make the run, and check that it is its replay, and that nothing is left of it."""
        options = {"workers": 3, "delay": ds.constant(0.005), "checkpoint_every": 0.2} | options
        run = ds.launch(
            algorithm,
            PROBLEM,
            on="ray",
            updates=10**9,
            batch=8,
            evaluations=10**7,
            seed=3,
            heartbeat=60.0,
            watch=self.watch,
            stop=self.stop,
            **options,
        )
        assert run.status == "stopped"
        assert run.history["loss"][-1] < run.history["loss"][0]
        again = ds.replay(run, algorithm, PROBLEM)
        assert run.x.tobytes() == again.x.tobytes()
        assert run.history.equals(again.history, null_equal=True)
        check_nothing_is_left(machines)
        return run


def verbs_of(run: Run, worker: int) -> list[int]:
    """Return what the server wrote down of a worker."""
    rows = run.trace.rows
    return rows["verb"][rows["worker"] == worker].tolist()


def kill(launched: list[Actors], role: Role) -> Callable[[], None]:
    """Return what kills the process of an actor."""
    return lambda: os.kill(launched[-1].met[role].process, signal.SIGKILL)


def test_a_killed_worker_is_replaced(machines: Machines, launched: list[Actors]) -> None:
    """A worker actor whose process is killed leaves and joins again, and the run goes on."""
    disturbed = DisturbedRun(
        kill(launched, Role("worker", 1)), has_recovered=lambda seen: seen.alive == 3 and seen.lost > 0
    )
    run = disturbed.launch(machines, ASYNCHRONOUS)
    verbs = verbs_of(run, 1)
    assert verbs.count(LEAVE) == verbs.count(JOIN) == 1
    assert PUSH in verbs[verbs.index(JOIN) :]
    assert (run.counts["lost_workers"], run.counts["server_restarts"]) == (1, 0)


def test_others_go_on_without_a_killed_worker(machines: Machines, launched: list[Actors]) -> None:
    """Where workers may shrink, the others go on, and a round waits for no more than those."""
    disturbed = DisturbedRun(kill(launched, Role("worker", 1)), has_recovered=lambda seen: seen.alive == 2)
    run = disturbed.launch(machines, SYNCHRONOUS, on_loss="shrink")
    assert verbs_of(run, 1)[-1] == LEAVE
    assert run.counts["lost_workers"] == 1


@pytest.mark.parametrize("shard", [0, 1])
def test_a_killed_server_starts_again(
    machines: Machines, launched: list[Actors], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shard: int
) -> None:
    """Servers go on elsewhere from the last checkpoint on storage, and all workers join again.

    So they do where everything is encrypted, as between machines.
    """
    is_secret = shard == 1
    monkeypatch.setattr(ray_processes, "needs_keys", lambda _: is_secret)
    disturbed = DisturbedRun(kill(launched, Role("server", shard)), has_recovered=lambda seen: seen.alive == 3)
    storage = RayOptions(storage=f"file://{tmp_path}")
    run = disturbed.launch(machines, ASYNCHRONOUS, shards=2, ray=storage)
    assert (run.counts["lost_workers"], run.counts["server_restarts"]) == (0, 1)
    assert all(JOIN in verbs_of(run, worker) for worker in range(3))
    assert list(tmp_path.iterdir()) == []
    assert (launched[-1]._assignments.keys is not None) == is_secret


def test_a_killed_node_is_done_without(machines: Machines, launched: list[Actors]) -> None:
    """Whoever was on a node that is killed starts again on another one, servers and workers."""
    lost: set[Role] = set()

    def act() -> None:
        by_node: dict[str, set[Role]] = {}
        for role, met in launched[-1].met.items():
            by_node.setdefault(met.node, set()).add(role)
        by_node.pop(machines.home, None)
        node = max(by_node, key=lambda one: sum(role.name != "worker" for role in by_node[one]))
        lost.update(by_node[node])
        machines.kill(node)

    def has_recovered(seen: Progress) -> bool:
        workers = {role for role in lost if role.name == "worker"}
        is_again = launched[-1]._life > 0 or lost == workers
        return seen.alive == 3 and seen.lost == len(workers) and is_again

    try:
        run = DisturbedRun(act, has_recovered=has_recovered).launch(machines, ASYNCHRONOUS, shards=2)
    finally:
        machines.complete()
    workers = {role.number for role in lost if role.name == "worker"}
    assert run.counts["lost_workers"] == len(workers)
    assert all(JOIN in verbs_of(run, worker) for worker in workers)


def test_a_server_that_ends_at_its_start_is_started_again(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that dies before it has served is no reason to give up."""

    class Clumsy(Actors):
        def _placed(self, role: Role) -> object:
            actor = super()._placed(role)
            if role.name == "server" and self._n_started[role] == 1:
                machines.ray.kill(actor)
            return actor

    monkeypatch.setattr(ray_cluster, "Actors", Clumsy)
    run = ds.launch(ASYNCHRONOUS, PROBLEM, on="ray", workers=1, updates=5)
    assert (run.status, run.counts["server_restarts"]) == ("done", 0)


def exported(machines: Machines) -> set[str]:
    """Return the names of our metrics that the nodes show to Prometheus."""
    ports = [node["MetricsExportPort"] for node in machines.ray.nodes() if node["Alive"]]
    texts = [urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode() for port in ports]
    lines = [line.split() for line in "".join(texts).splitlines() if line.startswith("# TYPE ray_")]
    return {words[2].removeprefix("ray_") for words in lines if "distsgd" in words[2]}


def test_prometheus_sees_a_run(machines: Machines) -> None:
    """While a run goes on, its nodes export every metric that has something to tell."""
    silent = {"distsgd_lost_workers_total", "distsgd_dropped_pushes_total"}
    known = COUNTERS.keys() | HISTOGRAMS.keys() | GAUGES.keys()
    disturbed = DisturbedRun(lambda: None, has_recovered=lambda _: exported(machines) >= known - silent)
    disturbed.launch(machines, ASYNCHRONOUS, workers=1)


def test_data_exist_once_on_a_node(machines: Machines) -> None:
    """The arrays of two processes of a node are one memory, which neither of them can write."""

    def places(sent: list[object]) -> dict[str, tuple[str, int]]:
        from numpy import ndarray  # noqa: PLC0415 # this function is sent to another process

        from distsgd.live.ray.roles import Actor  # noqa: PLC0415

        actor = Actor(sent)
        actor.meet()
        data = actor._common.case.problem.data
        maps = [line.split() for line in open("/proc/self/maps")]  # noqa: PTH123, SIM115 # in Linux
        found = {}
        for name, array in vars(data).items():
            if isinstance(array, ndarray) and array.nbytes > 10_000:
                assert not array.flags.writeable
                for span, rights, offset, _, file, *_ in maps:
                    start, end = (int(one, 16) for one in span.split("-"))
                    if start <= array.ctypes.data < end and rights.endswith("s"):
                        found[name] = file, array.ctypes.data - start + int(offset, 16)
        return found

    problem = ds.problems.softmax(ds.data.digits())
    case = RunRequest(SYNCHRONOUS, problem, LiveFleet("ray", 2), RunConfig(Budget("updates", 1)))
    shared = WorkerCase(SYNCHRONOUS, problem, stream_of(case), problem.start(0), 2)
    ray, here = (machines.ray, package("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy)
    sent = [ray.put(Common("a run", case, shared, layout_of(case), (1.0, 1.0)))]
    task = ray.remote(num_cpus=1, scheduling_strategy=here(machines.home, soft=False))(places)
    one, other = ray.get([task.remote(sent) for _ in range(2)])
    assert one == other
    assert {"x", "y"} <= one.keys()


DRIVER = """
import distsgd as ds
ds.launch(
    ds.algorithms.downpour(0.1), ds.problems.quadratic([1.0]), on="ray", workers=2, updates=10**9,
    watch=lambda seen: print(seen.updates, flush=True),
)
"""


def test_actors_end_with_their_driver(machines: Machines, tmp_path: Path) -> None:
    """When a driver is killed, its actors end and what they have reserved is free."""
    (tmp_path / "driver.py").write_text(DRIVER)
    environment = os.environ | {"RAY_ADDRESS": machines.address, "TMPDIR": str(tmp_path)}
    environment["PYTHONPATH"] = str(Path(ds.__file__).parent.parent)
    driver = subprocess.Popen(
        [sys.executable, tmp_path / "driver.py"], env=environment, text=True, stdout=subprocess.PIPE
    )
    with driver:
        while int(driver.stdout.readline()) < 10:
            pass
        assert machines.actors()
        driver.kill()
    check_nothing_is_left(machines)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 8}, r"the run needs 10 CPUs \(1 server shard \+ 8 workers .* has 9 CPUs \("),
        ({"ray": RayOptions(worker={"fast": 1})}, r"needs 2 CPUs, 2 fast .* has .* 0 fast \(0 free"),
        ({"ray": RayOptions(storage="memory://x")}, "by node .*: it sees another folder there; give"),
        ({"ray": RayOptions(storage="/proc/x")}, "storage /proc/x cannot be used by this process"),
    ],
)
def test_a_cluster_that_cannot_run_it_is_a_mistake(machines: Machines, options: dict[str, Any], words: str) -> None:
    """Too little room, and storage that a node cannot use, are one sentence before the start."""
    with pytest.raises(ConfigError, match=words):
        ds.launch(ASYNCHRONOUS, PROBLEM, on="ray", updates=20, **({"workers": 2} | options))
    check_nothing_is_left(machines)


def test_nobody_waits_for_ever_for_a_busy_cluster(machines: Machines) -> None:
    """A run whose room is taken by others gives up in a sentence, and leaves no reservation."""
    groups = package("ray.util.placement_group")
    others = groups.placement_group([{"CPU": 3}] * 2)
    assert others.wait(LIMIT_S)
    try:
        with pytest.raises(ConfigError, match=r"\(3 free\): that was not enough for 1 s"):
            ds.launch(ASYNCHRONOUS, PROBLEM, on="ray", updates=20, ray=RayOptions(patience=1.0))
    finally:
        groups.remove_placement_group(others)
    check_nothing_is_left(machines)
