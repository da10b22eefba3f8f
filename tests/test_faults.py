import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import soak
from disturbance import Disturbance
from disturbed_problem import DisturbedProblem
from small_float32 import SmallFloat32

import distsgd as ds
from distsgd.algorithm import Algorithm
from distsgd.errors import WorkerLost
from distsgd.live.machine.folder import remove_dead
from distsgd.run import Run
from distsgd.trace import DROP, JOIN, LEAVE, PUSH

pytestmark = pytest.mark.long

PROBLEM = ds.problems.softmax(ds.data.digits())
LIMIT_S = 60.0
"""A test that takes longer hangs."""


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the folder in which run folders are made; nothing may be left in it, nor any process."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = psutil.Process().children(recursive=True)  # of other tests' pools
    yield tmp_path
    assert list(tmp_path.glob("distsgd-*")) == []
    assert set(psutil.Process().children(recursive=True)) <= set(before)


def named(name: str, root: int | None = None) -> list[psutil.Process]:
    """Return the processes of a live run that have a name, such as ``worker 1``."""
    children = psutil.Process(root).children(recursive=True)
    return [one for one in children if one.name() == name]


class DisturbedRun(Disturbance):
    """Does something to a run on this machine, and replays it."""

    limit_s = LIMIT_S

    def launch(self, algorithm: Algorithm, problem: ds.Problem = PROBLEM, **options: object) -> Run:
        """Make the run, and check that it is its replay."""
        options = {"workers": 3, "delay": ds.constant(0.002), "heartbeat": 5.0} | options
        run = ds.launch(
            algorithm, problem, updates=10**9, batch=8, evaluations=10**7, watch=self.watch, stop=self.stop, **options
        )
        assert run.status == "stopped"
        run.trace.verify()
        again = ds.replay(run, algorithm, problem)
        assert run.x.dtype == problem.dtype
        assert run.x.tobytes() == again.x.tobytes()
        assert run.history.equals(again.history, null_equal=True)
        return run


def kill(name: str, number: int = signal.SIGKILL) -> Callable[[], None]:
    """Return what sends a signal to the process of that name."""
    return lambda: named(name)[0].send_signal(number)


def verbs_of(run: Run, worker: int) -> list[int]:
    """Return what the server wrote down of a worker."""
    rows = run.trace.rows
    return rows["verb"][rows["worker"] == worker].tolist()


ASYNCHRONOUS = ds.algorithms.downpour(0.1, n_push=2, n_fetch=3)
SYNCHRONOUS = ds.algorithms.synchronous(0.1)


@pytest.mark.parametrize("algorithm", [ASYNCHRONOUS, SYNCHRONOUS], ids=lambda one: one.name)
def test_a_killed_worker_is_replaced(algorithm: Algorithm) -> None:
    """A worker that is killed leaves and joins again, and the run goes on, rounds too."""
    disturbed = DisturbedRun(kill("worker 1"), has_recovered=lambda seen: seen.alive == 3 and seen.lost == 1)
    run = disturbed.launch(algorithm, on_loss="replace")
    verbs = verbs_of(run, 1)
    assert verbs.count(LEAVE) == verbs.count(JOIN) == 1
    assert PUSH in verbs[verbs.index(JOIN) :]
    assert run.counts["lost_workers"] == 1


@pytest.mark.parametrize("algorithm", [ASYNCHRONOUS, SYNCHRONOUS], ids=lambda one: one.name)
def test_others_go_on_without_a_killed_worker(algorithm: Algorithm) -> None:
    """Where workers may shrink, the others go on, and a round waits for no more than those."""
    disturbed = DisturbedRun(kill("worker 1"), has_recovered=lambda seen: seen.alive == 2)
    run = disturbed.launch(algorithm, on_loss="shrink")
    assert verbs_of(run, 1)[-1] == LEAVE
    assert run.counts["lost_workers"] == 1


def test_a_worker_that_hangs_is_replaced() -> None:
    """A worker that misses five heartbeats is given up, killed and replaced."""
    disturbed = DisturbedRun(
        kill("worker 1", signal.SIGSTOP), has_recovered=lambda seen: seen.alive == 3 and seen.lost >= 1
    )
    run = disturbed.launch(ASYNCHRONOUS, heartbeat=0.1)
    verbs = verbs_of(run, 1)
    assert verbs.index(LEAVE) < verbs.index(JOIN)


@pytest.mark.parametrize(("shards", "name"), [(1, "server 0"), (3, "server 0"), (3, "server 2"), (1, "evaluator")])
def test_a_killed_server_starts_again(shards: int, name: str) -> None:
    """Servers go on from the last checkpoint, workers join again, and nothing is counted twice."""
    disturbed = DisturbedRun(kill(name), has_recovered=lambda seen: seen.alive == 3)
    run = disturbed.launch(ASYNCHRONOUS, shards=shards, checkpoint_every=0.1)
    assert run.counts["server_restarts"] == 1
    assert all(JOIN in verbs_of(run, worker) for worker in range(3))


