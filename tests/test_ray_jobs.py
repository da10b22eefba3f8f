import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, TypeAlias

import psutil
import pytest
import requests

from distsgd import ConfigError
from distsgd.live.ray import jobs as submission
from distsgd.live.ray.jobs import Order, delivery, entrypoint, follow, received

pytestmark = pytest.mark.long

Call: TypeAlias = Callable[..., tuple[int, str, str]]

EXPERIMENT = """
updates = 10
seeds = 2
evaluations = 2
[problem]
name = "mine:make_problem"
[algorithms.mine]
algorithm = "downpour"
learning_rate = 0.1
schedule = "mine:decay"
[fleets.machines]
workers = 2
"""
MODULE = """
import distsgd

class Parabola(distsgd.Problem):
    samples, dimension = 8, 1

    def loss(self, x):
        return float((x[0] - 1) ** 2 / 2)

    def gradient(self, x, batch):
        return x - 1

def make_problem():
    return Parabola()

def decay(epoch):
    return 1.0 / (1.0 + epoch)
"""
LONG = ("--seeds", "1000000")


class Head(NamedTuple):
    """A cluster of one node: where its dashboard listens, and the home of its user."""

    address: str
    home: Path


def free_ports(count: int) -> list[str]:
    """Return ports that are free."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Return a cluster with a dashboard, which all tests of this module share.

    It compiles nothing, which would take longer than all the rest.
    """
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as name:
        home = Path(name)
        gcs, page, agent, client = free_ports(4)
        command = [
            Path(sys.executable).with_name("ray"),
            "start",
            "--head",
            "--block",
            "--port",
            gcs,
            "--node-ip-address",
            "127.0.0.1",
            "--include-dashboard",
            "true",
            "--dashboard-host",
            "127.0.0.1",
            "--dashboard-port",
            page,
            "--dashboard-agent-listen-port",
            agent,
            "--ray-client-server-port",
            client,
            "--min-worker-port",
            "0",
            "--max-worker-port",
            "0",
            "--num-cpus",
            "2",
            "--object-store-memory",
            "100000000",
            "--temp-dir",
            home / "ray",
            "--disable-usage-stats",
        ]
        tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with subprocess.Popen(
            list(map(str, command)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": name, "PATH": tools, "NUMBA_DISABLE_JIT": "1"},
            start_new_session=True,
        ) as process:
            wait_for(f"http://127.0.0.1:{page}", process)
            yield Head(f"http://127.0.0.1:{page}", home)
            others = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
        for other in psutil.wait_procs(others, timeout=20)[1]:
            other.kill()


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    """Return when the dashboard answers."""
    header = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
    while process.poll() is None:
        try:
            if requests.get(f"{address}/api/jobs/", headers=header, timeout=5).ok:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.1)
    pytest.fail("the head has ended")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the path of a small experiment with own code, in a folder of its own."""
    path = tmp_path / "mine" / "experiment.toml"
    path.parent.mkdir()
    path.write_text(EXPERIMENT)
    (path.parent / "mine.py").write_text(MODULE)
    return path


def distsgd(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command, and return what it said."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "distsgd", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
    )


@pytest.mark.ray
def test_a_report_comes_back(head: Head, file: Path, tmp_path: Path) -> None:
    """A job that is followed prints its log, and brings the report that this machine would write.

    Neither disk nor port but the dashboard's is shared, and what Ray reads from the environment
    does not count.
    """
    other = {"RAY_ADDRESS": "127.0.0.1:1", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"}
    options = ("--address", head.address, "--wait", "--out", tmp_path / "out", "--seeds", 1)
    done = distsgd("submit", file, *options, **other)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("job experiment-")
    assert "only algorithm" in done.stdout or "training loss" in done.stdout
    assert distsgd("compare", file, "--seeds", 1, "--out", tmp_path / "here").returncode == 0
    for name in ("report.html", "summary.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


@pytest.mark.ray
def test_ray_s_own_command_works(head: Head, file: Path) -> None:
    """The comparison can be sent with Ray's own command too."""
    command = [
        Path(sys.executable).with_name("ray"),
        "job",
        "submit",
        "--address",
        head.address,
        "--working-dir",
        ".",
        "--",
        "python",
        "-m",
        "distsgd",
        "compare",
        file.name,
        "--on",
        "ray",
        "--out",
        head.home / "plain",
    ]
    done = subprocess.run(
        list(map(str, command)), cwd=file.parent, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (head.home / "plain" / "report.html").is_file()


@pytest.mark.ray
def test_an_interruption_leaves_the_job(head: Head, file: Path, tmp_path: Path) -> None:
    """Ctrl-C ends the looking, not the job: its id is told, and with it the job can be stopped."""
    address = ("--address", head.address)
    storage = ("--storage", head.home / "long runs")
    command = ["submit", file, *address, "--wait", *LONG, *storage]
    with subprocess.Popen(
        [sys.executable, "-m", "distsgd", *map(str, command)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        job = process.stdout.readline().split()[1]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"job {job} goes on. distsgd submit --address {head.address} --stop {job}" in errors
    assert distsgd("submit", *address, "--status", job).stdout in {"PENDING\n", "RUNNING\n"}
    assert distsgd("submit", *address, "--stop", job).returncode == 0
    while (state := distsgd("submit", *address, "--status", job).stdout) != "STOPPED\n":
        assert state in {"PENDING\n", "RUNNING\n"}
    done = distsgd("submit", *address, "--fetch", job, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert f"job {job} has written no report; distsgd submit --logs {job}" in done.stderr
    assert f"entrypoint for job {job}" in distsgd("submit", *address, "--logs", job).stdout


@pytest.mark.ray
def test_what_the_cluster_refuses_is_a_sentence(head: Head) -> None:
    """An unknown job, and a token that is not the cluster's, are answered in one line."""
    question = ("submit", "--address", head.address, "--status", "nobody")
    done = distsgd(*question)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "refuses: Job nobody does not exist" in done.stderr
    done = distsgd(*question, RAY_AUTH_TOKEN="not the token of this cluster")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN" in done.stderr


def test_a_folder_that_is_too_large_is_refused(file: Path, call: Call) -> None:
    """More than Ray takes is refused before anything is sent, with the largest files by name."""
    for name, size in (("big", 90), ("bigger", 200), (".hidden", 900), ("small", 1)):
        with (file.parent / name).open("wb") as sparse:
            sparse.truncate(size * 2**20)
    code, _, said = call("submit", file)
    assert code == 2
    assert "has 305.1 MB, and Ray takes 105 MB" in said
    assert "bigger (209.7 MB), big (94.4 MB), small (1.0 MB). Keep the experiment" in said


class Silent(http.server.BaseHTTPRequestHandler):
    """A server that is none of Ray's."""

    def do_GET(self) -> None:
        """Answer with nothing of use."""
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_an_address_without_a_dashboard_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server, one that says nothing, one of another kind: none is waited for."""
    monkeypatch.setattr(submission, "PROBE_S", 0.3)
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent) as other,
    ):
        threading.Thread(target=other.serve_forever, daemon=True).start()
        ports = [mute.getsockname()[1], other.server_port, *free_ports(1)]
        for address in (f"http://127.0.0.1:{port}" for port in ports):
            with (
                pytest.raises(ConfigError, match=f"no dashboard of Ray answers at {address}"),
                submission.dashboard(address),
            ):
                pytest.fail("connected")
        other.shutdown()
    for address in ("127.0.0.1:8265", "ray://head:10001", "http://"):
        with (
            pytest.raises(ConfigError, match=f"must be http://HOST:8265.*not {address}"),
            submission.dashboard(address),
        ):
            pytest.fail("connected")


def test_a_wrong_experiment_is_found_here(file: Path, call: Call) -> None:
    """A misspelt key is found before a cluster is asked."""
    code, _, said = call("submit", file, "--set", "epoks=3")
    assert code == 2
    assert "did you mean 'epochs'" in said


def test_data_travel_and_caches_stay(file: Path, tmp_path: Path) -> None:
    """The experiment's folder and this package travel, also what git ignores; caches do not."""
    for name in ("data/rows.svm", ".venv/big", "__pycache__/x.pyc", "results/old"):
        (file.parent / name).parent.mkdir(exist_ok=True)
        (file.parent / name).touch()
    (file.parent / ".gitignore").write_text("data\n")
    found = submission.environment(file, tmp_path / "staged")
    sent = Path(found["working_dir"])
    assert {str(path.relative_to(sent)) for path in sent.rglob("*")} == {
        "experiment.toml",
        "mine.py",
        "data",
        "data/rows.svm",
    }
    (package,) = map(Path, found["py_modules"])
    assert (package / "__main__.py").is_file()
    assert not list(package.rglob("__pycache__"))


def test_a_job_s_command_is_one_of_ours(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell takes the job's command line apart into one that our own command understands."""
    order = Order(Path("a b.toml"), ["--set", "note=it's"])
    line = entrypoint(order, "~/distsgd/x").replace("python -m distsgd", "printf '%s\\n'")
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "compare",
        "a b.toml",
        "--on",
        "ray",
        "--set",
        "note=it's",
        "--out",
        str(Path.home() / "distsgd" / "x"),
    ]
    monkeypatch.chdir(tmp_path)
    assert call(*done.stdout.splitlines())[0] == 2  # it gets as far as the file, which is not here


def test_a_delivery_arrives(tmp_path: Path) -> None:
    """What a shell packs is unpacked here byte for byte; a failure gives nothing."""
    (tmp_path / "it's").mkdir()
    contents = {"report.html": b"\x00<html>" * 1000, "summary.json": b"{}"}
    line = delivery("~/it\\'s")
    for expected in ({}, contents):
        done = subprocess.run(line, shell=True, capture_output=True, text=True, env={"HOME": str(tmp_path)}, check=True)
        assert received(f"Running entrypoint: {line}\n{done.stderr}{done.stdout}") == expected
        for name, content in contents.items():
            (tmp_path / "it's" / name).write_bytes(content)
    assert received("") == received("YWJj\n") == {}


def answers(*states: str) -> Callable[[str], object]:
    """Return a function that gives one state after the other; a question mark is no answer."""
    waiting = iter(states)

    def answer(_: str) -> object:
        state = next(waiting)
        if state == "?":
            raise requests.ConnectionError
        return SimpleNamespace(value=state)

    return answer


def test_a_log_is_printed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a job writes is given once and whole, also when the dashboard is away for a while."""
    monkeypatch.setattr(submission, "POLL_S", 0.0)
    logs = iter(["", "one\n", "one\ntwo\n", "one\ntwo\nthree\n"])
    client = SimpleNamespace(
        get_job_status=answers("PENDING", "RUNNING", "?", "RUNNING", "?", "SUCCEEDED"),
        get_job_logs=lambda _: next(logs),
    )
    said: list[str] = []
    assert follow(client, "job", said.append) == "SUCCEEDED"
    assert "".join(said) == "one\ntwo\nthree\n"
    monkeypatch.setattr(submission, "LOST_S", -1.0)
    with pytest.raises(requests.ConnectionError):
        follow(SimpleNamespace(get_job_status=answers("?")), "job", said.append)


def test_tar_and_base64_are_here() -> None:
    """The two programs that pack a report are on this machine, as on those of a cluster."""
    assert shutil.which("tar")
    assert shutil.which("base64")
