"""Rings in shared memory, through which workers and shards exchange messages without frames.

1. ZeroMQ hands a message over to a thread of its own and back again, on either side. Where a
   message is a header only, a slot of shared memory and a counter of the kernel (eventfd) do with
   one wake-up: a request and its reply take a fifth of the time.
2. Everything else goes through the shard's ROUTER as ever: signs of life, the launcher, the
   evaluator, orders to followers.
3. A writer fills the slots of a ring in turn, and then tells its number. There are more slots than
   requests that can be open. What is overwritten unread, by a peer that repeats itself while a
   server is away, is sent again like any message that got lost.
4. Rings stay when processes do not. A shard that has been started again reads what is there, and
   knows by session, life and sequence what it is worth. A new worker begins behind what is there.
"""

import os
import select
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import zmq
from numpy.typing import NDArray

from distsgd.live.machine import forking
from distsgd.live.messages.sockets import Socket
from distsgd.live.messages.wire import HEADER, Frames

SLOTS = 8
"""Messages that a ring holds: a worker has two pushes and one more request open at most."""
_IDENTITY = b"ring %d"


class _Ring:
    """Messages from one process to another; `told` is the number of the last one, uint64[1]."""

    def __init__(self, block: memoryview, told: NDArray[np.uint64]) -> None:
        self._block, self.told = block, told

    def put(self, message: Frames) -> None:
        """Write a message, which is a header only."""
        number = int(self.told[0]) + 1
        (header,) = message
        self._block[_slot(number)] = header
        self.told[0] = number  # rule 3: told before it is written, half a message could be read

    def between(self, last: int, newest: int) -> list[bytes]:
        """Return the messages behind the number `last` up to `newest` that are still there."""
        numbers = range(max(last, newest - SLOTS) + 1, newest + 1)  # rule 3
        return [bytes(self._block[_slot(number)]) for number in numbers]


def _slot(number: int) -> slice:
    at = number % SLOTS * HEADER.size
    return slice(at, at + HEADER.size)


class Rings:
    """The rings and the counters of a run; made before its processes are forked."""

    def __init__(self, workers: int, shards: int) -> None:
        n_bytes = SLOTS * HEADER.size
        block = memoryview(forking.shared(2 * shards * workers * n_bytes))
        told = forking.shared(2 * shards * workers * 8)
        self._told = np.frombuffer(told, np.uint64).reshape(2, shards, workers)
        self._rings = np.empty((2, shards, workers), object)
        for place, index in enumerate(np.ndindex(self._rings.shape)):
            own = self._told[index[0], index[1], index[2] : index[2] + 1]
            self._rings[index] = _Ring(block[place * n_bytes : (place + 1) * n_bytes], own)
        flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
        self._shards = [os.eventfd(0, flags) for _ in range(shards)]
        self._workers = [os.eventfd(0, flags) for _ in range(workers)]

    def worker_end(self, worker: int, shard: int) -> "WorkerEnd":
        """Return the worker's end; it reads what comes from now on."""
        requests, replies = self._rings[:, shard, worker]
        return WorkerEnd(requests, replies, self._shards[shard], self._workers[worker])

    def shard_end(self, shard: int, router: Socket) -> "ShardEnd":
        """Return the shard's end, which has a ROUTER for all others."""
        requests, replies = self._rings[:, shard]
        told = self._told[0, shard]
        return ShardEnd(requests, replies, self._shards[shard], self._workers, told=told, router=router)


class WorkerEnd:
    """A worker's way to one shard, used like a DEALER.

    It writes `requests` and reads `replies`; `shard` and `worker` are the descriptors of the
    counters that wake them.
    """

    rcvtimeo = -1
    """How long `recv_multipart` waits [ms]."""

    def __init__(self, requests: _Ring, replies: _Ring, shard: int, worker: int) -> None:
        self._requests, self._replies, self._shard, self._worker = requests, replies, shard, worker
        self._heard: deque[bytes] = deque()
        self._last = int(replies.told[0])  # rule 4
        self._poller = select.poll()
        self._poller.register(worker, select.POLLIN)

    def send_multipart(self, message: Frames) -> None:
        """Write a message, and wake the shard."""
        self._requests.put(message)
        os.eventfd_write(self._shard, 1)

    def recv_multipart(self) -> list[bytes]:
        """Return the next message, or raise `zmq.Again` when it takes too long."""
        if not self.poll(self.rcvtimeo):
            raise zmq.Again
        return [self._heard.popleft()]

    def poll(self, timeout_ms: int) -> bool:
        """Wait for a message, and return whether there is one."""
        # another shard's reply may have woken us: then this ring has nothing new
        while not self._look():
            if not self._poller.poll(timeout_ms):
                return False
            with suppress(BlockingIOError):
                os.eventfd_read(self._worker)
        return True

    def close(self, linger: int = 0) -> None:
        """Do nothing: a ring has no end."""

    def _look(self) -> bool:
        newest = int(self._replies.told[0])
        if newest > self._last:
            self._heard.extend(self._replies.between(self._last, newest))
            self._last = newest
        return bool(self._heard)


class ShardEnd:
    """A shard's way to its workers and to all others, used like a ROUTER.

    Each worker has its own of `requests` and `replies`, and in `told` the number of its last
    request, uint64[workers]. `shard` and `workers` are the descriptors of the counters that wake
    this shard and each worker. All other peers are behind `router`.
    """

    rcvtimeo = -1
    """How long `recv_multipart` waits [ms]."""

    def __init__(
        self,
        requests: Sequence[_Ring],
        replies: Sequence[_Ring],
        shard: int,
        workers: Sequence[int],
        *,
        told: NDArray[np.uint64],
        router: Socket,
    ) -> None:
        self._requests, self._shard, self._told, self._router = requests, shard, told, router
        self._seen = [0] * len(workers)  # rule 4
        self._names = [_IDENTITY % worker for worker in range(len(workers))]
        self._out = {name: (replies[n], workers[n]) for n, name in enumerate(self._names)}
        self._heard: deque[list[bytes]] = deque()
        self._poller = select.poll()
        self._poller.register(self._shard, select.POLLIN)
        self._poller.register(router.fileno(), select.POLLIN)

    def recv_multipart(self) -> list[bytes]:
        """Return a sender's name, a header and its frames, or raise `zmq.Again` if none comes."""
        while not self._heard:
            is_woken = self._poller.poll(self.rcvtimeo)
            self._take()
            if not (is_woken or self._heard):
                raise zmq.Again
        return self._heard.popleft()

    def send_multipart(self, parts: Frames, *, copy: bool = True) -> None:
        """Send a header and its frames to the peer that the first part names."""
        out = self._out.get(bytes(parts[0]))
        if out is None:  # rule 2
            self._router.send_multipart(parts, copy=copy)
            return
        ring, counter = out
        ring.put(parts[1:])
        os.eventfd_write(counter, 1)

    def _take(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._shard)
        told = self._told.tolist()
        for worker, (newest, last) in enumerate(zip(told, self._seen, strict=True)):
            if newest > last:
                name = self._names[worker]
                for header in self._requests[worker].between(last, newest):
                    self._heard.append([name, header])
        self._seen = told
        # the ROUTER's descriptor tells of changes only: all that is there is taken
        while int(self._router.get(zmq.EVENTS)) & zmq.POLLIN:
            self._heard.append(self._router.recv_multipart())


Line = Socket | ShardEnd
"""What a shard hears and answers through."""
