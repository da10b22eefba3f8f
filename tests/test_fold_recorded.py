"""Orders that live servers write: workers leave and join, and pulls return older versions."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_order import BATCH, PROBLEM, SEED, by_hand, folded

import distsgd as ds
from distsgd import algorithms
from distsgd.algorithm import Algorithm, At, Pull, Push, Rules, Step, Worker
from distsgd.algorithms.parts import Parameters, Rate, sgd
from distsgd.data.stream import Stream
from distsgd.errors import ConfigError
from distsgd.fold.fold import fold
from distsgd.order.schedule import schedule
from distsgd.trace import DROP, JOIN, LEAVE, PULL, PUSH, ROW, Trace


class Local(NamedTuple):
    """What a worker of `AWARE` keeps."""

    x: Any
    sent: Any


class Told(NamedTuple):
    """What it sends."""

    sent: Any


AWARE = Algorithm(
    "aware",
    Rate(0.1),
    sgd._replace(
        apply=lambda h, s, m, at: Parameters(
            s.x - h.learning_rate * at.factor * m.sent / (1 + at.staleness + at.step + at.version)
        )
    ),
    Worker(
        init=lambda h, x: Local(x, 0.0 * x),
        receive=lambda h, w, x, at: Local(x * (1 + 0.1 * at.version), w.sent),
        at=lambda h, w, at: w.x / (1 + at.version),
        step=lambda h, w, g, at: Local(w.x, w.sent + g * at.factor / (1 + at.step)),
        send=lambda h, w, at: (Local(w.x, 0.0 * w.x), Told(w.sent * (1 + at.version + at.step))),
    ),
    (Pull(3), Step(), Push(2, quorum=None, backup=1)),
    schedule=lambda epoch: 1 / (1 + epoch),
)
WORKERS = 3
ALGORITHMS = [
    algorithms.synchronous(0.1),
    algorithms.synchronous(0.1, backup=1),
    algorithms.downpour(0.05, n_fetch=2, n_push=3),
    algorithms.downpour(0.1)._replace(schedule=lambda epoch: 1 / (1 + epoch)),
    algorithms.adaptive_revision(0.2),
    algorithms.elastic_averaging(0.05, 0.2, 2, momentum=0.9),
    AWARE,
]


class Held(NamedTuple):
    """A push that the server holds."""

    worker: int
    step: int
    read: int
    message: Any


def due(algorithm: Algorithm, step: int) -> Iterator[tuple[int, int]]:
    """Yield a worker's messages from its step number `step` on, and the steps taken before each."""
    verbs = [verb for verb in algorithm.cycle if isinstance(verb, (Pull, Step, Push))]
    place = next(i for i, verb in enumerate(verbs) if isinstance(verb, Step))
    while True:
        for verb in verbs[:place]:
            if step % verb.every == 0:
                yield PULL if isinstance(verb, Pull) else PUSH, step
        step += 1
        for verb in verbs[place + 1 :]:
            if step % verb.every == 0:
                yield PULL if isinstance(verb, Pull) else PUSH, step