def test_a_server_starts_again_with_float32_columns() -> None:
    """What a checkpoint keeps are the bits of the columns, in their own type."""
    disturbed = DisturbedRun(kill("server 0"), has_recovered=lambda seen: seen.alive == 3)
    run = disturbed.launch(ASYNCHRONOUS, SmallFloat32(), shards=2, checkpoint_every=0.1)
    assert run.counts["server_restarts"] == 1


def test_a_push_that_comes_again_is_applied_once() -> None:
    """Requests that were sent again while a server slept are served once."""

    def sleep() -> None:
        (server,) = named("server 0")
        server.suspend()
        time.sleep(1.3)  # the workers send again after a second
        server.resume()

    run = DisturbedRun(sleep, has_recovered=lambda seen: True).launch(ASYNCHRONOUS)
    rows = run.trace.rows
    pushes = rows[np.isin(rows["verb"], (PUSH, DROP))]
    served = list(zip(pushes["worker"].tolist(), pushes["step"].tolist(), strict=True))
    assert len(set(served)) == len(served)
    assert run.counts["lost_workers"] == 0


class Deadly(DisturbedProblem):
    """A problem that kills a worker that evaluates its gradient a third time."""

    problem = PROBLEM

    def disturb(self, step: int) -> None:
        """Kill the worker."""
        if step == 3:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("on_loss", "message"), [("replace", r"worker 0 was lost \d+ times"), ("shrink", "all workers are lost")]
)
def test_a_run_that_only_loses_ends(on_loss: str, message: str) -> None:
    """Workers that are lost again and again end the run with an error that says what to do."""
    with pytest.raises(WorkerLost, match=f"{message}.* SIGKILL.*; "):
        ds.launch(ds.algorithms.downpour(0.1), Deadly(), workers=1, updates=10**9, batch=8, on_loss=on_loss)


PROGRAM = """
import signal, sys, tempfile
tempfile.tempdir = sys.argv[1]
import distsgd as ds
asked = []
if sys.argv[2]:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: asked.append(number))
run = ds.launch(
    ds.algorithms.downpour(0.1), ds.problems.softmax(ds.data.digits()), workers=2, batch=8,
    updates=10**9, delay=ds.constant(0.002), stop=lambda: bool(asked),
    watch=lambda progress: print(progress.updates, flush=True),
)
run.save(sys.argv[2])
sys.exit(128 + asked[0])
"""


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process still does anything; its heir may be slow to see it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


class Program:
    """A program with a live run, in a process group of its own, when the run is on its way."""

    def __init__(self, folders: Path, out: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folders), out],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        while not int(self.process.stdout.readline()):
            pass
        self.children = psutil.Process(self.process.pid).children(recursive=True)
        assert len(self.children) >= 5

    def end(self, number: int) -> int:
        """Send a signal to the group, as a terminal does, and return the exit code."""
        os.killpg(self.process.pid, number)
        self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode

    def alive(self) -> list[psutil.Process]:
        """Return the processes of the run that have not ended after ten seconds."""
        until = time.monotonic() + 10.0
        while alive := [one for one in self.children if is_alive(one)]:
            if time.monotonic() > until:
                break
            time.sleep(0.05)
        return alive


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_stopped_program_saves_what_it_has(number: int, folders: Path) -> None:
    """A program that is told to end saves the run so far, and leaves nothing behind."""
    program = Program(folders, str(folders / "out"))
    assert program.end(number) == 128 + number
    assert program.alive() == []
    run = ds.load(folders / "out")
    assert run.status == "stopped"
    again = ds.replay(run, ds.algorithms.downpour(0.1), PROBLEM)
    assert run.x.tobytes() == again.x.tobytes()


def test_an_interrupted_program_takes_all_with_it(folders: Path) -> None:
    """Ctrl-C in a program that does not expect it ends all processes, and removes the folder."""
    program = Program(folders, "")
    assert program.end(signal.SIGINT) == -signal.SIGINT
    assert program.alive() == []


def test_a_killed_program_takes_all_with_it(folders: Path) -> None:
    """When a program is killed its processes end, and the next run removes its folder."""
    program = Program(folders, "")
    assert program.end(signal.SIGKILL) == -signal.SIGKILL
    assert program.alive() == []
    assert len(list(folders.glob("distsgd-run-*"))) == 1
    remove_dead()


def test_a_soak_replays_its_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of the soak, whose processes are killed at random, is its replay."""
    monkeypatch.setattr(soak, "RUN_S", 3.0)
    line = next(soak.lines(minutes=1.0, seed=0))
    assert line.replay == "equal"
