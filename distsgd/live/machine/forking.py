"""The launcher: a clean process that forks those of a live run, and takes them with it at its end.

1. A program may have threads, and a process with threads must not fork. So a fresh interpreter is
   started, which gets a function and its job over a private pipe, and forks. The function must not
   use what starts threads, such as a framework of which the job has models.
2. What the forked processes read, the data above all, exists once: no process writes it, so the
   kernel makes no copy. What they share to write is an anonymous mapping made before the fork. It
   has no name, so that nothing is left to clean up, whichever process is killed.
3. Every process is killed by the kernel when the one that started it ends. The launcher ends at the
   end of its pipe, too.
4. The launcher is a session of its own: Ctrl-C reaches the program alone, which decides.
5. A forked process that fails sends a `Failure` before it ends; one that is killed sends nothing.
   The launcher stays until its outcome has been heard: a question may cross it on the way.

Whatever is imported here is imported by processes that fork, so it must not start threads.
"""

import contextlib
import ctypes
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import cloudpickle  # type: ignore[import-untyped] # cloudpickle ships no types
import numpy as np
import psutil

from distsgd.errors import ConfigError, WorkerLost, sendable
from distsgd.files import open_standard_streams
from distsgd.live.machine.failure import Failure

GRACE_S = 5.0
"""How long the processes of a run may take to end by themselves."""

ASK_S = 0.2
"""Time between two questions of the program how the work goes, and to its hooks."""

_PR_SET_PDEATHSIG = 1
"""From ``linux/prctl.h``."""
_LIBRARIES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_FRAMEWORKS = ("NPROC", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
"""What JAX reads, and TensorFlow; PyTorch goes by the libraries."""


class ParentGone(BaseException):
    """The program that wanted the run has closed the pipe, or has ended."""


class End(NamedTuple):
    """How a forked process ended."""

    code: int
    """Exit code, 0 for success; the negative number of a signal."""
    failure: Failure | None = None
    """The exception that ended it; None if it has done its work, or was killed."""

    def __str__(self) -> str:
        if self.failure is not None:
            return f"failed:\n{self.failure.traceback}"
        return f"ended {described(self.code)}"


class Waited(NamedTuple):
    """What `wait` has waited for."""

    message: Any
    """Message of the parent, None if there is none."""
    ended: dict[int, End]
    """The processes that have ended, by number; they are not waited for again."""
    ready: list[Connection]
    """The others that can be read, or have ended."""


class _Done(NamedTuple):
    outcome: Any


class _Failed(NamedTuple):
    error: Exception


_failures: dict[int, Connection] = {}
"""Brings the `Failure` of each forked process, by number."""


def described(code: int) -> str:
    """Return how a process ended, from its exit code, as the end of a sentence."""
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


# In the program


@contextlib.contextmanager
def launcher(main: Callable[[Any, Connection], Any], job: Any) -> Iterator[Connection]:  # noqa: ANN401 # whatever `main` takes
    """Run ``main(job, pipe)`` in a clean process; whatever it has started ends with the block.

    The block gets the other end of the pipe, which `receive` and `follow` read: the latter returns,
    or raises, what `main` does. A process that has ended while the block was waiting for it or
    writing to it is a `WorkerLost`.
    """
    open_standard_streams()
    here, there = socket.socketpair()
    with here, there:
        process = _started(there)
        pipe = Connection(here.detach())
    try:
        with pipe:
            _send(pipe, (main, job))
            yield pipe
    except (EOFError, BrokenPipeError, ConnectionResetError):
        how = described(_ended(process))
        raise WorkerLost(f"the process that keeps the workers ended {how} before the run was done") from None
    finally:
        _ended(process)


def receive(pipe: Connection) -> Any:  # noqa: ANN401 # whatever the other side sends
    """Return the launcher's next message, or raise the exception that ended it there."""
    message = pipe.recv()
    if isinstance(message, _Failed):
        raise message.error
    return message


def follow(pipe: Connection, stop: Callable[[], bool], watch: Callable[[Any], object] | None) -> Any:  # noqa: ANN401 # what `main` returns
    """Return what the launcher's function does; until then, a few times a second, ask `stop`.

    The function is told each answer of `stop`, and replies with what `watch` is told.
    """
    while True:
        pipe.send(bool(stop()))
        answer = receive(pipe)
        if isinstance(answer, _Done):
            return answer.outcome
        if watch is not None:
            watch(answer)
        pipe.poll(ASK_S)  # only an outcome comes unasked


def check_memory(needed_bytes: float, what: str, advice: str) -> None:
    """Raise a `ConfigError` if there is not enough memory for `what`; `advice` says what to do."""
    free_bytes = _free_bytes()
    if needed_bytes > free_bytes:
        msg = f"{what} needs {needed_bytes / 1e9:.1f} GB of shared memory, {free_bytes / 1e9:.1f} GB are free; {advice}"
        raise ConfigError(msg)


def _free_bytes() -> float:
    free = float(psutil.virtual_memory().available)
    if Path("/proc/sys/vm/overcommit_memory").read_text().strip() != "2":
        return free
    # here the kernel promises no more than it has, whatever is in use by now
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    kilobytes = {words[0]: float(words[1]) for words in lines}
    return min(free, 1024.0 * (kilobytes["CommitLimit:"] - kilobytes["Committed_AS:"]))


def _started(end: socket.socket) -> subprocess.Popen[bytes]:
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import launch_for; launch_for({end.fileno()}, {os.getpid()})"],
        env=os.environ | dict.fromkeys(_LIBRARIES + _FRAMEWORKS, "1") | {"PYTHONPATH": paths},
        stdin=subprocess.DEVNULL,
        pass_fds=[end.fileno()],
        start_new_session=True,
    )


