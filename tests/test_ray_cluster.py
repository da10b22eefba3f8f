import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zmq

import distsgd as ds
from distsgd import ConfigError, RayOptions
from distsgd.errors import WorkerLost
from distsgd.fold.request import Request, RunConfig
from distsgd.live.local.supervision import Role
from distsgd.live.messages.link import Ended, Link, Peer
from distsgd.live.messages.sockets import Door
from distsgd.live.messages.wire import Kind
from distsgd.live.options import LiveFleet, LiveRequest
from distsgd.live.peers.evaluator import Judged
from distsgd.live.ray import driver as ray_ties
from distsgd.live.ray import metrics
from distsgd.live.ray.actors import Mailbox, Server
from distsgd.live.ray.driver import offset
from distsgd.live.ray.metrics import RowMeter, measure
from distsgd.live.ray.nodes import _look, check_room
from distsgd.live.ray.placement import Actors, _Start
from distsgd.live.ray.storage import RemoteFolder, opened, remove
from distsgd.live.server import checkpoint
from distsgd.live.server.checkpoint import Name
from distsgd.live.server.standing import Rows
from distsgd.order.budget import Budget
from distsgd.problem import Evaluation
from distsgd.trace import DROP, JOIN, LEAVE, PULL, PUSH, ROW

PROBLEM = ds.problems.quadratic([1.0, 2.0], noise=0.1)


def case_of(**given: object) -> LiveRequest:
    """Return a small run."""
    algorithm = ds.algorithms.downpour(0.1)
    fleet = LiveFleet("ray", **{"workers": 4} | given)
    return Request(algorithm, PROBLEM, fleet, RunConfig(Budget("updates", 10)))


