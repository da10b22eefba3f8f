"""The workers of a lock-free run, and the process that forks them and holds their barrier.

It is imported by processes that fork, so it imports nothing that starts threads.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.algorithm import Rules
from distsgd.errors import WorkerLost
from distsgd.fold.layers import with_factors
from distsgd.fold.request import Progress
from distsgd.kernels.fold.rules import RuleSet, columns, empty_columns
from distsgd.kernels.fold.sparse import workspace
from distsgd.kernels.gradients.linear import compiled_support
from distsgd.kernels.lock_free import steps as kernels
from distsgd.kernels.lock_free.gather import Gathered, gathered_kernel
from distsgd.live.lock_free.popular import period_of, popular_first
from distsgd.live.machine.forking import End, fork, shared, wait
from distsgd.live.options import LiveRequest
from distsgd.problem import Evaluation
from distsgd.sparse import Support
from distsgd.status import status_after

MOST_LOSSES = 10
"""Times that a worker is replaced in one run."""


class Epoch(NamedTuple):
    """One pass over the samples, or a part of it, by all workers together."""

    number: int
    steps: int
    """Steps of all workers."""
    version: int
    """Updates before it."""
    is_evaluated: bool
    """Whether the objective is evaluated behind it."""

    @property
    def end(self) -> int:
        """Updates when it is over."""
        return self.version + self.steps

    def share(self, worker: int, workers: int) -> tuple[int, int]:
        """Return the first step of a worker, and how many are its own; they differ by one."""
        first = self.steps * worker // workers
        return first, self.steps * (worker + 1) // workers - first


class LockFreeJob(NamedTuple):
    """A run, cut into epochs."""

    request: LiveRequest
    epochs: list[Epoch]
    block: int
    """Samples that are visited in the order of storage."""


class Point(NamedTuple):
    """A point of the history."""

    update: int
    wall_seconds: float
    evaluation: Evaluation
    norms: Sequence[float] = ()
    """Of each layer's gradient, if they are asked for."""


class LockFreeOutcome(NamedTuple):
    """What a run leaves."""

    x: NDArray[np.float64]
    status: str
    points: list[Point]
    lost: int
    """Workers that were replaced."""


def keep(job: LockFreeJob, pipe: Connection) -> LockFreeOutcome:
    """Run `job` in the launcher, or raise a `WorkerLost` if workers fail.

    Each message of the parent says whether to stop, and is answered with a `Progress`.
    """
    group = WorkerGroup(job, pipe)
    status = group.judge(0)
    for epoch in job.epochs:
        if status != "done":
            break
        group.work(epoch)
        if epoch.is_evaluated or group.is_stopped:
            status = group.judge(epoch.end)
    return LockFreeOutcome(group.tools.x.copy(), status, group.points, group.lost)


@dataclass(frozen=True)
class Tools:
    """What workers compute with. All of it exists before the first of them is forked."""

    job: LockFreeJob
    memory: kernels.SharedMemory
    own: kernels.Own | Gathered
    support: Support
    steps: Any
    """The compiled loop."""
    place: NDArray[np.uint32] | None = None
    """Where each coordinate stands in the memory, uint32[d], if not at its number."""

    @classmethod
    def of(cls, job: LockFreeJob) -> "Tools":
        """Return the tools for `job`, compiled."""
        request, support = job.request, job.request.problem.support
        assert support is not None  # checked by the launcher
        make = cls._gathering if is_gathered(request) else cls._sharing
        tools = make(job, compiled_support(support))
        tools.take(0, Epoch(0, 0, 0, is_evaluated=False))
        kernels.pass_turn(tools.memory.turn, 0)
        return tools

    @classmethod
    def _sharing(cls, job: LockFreeJob, support: Support) -> "Tools":
        request = job.request
        kernel = kernels.row_kernel if request.config.batch == 1 else kernels.batch_kernel
        steps = kernel(RuleSet.of(request.algorithm), request.fleet.writes)
        return cls(job, _memory(request), _own(request, support), support, steps)

    @classmethod
    def _gathering(cls, job: LockFreeJob, support: Support) -> "Tools":
        request, period = job.request, period_of(job.request.fleet.workers)
        layout, memory = popular_first(support, period), _memory(request)
        for column in memory.server:
            column[layout.place] = column.copy()
        rules = RuleSet.of(request.algorithm)
        kinds = columns(rules)
        copy, base = (empty_columns(kinds.state, layout.n_popular) for _ in range(2))
        own = Gathered(kinds.hyper(*request.hyper), copy, base, layout.others, period)
        return cls(job, memory, own, layout.support, gathered_kernel(rules), layout.place)

    @cached_property
    def schedule(self) -> Callable[[float], float] | None:
        """The algorithm's own, times the factor of the only layer that sparse problems have."""
        request = self.job.request
        return with_factors(request.algorithm, request.layer_factors)[0].schedule

    @property
    def x(self) -> NDArray[np.float64]:
        """The parameters, float64[d]."""
        x: NDArray[np.float64] = self.memory.server.x
        return x if self.place is None else x[self.place]

    def begin(self) -> None:
        """Set all counts back before an epoch."""
        self.memory.taken[:] = 0
        self.memory.turn[:] = 0

    def take(self, worker: int, epoch: Epoch) -> None:
        """Take a worker's steps of an epoch, or what is left of them.

        They are one call: to look at all of its arguments takes as long as a thousand steps.
        """
        request, job = self.job.request, self.job
        order = kernels.epoch_order(request.seed, epoch.number, request.problem.samples, job.block)
        chunk, count = self._chunk(worker, epoch)
        start = self.resumed(worker, count)
        self.steps(self.memory, self.own, self.support, order, chunk, start, count)
        last = request.fleet.workers * count + worker
        is_longer = request.fleet.writes == "round_robin" and request.fleet.workers * count < epoch.steps
        if is_longer and self.memory.turn[0] <= last:
            # others have one more turn, in which this one has nothing to do
            kernels.pass_turn(self.memory.turn, last)

    def _chunk(self, worker: int, epoch: Epoch) -> tuple[kernels.Chunk, int]:
        request = self.job.request
        first, count = epoch.share(worker, request.fleet.workers)
        _, usual = self.job.epochs[0].share(worker, request.fleet.workers)
        schedule = self.schedule
        factor = 1.0 if schedule is None else float(schedule(float(epoch.number)))
        chunk = kernels.Chunk(
            worker, request.fleet.workers, first, epoch.version, epoch.number * usual, factor, request.config.batch
        )
        return chunk, count

    def free(self, worker: int) -> None:
        """Take away the locks of a worker that has ended."""
        locks = self.memory.locks
        locks[locks == worker + 1] = 0

    def resumed(self, worker: int, count: int) -> int:
        """Return the steps that are done; where workers take turns, the number is exact."""
        if self.job.request.fleet.writes != "round_robin":
            return int(self.memory.taken[worker])
        workers = self.job.request.fleet.workers
        turns = (int(self.memory.turn[0]) - worker + workers - 1) // workers
        return min(turns, count)