def _ended(process: subprocess.Popen[bytes]) -> int:
    """Return the exit code of the launcher; nothing of its process group is left."""
    if process.returncode is None:
        ended = os.pidfd_open(process.pid)
        try:
            wait_for([ended], GRACE_S)
        finally:
            os.close(ended)
            # before it is waited for: until then no other process can get its number
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode


def _send(pipe: Connection, content: Any) -> None:  # noqa: ANN401 # whatever can be pickled
    """Send arrays as they are: pickled into the message, they would be copied twice."""
    arrays: list[pickle.PickleBuffer] = []
    with sendable():
        message = cloudpickle.dumps(content, protocol=5, buffer_callback=arrays.append)
    pipe.send([array.raw().nbytes for array in arrays])
    for array in arrays:
        pipe.send_bytes(array.raw())
    pipe.send_bytes(message)


def _receive(pipe: Connection) -> Any:  # noqa: ANN401 # whatever was sent
    # NumPy asks for huge pages, over which a processor fetches ahead
    arrays = [np.empty(n_bytes, np.uint8) for n_bytes in pipe.recv()]
    for array in arrays:
        if array.size:
            pipe.recv_bytes_into(array)
        else:
            pipe.recv_bytes()
    return pickle.loads(pipe.recv_bytes(), buffers=arrays)


# In the launcher


def wait(
    pipe: Connection, processes: Collection[int], timeout_s: float | None = None, others: Collection[Connection] = ()
) -> Waited:
    """Wait for a message of the parent, the end of a forked process, or something to read.

    The pipe is the launcher's end; when it has ended, that is a `ParentGone`. The processes are
    what `fork` has returned, without those whose end has been told; `others` are more to listen to.
    It waits for ever by default, and not at all if `timeout_s` is 0; then nothing has happened.
    """
    opened = {os.pidfd_open(process): process for process in processes}
    try:
        happened = wait_for([pipe, *opened, *others], timeout_s)
        ended = {opened[one]: _end(opened[one]) for one in happened if isinstance(one, int)}
    finally:
        for one in opened:
            os.close(one)
    ready = [one for one in others if one in happened]
    if pipe not in happened:
        return Waited(None, ended, ready)
    try:
        return Waited(pipe.recv(), ended, ready)
    except (EOFError, ConnectionResetError):
        raise ParentGone from None


def fork(function: Callable[..., None], *arguments: Any) -> int:  # noqa: ANN401 # those of `function`
    """Call `function` in a forked process, which ends with this one, and return its number.

    Nothing of the caller's runs a second time there: the process ends with the function. An
    exception ends it with the exit code 1, and `wait` tells its `Failure`.
    """
    here, there = Pipe(duplex=False)
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        there.close()
        _failures[process] = here
        return process
    code = 1
    try:
        die_with(parent)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        function(*arguments)
        code = 0
    except BaseException as error:  # noqa: BLE001 # whatever it is, the caller's code must not go on here
        there.send(Failure.of(error))
    finally:
        _leave(code)


def shared(n_bytes: int) -> mmap.mmap:
    """Return zeros that this process and those that it forks later share; they have no name."""
    return mmap.mmap(-1, max(1, n_bytes))


def die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent`, which started it, ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it has ended before the kernel was told
        os._exit(1)


def _end(process: int) -> End:
    _, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    with _failures.pop(process) as pipe, contextlib.suppress(EOFError):
        if code > 0 and pipe.poll():  # a process that was killed may have sent a part
            return End(code, pipe.recv())
    return End(code)


def _leave(code: int) -> NoReturn:
    _flush()
    os._exit(code)


def _flush() -> None:
    with contextlib.suppress(OSError, ValueError):  # no process may be left to read it
        sys.stdout.flush()
        sys.stderr.flush()


def _sendable(error: Exception) -> Exception:
    """Return `error` with its traceback as a note, or what says the same if it cannot be sent."""
    text = traceback.format_exc()
    error.add_note(f"In the process that keeps the workers:\n{text}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 # pickle calls the exception's own code
        return WorkerLost(f"the process that keeps the workers failed:\n{text}")
    return error


def launch_for(end: int, parent: int) -> NoReturn:
    """Be the launcher of `parent`: receive a function and its job over `end`, call it, and end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(parent)
    pipe = Connection(end)
    try:
        try:
            main, job = _receive(pipe)
            pipe.send(_Done(main(job, pipe)))
        except Exception as error:  # noqa: BLE001 # it is raised again in the program
            pipe.send(_Failed(_sendable(error)))
        while True:  # the program may just be asking
            wait(pipe, ())
    finally:  # it has what it wanted, or is no more
        _flush()
        os.killpg(0, signal.SIGKILL)
