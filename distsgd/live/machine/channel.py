"""One end of a pipe to another process, which may end at any time and may be replaced."""

import contextlib
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any


class Channel:
    """A pipe to the process that has a task now; without one, messages go nowhere.

    `distsgd.live.machine.forking.wait` tells when a process ends; here it only falls silent.
    """

    def __init__(self) -> None:
        self._pipe: Connection | None = None

    def renew(self) -> Connection:
        """Return the end for another process; the one before is not heard any more."""
        self.close()
        self._pipe, there = Pipe()
        return there

    @property
    def pipes(self) -> list[Connection]:
        """What to wait for: the pipe, if there is one."""
        return [] if self._pipe is None else [self._pipe]

    def send(self, message: Any) -> None:  # noqa: ANN401 # whatever can be pickled
        """Send a message; if the process has ended, it is lost."""
        for pipe in self.pipes:
            with contextlib.suppress(OSError):
                pipe.send(message)

    def received(self) -> list[Any]:
        """Return what has been sent since the last time."""
        found = []
        for pipe in self.pipes:
            with contextlib.suppress(EOFError, OSError):
                while pipe.poll():
                    found.append(pipe.recv())
        return found

    def close(self) -> None:
        """Hear nothing any more."""
        for pipe in self.pipes:
            pipe.close()
        self._pipe = None
