"""The lead's checkpoints: when the next one is due, which have failed, when the last one is whole.

1. A checkpoint that cannot be written does not end the run: the next one is tried when it is due.
   The last one, of which the run is made, is tried again until it is complete.
2. The lead knows what it could not write itself. What another shard could not write is missing when
   the next checkpoint is begun.
"""

import logging
import math

from distsgd.live.server import checkpoint
from distsgd.live.server.checkpoint import Checkpoint, Description, Evaluation, Name, Segment
from distsgd.live.server.service import Service
from distsgd.live.server.shard import Shard
from distsgd.status import Status

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
"""Time until the last checkpoint is tried again; it is doubled each time [s]."""
LATE_S = 2.0
"""Time after which a part of another shard counts as failed [s]."""

log = logging.getLogger("distsgd.live.server.serve")


class Saver:
    """What the lead writes, and what it knows of what has been written.

    A checkpoint has as many parts as there are `shards`; `last` is what the run goes on from.
    """

    def __init__(self, shard: Shard, service: Service, shards: int, every_s: float, last: Checkpoint | None) -> None:
        self._shard, self._service, self._shards, self._every_s = shard, service, shards, every_s
        self.n_failed, self.version = 0, None if last is None else last.description.memory.version
        self._segments: list[Segment] = [] if last is None else last.description.segments
        self._n_rows = 0 if last is None else len(last.rows)
        self._final = last.name if last is not None and last.description.is_last else None
        self._number, self._wait_s = 0, FIRST_WAIT_S
        self._next_at, self._is_failing, self._has_ended = math.inf, False, False
        self._begun: tuple[Name, int, float] | None = None

    @property
    def is_over(self) -> bool:
        """Whether the last checkpoint is complete."""
        is_over = self._final is not None and self._is_complete(self._final)
        if is_over:
            self.version = self._service.version
        return is_over

    def is_due(self, now: float) -> bool:
        """Return whether it is time for a checkpoint; a push that is held is in none."""
        self._next_at = min(self._next_at, now + self._every_s)  # infinite until the first tick
        return now >= self._next_at and not self._service.n_held

    def is_last_due(self, now: float) -> bool:
        """Return whether it is time for the last checkpoint, or to try it again."""
        if self._final is None and not self._has_ended:
            self._has_ended = True
            return True
        return now >= self._next_at and not self.is_over

    def write(self, status: Status, evaluations: list[Evaluation], now: float) -> int | None:
        """Write rows and description; return the checkpoint's number, None if that fails."""
        self._look_back(now)
        self._number += 1
        name = Name(self._shard.life, self._number)
        self._next_at = now + self._every_s
        if self._service.is_over:
            self._next_at = now + self._wait_s
            self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)  # rule 1
        try:
            self._write(name, status, evaluations)
        except Exception as error:  # noqa: BLE001 # a store raises what it likes
            checkpoint.discard(self._shard.folder, f"{name}.*")
            self.fail(error)
            return None
        self._begun = name, self._service.version, now
        self._final = name if self._service.is_over else None
        return self._number

    def fail(self, error: Exception) -> None:
        """Count a checkpoint that could not be written, and say it of the first one."""
        self.n_failed += 1
        self._begun = None
        if not self._is_failing:
            log.warning("no checkpoint can be written, and is tried again: %s", error)
        self._is_failing = True

    def _write(self, name: Name, status: Status, evaluations: list[Evaluation]) -> None:
        folder, service = self._shard.folder, self._service
        rows = service.rows.since(self._n_rows)
        segments = [*self._segments, checkpoint.save_rows(folder, name, self._n_rows, rows)]
        description = Description(
            checkpoint.FORMAT, self._shards, service.is_over, status, service.memory(), segments, evaluations
        )
        checkpoint.save_description(folder, name, description)
        self._segments, self._n_rows = segments, service.first_open_row()

    def _look_back(self, now: float) -> None:
        """See what has become of the checkpoint before."""
        if self._begun is None:
            return
        name, version, begun_at = self._begun
        if self._is_complete(name):
            self.version, self._is_failing = version, False
        elif now - begun_at > LATE_S:  # rule 2
            self.fail(OSError(f"another shard has not written its part of {name}"))

    def _is_complete(self, name: Name) -> bool:
        return checkpoint.is_complete(self._shard.folder, name)
