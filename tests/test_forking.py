import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

import numpy as np
import psutil
import pytest

import distsgd as ds
from distsgd import ConfigError
from distsgd.errors import WorkerLost
from distsgd.live.machine import forking
from distsgd.live.machine.forking import check_memory, fork, launcher, receive, shared, wait

KILLED = """
import sys
sys.path[:0] = {path!r}
from distsgd.live.machine.forking import launcher
from test_forking import family
with launcher(family, None) as pipe:
    print(*pipe.recv(), flush=True)
    pipe.recv()
"""


def hang() -> NoReturn:
    """Do nothing, for ever."""
    while True:
        threading.Event().wait()


def start_another(_: object, pipe: Connection) -> None:
    """Start a program that does not end with the launcher, tell the numbers of both, and hang."""
    pipe.send((os.getpid(), subprocess.Popen(["sleep", "1000"]).pid))
    hang()


def have_a_child(pipe: Connection) -> None:
    """Fork a process, tell the numbers of both, and hang."""
    pipe.send((os.getpid(), fork(hang)))
    hang()


def family(_: object, pipe: Connection) -> None:
    """Tell the numbers of the launcher, of a child and of a grandchild, and wait for the end."""
    fork(have_a_child, mine := Pair())
    pipe.send((os.getpid(), *mine.get()))
    hang()


class Pair:
    """Two numbers that a child tells the launcher."""

    def __init__(self) -> None:
        self.numbers = np.frombuffer(shared(16), np.int64)

    def send(self, numbers: tuple[int, int]) -> None:
        """Leave two numbers."""
        self.numbers[:] = numbers

    def get(self) -> list[int]:
        """Return them when they are there."""
        while not self.numbers.all():
            time.sleep(0.001)
        return self.numbers.tolist()


def answer(job: object, pipe: Connection) -> None:
    """Send the job back, and then every message, until the parent has gone."""
    pipe.send(job)
    while True:
        pipe.send(wait(pipe, []).message)


def look_around(_: object, pipe: Connection) -> None:
    """Tell the number of threads, and whether polars is here."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    threads = next(line for line in status.splitlines() if line.startswith("Threads"))
    pipe.send((int(threads.split()[1]), "polars" in sys.modules))


def complain(error: Exception, _: Connection) -> None:
    """Raise the job."""
    raise error


class UnsendableError(Exception):
    """An exception that cannot be made from what pickle keeps of it."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def raise_unsendable(_: object, __: Connection) -> None:
    """Raise what pickle cannot bring over."""
    raise UnsendableError(1, 2)


def divide(number: float) -> None:
    """Divide by a number."""
    np.divide(1, int(1 / number))


def lose_children(_: object, pipe: Connection) -> None:
    """Fork three processes, of which one ends, one fails and one is killed; tell how."""
    children = [fork(divide, 1.0), fork(divide, 0.0), fork(hang)]
    os.kill(children[2], signal.SIGKILL)
    ended = {}
    while len(ended) < len(children):
        ended |= wait(pipe, set(children) - ended.keys()).ended
    pipe.send([ended[child] for child in children])


def kill_a_launcher(processes: list[int]) -> None:
    """Kill a launcher from outside, and wait for its next message."""
    with launcher(family, None) as pipe:
        processes.extend(receive(pipe))
        os.kill(processes[0], signal.SIGKILL)
        receive(pipe)


def gone(processes: Iterable[int], seconds: float = 10.0) -> bool:
    """Return whether processes are gone before the deadline."""
    _, alive = psutil.wait_procs([psutil.Process(one) for one in processes if psutil.pid_exists(one)], seconds)
    return not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def test_a_job_arrives_as_it_was_sent() -> None:
    """A job has the same content on the other side, whatever the layout of its arrays."""
    table = np.arange(12.0).reshape(3, 4)
    job = {"a": table, "b": table[:, ::2], "empty": np.empty((0, 3)), "f": hang}
    with launcher(answer, job) as pipe:
        back = receive(pipe)
    assert back["f"] is hang
    np.testing.assert_array_equal(back["a"], job["a"])
    np.testing.assert_array_equal(back["b"], job["b"])
    assert back["empty"].shape == (0, 3)


def test_a_launcher_has_one_thread() -> None:
    """With a problem at hand a launcher has one thread, and nothing that starts others."""
    problem = ds.problems.logistic(ds.data.sparse(20, 10, 3))
    with launcher(look_around, (problem, ds.algorithms.hogwild(0.1))) as pipe:
        assert receive(pipe) == (1, False)


def test_an_exception_comes_over() -> None:
    """An exception in the launcher is raised in the program, with the traceback of over there."""
    caught = pytest.raises(ConfigError, match="batch must be 1")
    with launcher(complain, ConfigError("batch must be 1")) as pipe, caught as raised:
        receive(pipe)
    assert "in complain" in raised.value.__notes__[0]


def test_an_exception_that_cannot_be_sent_is_told() -> None:
    """What pickle cannot bring over is told in words."""
    with launcher(raise_unsendable, None) as pipe, pytest.raises(WorkerLost, match="1 and 2"):
        receive(pipe)


def test_the_ends_of_forked_processes_are_told() -> None:
    """The launcher learns each forked process's exit code, and the traceback if there is one."""
    with launcher(lose_children, None) as pipe:
        done, failed, killed = receive(pipe)
    assert (done.code, failed.code, killed.code) == (0, 1, -signal.SIGKILL)
    assert "ZeroDivisionError" in str(failed)
    assert "SIGKILL" in str(killed)
    assert (done.failure, killed.failure) == (None, None)


def test_nothing_is_left_when_the_parent_is_killed() -> None:
    """If the program is killed, the launcher, its child and its grandchild are gone in 10 s."""
    code = KILLED.format(path=[str(Path(__file__).parent)])
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        processes = [int(word) for word in program.stdout.readline().split()]
        assert len(processes) == 3
        assert all(map(psutil.pid_exists, processes))
        program.kill()
        assert gone(processes)


def test_nothing_is_left_behind_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that do not end by themselves are gone after the block, and after an exception."""
    monkeypatch.setattr(forking, "GRACE_S", 0.1)
    with launcher(family, None) as pipe:
        processes = receive(pipe)
    assert gone(processes)
    with contextlib.suppress(KeyboardInterrupt), launcher(start_another, None) as pipe:
        processes = receive(pipe)
        raise KeyboardInterrupt
    assert gone(processes)


def test_a_killed_launcher_is_told() -> None:
    """A launcher that is killed does not keep the program waiting, which learns how it ended."""
    processes: list[int] = []
    with pytest.raises(WorkerLost, match="SIGKILL"):
        kill_a_launcher(processes)
    assert gone(processes)


def test_an_interruption_is_the_program_s() -> None:
    """A launcher stands in a session of its own, and does not hear Ctrl-C."""
    before = psutil.Process().children()  # of other tests' pools
    with launcher(answer, "hello") as pipe:
        receive(pipe)
        (number,) = (one.pid for one in psutil.Process().children() if one not in before)
        assert os.getsid(number) == number != os.getsid(0)
        os.kill(number, signal.SIGINT)
        pipe.send("still there?")
        assert receive(pipe) == "still there?"


def test_too_little_memory_is_said_before_the_start() -> None:
    """More memory than there is free is refused, with both figures and what to do."""
    check_memory(1.0, "a run", "use less")
    with pytest.raises(ConfigError, match=r"a run needs 1000000.0 GB of shared .* use less"):
        check_memory(1e15, "a run", "use less")
