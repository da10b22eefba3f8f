"""Where the columns of messages lie: in memory that all processes share, or in frames.

1. A worker has two out-boxes, which its pushes use in turn, and one in-box. It writes an out-box
   only when the push that used it last has been acknowledged; a server writes an in-box only while
   its worker waits for a pull.
2. A shard sees its slice of each column, a worker the whole.
3. Both classes have the same four methods, two for either side, so that no loop knows which it has.
4. A column travels in the problem's own type. It has been rounded to it before, so nothing is lost.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from distsgd.errors import WireError
from distsgd.live.messages.wire import Frames
from distsgd.problem import Vector

Columns = Sequence[Vector]


class Layout(NamedTuple):
    """Sizes that all peers of a run agree on."""

    dimension: int
    workers: int
    shards: int
    n_reads: int
    """Columns that a pull returns."""
    n_message: int
    """Columns of a push."""
    dtype: np.dtype[Any] = np.dtype(np.float64)
    """The type of all columns."""

    def slice(self, shard: int) -> slice:
        """Return the coordinates of one shard; sizes differ by at most 1."""
        first, end = (n * self.dimension // self.shards for n in (shard, shard + 1))
        return slice(first, end)

    @property
    def shared_bytes(self) -> int:
        """Size of the boxes of all workers, and of the snapshot [bytes]."""
        columns = self.workers * (self.n_reads + 2 * self.n_message) + 1
        return self.dtype.itemsize * self.dimension * columns


class SharedVectors:
    """Columns in one block of shared memory; messages carry none.

    What a request means lies there before any shard has heard of it. The block has at least
    ``layout.shared_bytes`` [bytes], and all processes share it.
    """

    is_shared = True

    def __init__(self, layout: Layout, block: memoryview) -> None:
        d, w = layout.dimension, layout.workers
        numbers = np.frombuffer(block, layout.dtype, layout.shared_bytes // layout.dtype.itemsize)
        inbox, outbox, snapshot = np.split(numbers, np.cumsum([w * layout.n_reads * d, w * 2 * layout.n_message * d]))
        self._inbox = inbox.reshape(w, layout.n_reads, d)
        self._outbox = outbox.reshape(w, 2, layout.n_message, d)
        self._snapshot = snapshot
        slices = [layout.slice(shard) for shard in range(layout.shards)]
        # a view takes as long to make as a small slice to copy
        self._inboxes = [[list(box[:, own]) for box in self._inbox] for own in slices]
        self._outboxes = [[[list(box[:, own]) for box in boxes] for boxes in self._outbox] for own in slices]
        self._snapshots = [snapshot[own] for own in slices]

    def post(self, worker: int, push: int, columns: Columns) -> list[Frames]:
        """Put a worker's message into the out-box of `push`; return each shard's frames: none."""
        for box, column in zip(self._outbox[worker, push % 2], columns, strict=True):  # rule 1
            box[...] = column
        return [()] * len(self._snapshots)

    def fetch(self, worker: int | None, replies: Sequence[Frames]) -> Columns:  # noqa: ARG002 # as `FrameVectors`
        """Return the columns of a reply: views, until the next pull; None is the evaluator."""
        return [self._snapshot] if worker is None else list(self._inbox[worker])

    def message(self, shard: int, worker: int, push: int, frames: Frames) -> Columns:
        """Return a shard's slice of a push: views of the out-box; frames are a `WireError`."""
        if frames:
            raise WireError(f"a push through shared memory must have no frames, not {len(frames)}")
        return self._outboxes[shard][worker][push % 2]

    def answer(self, shard: int, worker: int | None, columns: Columns) -> Frames:
        """Put a shard's slice of a reply where the worker looks; return its frames: none."""
        boxes = [self._snapshots[shard]] if worker is None else self._inboxes[shard][worker]
        for box, column in zip(boxes, columns, strict=False):  # a welcome has one column
            box[...] = column
        return ()


class FrameVectors:
    """Columns as raw little-endian frames, one per column."""

    is_shared = False

    def __init__(self, layout: Layout) -> None:
        self._layout, self._dtype = layout, layout.dtype.newbyteorder("<")
        self._slices = [layout.slice(shard) for shard in range(layout.shards)]

    def post(self, worker: int, push: int, columns: Columns) -> list[Frames]:  # noqa: ARG002 # as `SharedVectors`
        """Return the frames of a push for each shard."""
        return [[self._frame(column[own]) for column in columns] for own in self._slices]

    def fetch(self, worker: int | None, replies: Sequence[Frames]) -> Columns:  # noqa: ARG002 # as `SharedVectors`
        """Return the columns of a reply, joined from the frames of each shard."""
        n_columns = len(replies[0])
        parts = [self._slice_of(shard, frames, n_columns) for shard, frames in enumerate(replies)]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def message(self, shard: int, worker: int, push: int, frames: Frames) -> Columns:  # noqa: ARG002 # as `SharedVectors`
        """Return a shard's slice of a push."""
        return self._slice_of(shard, frames, self._layout.n_message)

    def answer(self, shard: int, worker: int | None, columns: Columns) -> Frames:  # noqa: ARG002 # as `SharedVectors`
        """Return the frames of a shard's slice of a reply: copies, since the server goes on."""
        return [self._frame(column) for column in columns]

    def _slice_of(self, shard: int, frames: Frames, n_columns: int) -> Columns:
        """Raise a `WireError` unless there is a frame of the slice's size for each column."""
        own = self._slices[shard]
        expected = self._dtype.itemsize * (own.stop - own.start)
        sizes = [len(frame) for frame in frames]
        if sizes != [expected] * n_columns:
            raise WireError(f"shard {shard}: expected {n_columns} frames of {expected} bytes, not {sizes}")
        return [np.frombuffer(frame, self._dtype) for frame in frames]

    def _frame(self, column: Vector) -> bytes:
        return np.ascontiguousarray(column, self._dtype).tobytes()


Vectors = SharedVectors | FrameVectors