# What is asked of a cluster


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"worker": {}}, "worker must be resources such as"),
        ({"server": "CPU"}, "server must be resources such as"),
        ({"worker": {"": 1}}, "worker must have names of resources"),
        ({"evaluator": {"CPU": 0}}, r"evaluator\['CPU'\] must be > 0"),
        ({"patience": 0}, "patience must be > 0 s"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    """A resource without a name or an amount, and no patience at all, are the caller's errors."""
    with pytest.raises(ConfigError, match=words):
        RayOptions(**options)


def test_options_of_a_cluster_belong_to_a_cluster() -> None:
    """Processes of this machine reserve nothing, so that a launch there refuses to be told."""
    with pytest.raises(ConfigError, match="for on='ray' only"):
        ds.launch(ds.algorithms.downpour(0.1), PROBLEM, updates=1, ray=RayOptions())


def test_every_process_reserves_its_own() -> None:
    """What a run needs is the sum over shards, workers and evaluator, each in one bundle."""
    options = RayOptions(worker={"CPU": 2, "disk": 0.5}, server={"CPU": 0.5})
    assert options.bundles(2, 3) == [{"CPU": 0.5}, {"CPU": 0.5}, *[{"CPU": 2.0, "disk": 0.5}] * 3, {"CPU": 1.0}]
    assert options.total(2, 3) == {"CPU": 8.0, "disk": 1.5}


def cluster_of(*nodes: dict[str, float], free: float) -> SimpleNamespace:
    """Return what stands for a connection to a cluster of such nodes."""
    total = {name: sum(node.get(name, 0.0) for node in nodes) for node in nodes for name in node}
    ray = SimpleNamespace(
        cluster_resources=lambda: total,
        available_resources=lambda: {"CPU": free},
        nodes=lambda: [{"Alive": True, "Resources": node} for node in nodes],
    )
    return SimpleNamespace(ray=ray)


def test_a_cluster_that_is_too_small_is_told_so_in_numbers() -> None:
    """A run that can never have its room is refused with what it needs, what is there, and free."""
    with pytest.raises(ConfigError) as caught:
        check_room(cluster_of({"CPU": 3.0}, {"CPU": 1.0}, free=3.0), case_of())
    assert str(caught.value) == (
        "the run needs 6 CPUs (1 server shard + 4 workers + 1 evaluator), the cluster has 4 CPUs"
        " (3 free); use fewer workers or shards, or add nodes"
    )
    check_room(cluster_of({"CPU": 3.0}, {"CPU": 3.0}, free=0.0), case_of())


def test_a_process_must_fit_on_one_node() -> None:
    """Two halves on two nodes are no room for a process that needs the whole."""
    case = case_of(workers=1, ray=RayOptions(worker={"CPU": 4}))
    with pytest.raises(ConfigError, match="kind worker needs 4 CPUs on one node, which none of"):
        check_room(cluster_of({"CPU": 3.0}, {"CPU": 3.0}, free=6.0), case)


def test_a_run_that_has_lost_its_room_ends() -> None:
    """Whoever finds no room in time, after a node was lost, ends the run in a sentence."""
    crew = Actors.__new__(Actors)
    crew._starting = {None: _Start(Role("worker", 1), deadline=0.0)}
    crew._launch, crew._session = case_of(), cluster_of({"CPU": 3.0}, free=0.0)
    with pytest.raises(WorkerLost) as caught:
        crew.wait()
    assert str(caught.value) == (
        "worker 1 has found no room for 60 s: the run needs 6 CPUs (1 server shard + 4 workers +"
        " 1 evaluator), the cluster has 3 CPUs (0 free); add a node, or use fewer workers"
    )


# Where state is kept


@pytest.fixture(params=["path", "uri"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a folder as a path, and as a URI."""
    return opened(tmp_path / "run" if request.param == "path" else f"file://{tmp_path}/run")


def test_checkpoints_lie_behind_a_uri_as_in_a_folder(folder: Path) -> None:
    """What a server writes into a folder or behind a URI is what the next one reads, to the bit."""
    folder.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(0).normal(size=5)
    for number in (1, 2):
        name = Name(0, number)
        checkpoint.save_columns(folder, name, 0, {"x": x + number})
        segment = checkpoint.save_rows(folder, name, 0, np.zeros(3, ROW))
        memory = checkpoint.Memory(number, 0, 0, 0.0, [])
        checkpoint.save_description(
            folder, name, checkpoint.Description(checkpoint.FORMAT, 1, False, "done", memory, [segment], [])
        )
    checkpoint.remove_older(folder, 0)
    found = checkpoint.load(folder)
    assert found is not None
    assert (found.name, len(found.rows)) == (Name(0, 2), 3)
    assert checkpoint.load_model(folder, found).tobytes() == (x + 2).tobytes()
    names = {one.name for one in folder.glob("*")}
    assert not any(name.endswith(".part") or name.startswith("0000-00000001.0") for name in names)
    remove(folder)
    assert not folder.exists()


def test_a_uri_that_nobody_opens_is_refused() -> None:
    """A scheme that neither fsspec nor pyarrow knows is the caller's error."""
    with pytest.raises(ConfigError, match="storage nowhere://x cannot be opened"):
        opened("nowhere://x")


def test_a_node_knows_the_folder_by_what_lies_in_it(tmp_path: Path) -> None:
    """A folder with another content is another folder, and a visit leaves nothing there."""
    (tmp_path / "token").write_bytes(b"ours")
    assert _look(tmp_path, b"ours").reason == ""
    assert _look(tmp_path, b"theirs").reason == "it sees another folder there"
    assert [path.name for path in tmp_path.iterdir()] == ["token"]


# Clocks, ports and mail


def test_another_clock_is_known_to_half_of_the_shortest_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """The offset of a clock is off by at most half of the time that the quickest answer took."""
    now, generator = [100.0], np.random.default_rng(1)
    monkeypatch.setattr(ray_ties, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for ways in generator.exponential(0.01, (100, ray_ties.QUESTIONS, 2)):
        answers = iter(ways)

        def ask(answers: Iterator[tuple[float, float]] = answers) -> float:
            there, back = next(answers)
            now[0] += there
            answer = now[0] + 7.0
            now[0] += back
            return answer

        assert abs(offset(ask) - 7.0) <= ways.sum(axis=1).min() / 2 + 1e-9


@pytest.mark.parametrize(("is_one_machine", "host"), [(True, "127.0.0.1"), (False, "127.0.0.2")])
def test_a_reserved_port_can_be_listened_at(monkeypatch: pytest.MonkeyPatch, is_one_machine: bool, host: str) -> None:
    """A shard can listen at the port that it holds: on loopback, or on its node's address."""
    util = SimpleNamespace(util=SimpleNamespace(get_node_ip_address=lambda: "127.0.0.2"))
    monkeypatch.setattr("distsgd.live.ray.actors.import_module", lambda _: util)
    server = Server([])
    endpoint = server.open(is_one_machine)
    assert endpoint.startswith(f"tcp://{host}:")
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.bind(endpoint)
    server._reserved.close()


def test_a_peer_that_is_moved_waits_for_no_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for servers that are gone goes on when it is told so."""
    monkeypatch.setattr("distsgd.live.messages.link.RESEND_S", 0.05)
    answers = iter([False, True])
    with zmq.Context() as context:
        peer = Peer(0, 1, [Door("tcp://127.0.0.1:9")], 0.0, is_over=lambda: next(answers))
        link = Link(peer, context)
        with pytest.raises(Ended):
            link.wait(link.ask(Kind.JOIN))
        link.close()


def test_the_evaluator_waits_until_the_driver_has_what_it_found() -> None:
    """What the servers hear of an evaluation, the driver has: the next question says so."""
    mailbox, sent = Mailbox(), queue.SimpleQueue[int]()
    found = [Judged(n, Evaluation(0.5, 0.5, 0.5), 0.0, 0, None) for n in range(3)]

    def evaluate() -> None:
        for one in found:
            mailbox.send(one)
            sent.put(one.update)

    thread = threading.Thread(target=evaluate)
    thread.start()
    received = []
    for _ in found:
        received.append(mailbox.taken(20.0))
        assert sent.qsize() == len(received) - 1
    assert mailbox.taken(0.0) is None
    thread.join()
    assert received == found


# Metrics


def rows_of(*rows: tuple[int, int, int, float]) -> np.ndarray:
    """Return rows of (verb, version, read, queue time)."""
    made = np.zeros(len(rows), ROW)
    for row, (verb, version, read, queued) in zip(made, rows, strict=True):
        row["verb"], row["version"], row["read"], row["time"] = verb, version, read, 5.0
        row["sent"] = 5.0 - queued
    return made


ROWS = rows_of(
    (PULL, 3, 3, 0.25),
    (PUSH, 4, 3, 0.0),
    (PUSH, 4, 3, 0.5),
    (PUSH, 5, 4, 0.0),
    (DROP, 5, 1, 0.0),
    (LEAVE, 6, 6, 5.0),
    (JOIN, 6, 6, 0.0),
)


def test_metrics_say_what_the_rows_say() -> None:
    """Counters are sums over rows, and staleness is that of each push when it arrives."""
    measured = measure(ROWS, 3, (100.0, 10.0))
    assert measured.counts == {
        "distsgd_updates_total": 3,
        "distsgd_pulls_total": 1,
        "distsgd_pushes_total": 4,
        "distsgd_dropped_pushes_total": 1,
        "distsgd_lost_workers_total": 1,
        "distsgd_bytes_total": 2 * 100 + 4 * 10,
    }
    assert measured.observed["distsgd_staleness"].tolist() == [0.0, 1.0, 0.0]
    queued = [0.25, 0.0, 0.5, 0.0, 0.0, 0.0]
    assert measured.observed["distsgd_queue_seconds"].tolist() == queued


class Told:
    """Stands for the meters of Ray."""

    def __init__(self) -> None:
        self.measured: list[metrics.Measured] = []

    def add(self, measured: metrics.Measured) -> None:
        """Keep what is told."""
        self.measured.append(measured)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Return the clock of the meters."""
    now = [0.0]
    monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_rows_are_measured_once(clock: list[float]) -> None:
    """However often the rows are shown, each counts once; those of an earlier life never do."""
    told, rows = Told(), Rows(rows_of((PUSH, 1, 0, 0.0)))
    meter = RowMeter(told, (1.0, 1.0))  # type: ignore[arg-type] # it has the method
    for n in range(7):
        meter(rows)
        rows.append(tuple(ROWS[n]))
        meter(rows)
        clock[0] += 2.0
    meter(rows)
    counts = [measured.counts for measured in told.measured]
    assert sum(one["distsgd_pushes_total"] for one in counts) == 4
    assert sum(one["distsgd_updates_total"] for one in counts) == 6 - 1


def test_histograms_take_few_of_many() -> None:
    """Of very many messages a histogram takes a thousand, spread over all of them."""
    rows = np.zeros(5000, ROW)
    rows["verb"], rows["read"] = PUSH, -np.arange(5000)
    taken = measure(rows, 0, (1.0, 1.0)).observed["distsgd_staleness"]
    assert taken.tolist() == list(range(0, 5000, 5))


def test_a_remote_folder_knows_its_uri(tmp_path: Path) -> None:
    """In a sentence, a folder behind a URI is called by it."""
    folder = opened(f"file://{tmp_path}") / "run"
    assert isinstance(folder, RemoteFolder)
    assert str(folder) == f"file://{tmp_path}/run"