def is_gathered(request: LiveRequest) -> bool:
    """Return whether workers have copies of popular coordinates; a single worker needs none."""
    return request.fleet.writes == "gathered" and request.fleet.workers > 1


def _memory(request: LiveRequest) -> kernels.SharedMemory:
    kinds = columns(RuleSet.of(request.algorithm))
    first = Rules.of(request.algorithm).server_init(request.hyper, request.problem.start(request.seed))
    state = [np.frombuffer(shared(8 * request.problem.dimension)) for _ in first]
    for column, value in zip(state, first, strict=True):
        column[:] = value
    sizes = request.problem.dimension, 1, request.fleet.workers
    locks, turn, taken = (np.frombuffer(shared(8 * n), np.int64) for n in sizes)
    return kernels.SharedMemory(kinds.state(*state), locks, turn, taken)


def _own(request: LiveRequest, support: Support) -> kernels.Own:
    kinds = columns(RuleSet.of(request.algorithm))
    space = workspace(1, support.rows, request.config.batch)
    return kernels.Own(
        h=kinds.hyper(*request.hyper),
        read=empty_columns(kinds.reads, space.most),
        messages=empty_columns(kinds.message, (1, space.most)),
        point=np.empty(space.most),
        gradient=np.empty(space.most),
        space=space,
    )


class WorkerGroup:
    """The workers and their barrier; the pipe goes to the parent."""

    def __init__(self, job: LockFreeJob, pipe: Connection) -> None:
        self.tools = Tools.of(job)
        self.points: list[Point] = []
        self.lost, self.is_stopped = 0, False
        self._job, self._pipe = job, pipe
        self._pipes: dict[int, Connection] = {}
        self._workers: dict[int, int] = {}  # by the number of their process
        self._seconds = 0.0
        for worker in range(job.request.fleet.workers):
            self._hire(worker)

    def work(self, epoch: Epoch) -> None:
        """Have all workers take their steps of `epoch`, and wait for the last."""
        self.tools.begin()
        start = time.monotonic()
        for worker in self._pipes:
            self._pipes[worker].send(epoch)
        busy = set(self._pipes)
        while busy:
            waited = wait(self._pipe, self._workers, None, [self._pipes[worker] for worker in busy])
            busy -= {worker for worker in busy if self._is_done(worker, waited.ready)}
            for process, end in waited.ended.items():
                self._replace(process, end, epoch, busy)
            if waited.message is not None:
                self._answer(waited.message, epoch, time.monotonic() - start)
        self._seconds += time.monotonic() - start

    def judge(self, update: int) -> str:
        """Evaluate the objective, add a point to the history, and return the status."""
        request, x = self._job.request, self.tools.x
        evaluation = request.problem.evaluate(x)
        self.points.append(Point(update, self._seconds, evaluation, request.norms(x)))
        return status_after(x, evaluation.loss, request.config.target, lambda: self.is_stopped)

    def _hire(self, worker: int) -> None:
        self._pipes[worker], there = Pipe()
        self._workers[fork(_work, self.tools, worker, there)] = worker
        there.close()

    def _is_done(self, worker: int, ready: list[Connection]) -> bool:
        if self._pipes[worker] not in ready:
            return False
        try:
            self._pipes[worker].recv()
        except (EOFError, ConnectionResetError):  # its end will be told
            return False
        return True

    def _replace(self, process: int, end: End, epoch: Epoch, busy: set[int]) -> None:
        worker = self._workers.pop(process)
        self.lost += 1
        if end.failure or self.lost > MOST_LOSSES:
            raise WorkerLost(f"worker {worker} {end}")
        self.tools.free(worker)
        self._pipes[worker].close()
        self._hire(worker)
        if worker in busy:
            self._pipes[worker].send(epoch)

    def _answer(self, is_stopped: bool, epoch: Epoch, seconds: float) -> None:
        self.is_stopped |= is_stopped
        n_updates = epoch.version + int(self.tools.memory.taken.sum())
        progress = Progress(
            updates=n_updates,
            gradients=n_updates,
            wall_seconds=self._seconds + seconds,
            loss=self.points[-1].evaluation.loss,
            staleness=math.nan,
            alive=len(self._workers),
            lost=self.lost,
        )
        self._pipe.send(progress)


def _work(tools: Tools, worker: int, pipe: Connection) -> None:
    """Be a worker until the launcher ends."""
    while True:
        tools.take(worker, pipe.recv())
        pipe.send(None)
