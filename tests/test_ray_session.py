import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from distsgd import ConfigError
from distsgd.live.ray import session as ray_session
from distsgd.live.ray.session import connected, package

pytestmark = pytest.mark.long

EXPERIMENT = """
updates = 2000
evaluations = 2
[problem]
name = "quadratic"
curvature = [1.0, 2.0]
[algorithms.mine]
algorithm = "downpour"
learning_rate = 0.1
[fleets.machines]
workers = 2
"""
COMPARE = (sys.executable, "-W", "error", "-m", "distsgd", "compare", "experiment.toml")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder with an experiment, whose short name leaves room for the names of sockets."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as name:
        (Path(name) / "home").mkdir()
        (Path(name) / "experiment.toml").write_text(EXPERIMENT)
        yield Path(name)


def started(folder: Path, *options: object) -> subprocess.Popen[str]:
    """Start a comparison in `folder`, as a user does who has never used Ray."""
    environment = {name: value for name, value in os.environ.items() if "RAY_" not in name}
    environment |= {"TMPDIR": str(folder), "HOME": str(folder / "home")}
    return subprocess.Popen(
        [*COMPARE, *map(str, options)],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def left(folder: Path) -> set[str]:
    """Return what is in `folder` beside the experiment and the files of compiled code."""
    known = {"experiment.toml", "home"}
    return {path.name for path in folder.iterdir()} - known


@pytest.mark.ray
def test_ray_leaves_no_trace(folder: Path) -> None:
    """A comparison on a Ray of our own says what a local one says, and leaves its results only."""
    options = ("--seeds", 3, "--processes", 1)
    local = started(folder, *options, "--out", "local").communicate(timeout=120)
    process = started(folder, *options, "--on", "ray", "--out", "ray")
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0
    assert all(" runs (" in line for line in errors.splitlines())  # how far it is, every 10 s
    assert said.replace("wrote ray/", "wrote local/") == local[0]
    assert (folder / "ray/report.html").read_text() == (folder / "local/report.html").read_text()
    assert left(folder) == {"local", "ray"}
    assert not (folder / "home" / ".ray").exists()


@pytest.mark.ray
def test_an_interruption_keeps_what_has_finished(folder: Path) -> None:
    """Ctrl-C on Ray keeps the runs that have finished, writes their report, and ends every process.

    The terminal sends it to all processes of its group.
    """
    process = started(folder, "--seeds", 5_000, "--on", "ray", "--out", "out")
    while process.poll() is None and len(list((folder / "out").glob("runs/[0-9a-f]*"))) < 3:
        time.sleep(0.05)
    others = psutil.Process(process.pid).children(recursive=True)
    assert any("raylet" in other.name() for other in others)
    os.killpg(process.pid, signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in errors
    assert "Traceback" not in errors
    assert "was stopped" in said
    assert (folder / "out" / "report.html").is_file()
    assert psutil.wait_procs(others, timeout=60)[1] == []
    assert left(folder) == {"out"}


@contextlib.contextmanager
def listening() -> Iterator[str]:
    """Give the address of a server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_server_of_another_kind_is_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a port without a server nor one that does not talk like Ray is waited for."""
    monkeypatch.setattr(ray_session, "PROBE_S", 0.3)
    with listening() as address, pytest.raises(ConfigError, match=f"answers at {address}; start"):
        connected(address).__enter__()
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=rf"no Ray cluster answers at {address}.*RAY_ADDRESS"):
        connected().__enter__()


def test_an_address_of_another_kind_is_refused() -> None:
    """An address for Ray's client is answered with the command for drivers outside a cluster."""
    with pytest.raises(ConfigError, match=r"HOST:PORT.*ray://head:10001.*distsgd submit"):
        connected("ray://head:10001").__enter__()


def test_versions_that_differ_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray says about a cluster with other versions becomes a sentence with both of them."""
    check = package("ray._private.utils").check_version_info

    def start(**_: object) -> None:
        check({"ray_version": "2.1.0", "python_version": "3.7.1"}, "here")

    monkeypatch.setattr(ray_session, "_start", start)
    own = f"this process Ray {package('ray').__version__} on Python {sys.version.split()[0]}"
    with pytest.raises(ConfigError, match=rf"has Ray 2.1.0 on Python 3.7.1, and {own}; install"):
        connected("auto").__enter__()


def test_a_cluster_that_refuses_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else keeps this process from joining is told in one line that says what to check."""

    def start(**_: object) -> None:
        raise ConnectionError("Failed to connect.\nAnd more.")

    monkeypatch.setattr(ray_session, "_start", start)
    with pytest.raises(ConfigError, match=r"cluster at auto: Failed to connect. This machine must"):
        connected("auto").__enter__()


def test_ray_is_needed_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package ray everything can be imported, and a connection says what to install."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"not installed; install it with pip install 'ray\["):
        connected().__enter__()


def test_the_command_does_not_import_ray() -> None:
    """A comparison on this machine never imports ray."""
    asked = "print('ray' in sys.modules, 'grpc' in sys.modules)"
    code = f"import sys\nimport distsgd.commands.actions\n{asked}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"
