"""What a service keeps: the rows of the trace, and a record of each worker."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from distsgd.errors import WireError
from distsgd.live.messages.wire import Header, Kind
from distsgd.trace import ROW


class WorkerMemory(msgspec.Struct):
    """What a checkpoint keeps of a worker."""

    is_alive: bool
    has_rows: bool
    step: int
    pushed: int
    n_pulls: int


class ServiceMemory(msgspec.Struct):
    """What a checkpoint keeps of the service, beside the rows."""

    version: int
    gradients: int
    closed_gradients: int
    closed_at: float
    workers: list[WorkerMemory]


class Rows:
    """Rows of a trace in an array that grows."""

    def __init__(self, first: NDArray[np.void] | None = None) -> None:
        self.n = 0 if first is None else len(first)
        self._array = np.empty(max(1024, 2 * self.n), ROW)
        if first is not None:
            self._array[: self.n] = first
        self._done = self._array["done"]

    def append(self, row: tuple[float | int, ...]) -> int:
        """Write one row behind the others; return its number."""
        number = self.n
        if number == len(self._array):
            self._array = np.concatenate([self._array, np.empty_like(self._array)])
            self._done = self._array["done"]
        self._array[number] = row
        self.n = number + 1
        return number

    def set_done(self, number: int, seconds: float) -> None:
        """Say when the worker of a row went on [s]."""
        self._done[number] = seconds

    def since(self, first: int) -> NDArray[np.void]:
        """Return a copy of the rows from number `first` on."""
        return self._array[first : self.n].copy()


@dataclass(slots=True)
class WorkerRecord:
    """What the service knows of a worker."""

    number: int
    is_alive: bool = True
    has_rows: bool = False
    """Whether the trace has a row of it, so that its next start is recorded as a join."""
    is_started: bool = False
    has_left: bool = False
    """Whether its last row says that it left."""
    life: int = 0
    waits: Literal["", "its start", "its round", "slower workers"] = ""
    """What it waits for at the server."""
    sequence: int = 0
    sent: float = 0.0
    brings_pull: bool = False
    due_step: int = 0
    """The step in front of which its next request is due."""
    expected: tuple[Kind, ...] = ()
    step: int = 0
    served: int = 0
    """The step of its last row."""
    read: int = 0
    oldest: int = 0
    pushed: int = 0
    joins: int = 0
    """The version whose round it may join."""
    n_pulls: int = 0
    row: int = -1
    went_on: float = 0.0
    """When it did after its last row, as far as is known [s]."""
    open_row: int = -1
    """The row whose worker has not said yet when it went on."""

    def check(self, header: Header) -> None:
        """Raise a `WireError` unless `header` is what the worker's cycle has next."""
        is_next = header.kind in self.expected[:1] and header.step == self.due_step
        if is_next and self.is_started and not self.waits:
            return
        found = f"worker {self.number} sent {Kind(header.kind).name.lower()} at step {header.step}"
        if not self.is_started:
            msg = f"{found} where join was expected"
        elif self.waits:
            msg = f"{found} while it waits for {self.waits}"
        else:
            expected = self.expected[0].name.lower()
            msg = f"{found} where {expected} at step {self.due_step} was expected"
        raise WireError(msg)


class Held(NamedTuple):
    """A push of the open round."""

    worker: int
    life: int
    step: int
    read: int
