import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from distsgd import ConfigError
from distsgd.experiment.pool import n_processes, work
from distsgd.live.machine.folder import LOCK, locked

HOLD = """
import sys
from pathlib import Path
from distsgd.live.machine.folder import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
WORK = """
import threading
from distsgd.experiment.pool import work
print("begun", flush=True)
for _ in work(lambda common, piece: threading.Event().wait(0.05), None, range(10_000), processes=2):
    print("done", flush=True)
"""


def scaled(common: np.ndarray, piece: int) -> tuple[float, int, str | None]:
    """Return a number, the process that worked, and its number of threads."""
    return float(common[piece]) * 2, os.getpid(), os.environ.get("OPENBLAS_NUM_THREADS")


def fail(_: object, piece: int) -> None:
    """Fail at the third piece."""
    if piece == 2:
        raise ConfigError("just that one")


def end(_: object, piece: int) -> None:
    """End the process in which the third piece is done."""
    if piece == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def test_every_piece_is_done_once_by_other_processes() -> None:
    """Several processes do each piece once, with what is common to all, in one thread each."""
    found = list(work(scaled, np.arange(20.0), range(20), processes=2))
    assert sorted(piece for piece, _ in found) == list(range(20))
    assert all(done[0] == 2 * piece for piece, done in found)
    assert {done[2] for _, done in found} == {"1"}
    assert os.getpid() not in {done[1] for _, done in found}


def test_one_process_works_here_and_in_order() -> None:
    """With one process the work is done in this one, piece by piece, as it is asked for."""
    found = work(scaled, np.arange(3.0), [2, 0, 1], processes=1)
    assert next(found) == (2, (4.0, os.getpid(), os.environ.get("OPENBLAS_NUM_THREADS")))
    assert [piece for piece, _ in found] == [0, 1]


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_keeps_its_type(processes: int) -> None:
    """What a piece of work raises is raised here, also from another process."""
    with pytest.raises(ConfigError, match="just that one"):
        list(work(fail, None, range(4), processes=processes))


def test_a_killed_process_is_a_sentence() -> None:
    """A process that is killed from outside is told in words that say what to do."""
    with pytest.raises(ConfigError, match=r"killed from outside.*run the same command again"):
        list(work(end, None, range(4), processes=2))


def test_work_may_be_left() -> None:
    """Who takes no more of the work ends it, without a warning."""
    running = work(scaled, np.arange(20.0), range(20), processes=2)
    next(running)
    running.close()


def test_processes_are_counted() -> None:
    """Without a number there is a process per core, and a wrong number is named."""
    assert n_processes(3) == 3
    assert n_processes() >= 1
    with pytest.raises(ConfigError, match="processes must be a whole number >= 1"):
        n_processes(0)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_behind(how: signal.Signals) -> None:
    """After Ctrl-C or a kill, the processes that were started end too."""
    with subprocess.Popen(
        [sys.executable, "-c", WORK],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    ) as process:
        while process.stdout.readline() != "done\n":
            pass
        process.send_signal(how)
    deadline = time.monotonic() + 60
    while members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert members(process.pid) == []


def members(session: int) -> list[int]:
    """Return the processes of a session that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, own = path.read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(own) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    """A folder that another process works in is refused with its number, until it ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=f"in use by process {holder.pid}; wait"), locked(tmp_path):
            pytest.fail("two at once")
        holder.stdin.close()
    with locked(tmp_path):
        assert (tmp_path / LOCK).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    """The lock of a process that was killed does not keep anybody out."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        holder.stdout.readline()
        holder.kill()
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text() == str(os.getpid())


def test_a_forked_process_does_not_hold_the_lock(tmp_path: Path) -> None:
    """A folder is free again after the block, also while a process lives that was forked in it."""
    reading, writing = os.pipe()
    with locked(tmp_path):
        child = os.fork()
        if not child:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
    with locked(tmp_path):
        pass
    os.close(writing)
    os.close(reading)
    os.waitpid(child, 0)