@dataclass
class Server:
    """A server that keeps all versions, and its workers, one row at a time."""

    algorithm: Algorithm
    random: np.random.Generator
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    gradients: list[int] = field(default_factory=lambda: [0])

    def __post_init__(self) -> None:
        self.h, self.rules = self.algorithm.hyper, Rules.of(self.algorithm)
        self.stream = Stream(PROBLEM.samples, BATCH, SEED)
        start = PROBLEM.start(SEED)
        self.states = [self.algorithm.server.init(self.h, start)]
        self.workers = [self.algorithm.worker.init(self.h, start)] * WORKERS
        self.messages = [due(self.algorithm, 0) for _ in range(WORKERS)]
        self.served, self.taken, self.read = [0] * WORKERS, [0] * WORKERS, [0] * WORKERS
        self.oldest = [0] * WORKERS
        self.brought, self.counted = [0] * WORKERS, 0
        self.alive = set(range(WORKERS))
        push = next(verb for verb in self.algorithm.cycle if isinstance(verb, Push))
        self.quorum, self.backup = push.quorum_of(WORKERS), push.backup

    @property
    def version(self) -> int:
        """Updates applied."""
        return len(self.states) - 1

    @property
    def trace(self) -> Trace:
        """What has been served."""
        return Trace(np.array(self.rows, ROW), WORKERS)

    def write(self, worker: int, verb: int, read: int) -> None:
        """Write a row."""
        time, step = float(len(self.rows)), self.served[worker]
        self.rows.append((time, time, time, worker, verb, step, self.version, read))

    def factor(self, epochs: float) -> float:
        """Return the schedule's factor."""
        known = self.algorithm.schedule
        return 1.0 if known is None else known(epochs)

    def at(self, worker: int) -> At:
        """Return what a worker knows."""
        factor = self.factor(self.taken[worker] * (BATCH / PROBLEM.samples * WORKERS))
        return At(self.read[worker], 0, WORKERS, self.taken[worker], factor)

    def serve(self, worker: int) -> None:
        """Let a worker compute until its next message, and serve that."""
        verb, step = next(self.messages[worker])
        while self.taken[worker] < step:
            self.step(worker)
        self.served[worker] = step
        (self.pull if verb == PULL else self.push)(worker)

    def step(self, worker: int) -> None:
        """Take a step."""
        w, at = self.workers[worker], self.at(worker)
        if self.taken[worker] == self.brought[worker]:
            self.oldest[worker] = self.read[worker]
        batch = self.stream.batch(worker, self.taken[worker])
        g = PROBLEM.gradient(self.rules.at(self.h, w, at), batch)
        self.workers[worker] = self.rules.step(self.h, w, g, at)
        self.taken[worker] += 1

    def pull(self, worker: int) -> None:
        """Return one of the last versions."""
        read = max(0, self.version - int(self.random.integers(4)))
        columns = [getattr(self.states[read], name) for name in self.algorithm.server.reads]
        self.read[worker] = read
        w = self.workers[worker]
        self.workers[worker] = self.rules.receive(self.h, w, *columns, self.at(worker))
        self.write(worker, PULL, read)

    def push(self, worker: int) -> None:
        """Hold a message, and apply its round if it is full."""
        w, message = self.rules.send(self.h, self.workers[worker], self.at(worker))
        self.workers[worker] = w
        is_in_front = isinstance(self.algorithm.cycle[-1], Step)
        read = self.read[worker] if is_in_front else self.oldest[worker]
        self.counted += self.taken[worker] - self.brought[worker]
        self.brought[worker] = self.taken[worker]
        if self.backup and self.random.random() < 0.2:
            self.write(worker, DROP, read)
            return
        self.held.append(Held(worker, self.taken[worker], read, message))
        self.close()
        self.write(worker, PUSH, read)

    def close(self) -> None:
        """Apply the round if no other worker is waited for."""
        if not self.held or len(self.held) < min(self.quorum, len(self.alive)):
            return
        members = sorted(self.held, key=lambda one: one.worker)
        total = members[0].message
        for one in members[1:]:
            total = type(total)(*map(np.add, total, one.message))
        mean = type(total)(*(column / len(members) for column in total))
        staleness = self.version - min(one.read for one in members)
        factor = self.factor(self.gradients[-1] * (BATCH / PROBLEM.samples))
        at = At(self.version, staleness, WORKERS, members[-1].step, factor)
        self.states.append(self.rules.apply(self.h, self.states[-1], mean, at))
        self.gradients.append(self.counted)
        self.held = []

    def leave(self, worker: int) -> None:
        """Give a worker up."""
        self.alive.discard(worker)
        self.close()
        self.write(worker, LEAVE, self.version)

    def join(self, worker: int) -> None:
        """Let a worker begin another life."""
        self.alive.add(worker)
        self.taken[worker] = self.brought[worker] = self.served[worker]
        self.read[worker] = self.version
        self.workers[worker] = self.algorithm.worker.init(self.h, self.states[-1].x)
        self.messages[worker] = due(self.algorithm, self.served[worker])
        self.write(worker, JOIN, self.version)

    def run(self, updates: int) -> None:
        """Serve at random, with a loss or a join now and then."""
        while self.version < updates:
            worker, luck = int(self.random.integers(WORKERS)), self.random.random()
            if worker not in self.alive or luck < 0.05:
                self.join(worker)
            elif luck < 0.12 and len(self.alive) > 1:
                self.leave(worker)
            elif all(one.worker != worker for one in self.held) or luck > 0.95:
                self.serve(worker)


@pytest.mark.jit_off
@pytest.mark.bounds
@settings(deadline=None, max_examples=60)
@given(st.sampled_from(ALGORITHMS), st.integers(0, 2**32))
def test_a_fold_has_the_bits_of_a_server_that_keeps_everything(algorithm: Algorithm, seed: int) -> None:
    """Whoever leaves, joins or pulls an old version, the trace alone gives the server's numbers."""
    server = Server(algorithm, np.random.default_rng(seed))
    server.run(25)
    server.trace.verify()
    assert server.trace.gradients.tolist() == server.gradients[1:]
    assert np.array_equal(folded(algorithm, server.trace), [state.x for state in server.states])


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.name)
def test_a_worker_that_joins_before_it_has_begun_changes_nothing(algorithm: Algorithm) -> None:
    """A life that ends before its first message leaves no mark on the numbers."""
    plain = schedule(algorithm.cycle, ds.Fleet(3, ds.exponential(1.0)), updates=20).rows
    rows = np.array([(0, 0, 0, 1, LEAVE, 0, 0, 0), (0, 0, 0, 1, JOIN, 0, 0, 0)], ROW)
    trace = Trace(np.concatenate([rows, plain]), 3)
    trace.verify()
    assert np.array_equal(folded(algorithm, trace), folded(algorithm, Trace(plain, 3)))


def test_live_processes_do_without_polars() -> None:
    """What a process that forks imports of the fold does not start polars' threads."""
    script = "import sys, distsgd.fold.fold, distsgd.problems; sys.exit('polars' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_only_the_interpreted_driver_folds_losses() -> None:
    """Whoever asks for compiled rules or interleaved reads is told what a recorded order needs."""
    algorithm, trace = ALGORITHMS[3], by_hand()
    thin = ds.problems.logistic(ds.data.sparse(20, 12, 3, seed=3))
    known = {"stops": np.array([2]), "batch": 1}
    for refused in ({"driver": "compiled"}, {"reads": "interleaved"}):
        with pytest.raises(ConfigError, match="or with pulls of older versions, is interpreted"):
            list(fold(algorithm, thin, trace, **known, **refused))
    assert np.isfinite(next(fold(algorithm, thin, trace, **known)).x).all()
