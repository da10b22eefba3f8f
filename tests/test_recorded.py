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

import distsgd as ds
from distsgd import algorithms
from distsgd.algorithm import Algorithm, At, Pull, Push, Rules, Step, Worker
from distsgd.algorithms.parts import Parameters, Rate, sgd
from distsgd.data.stream import Stream
from distsgd.errors import ConfigError, TraceError
from distsgd.fold.fold import fold
from distsgd.lives import Lives
from distsgd.order.schedule import schedule
from distsgd.problem import Problem
from distsgd.trace import DROP, JOIN, LEAVE, PULL, PUSH, ROW, VERBS, Trace


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
WORKERS, BATCH, SEED = 3, 4, 2
PROBLEM = ds.problems.quadratic([1.0, 0.5, 0.2], noise=0.1)
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
        """Apply the round if nobody else is waited for."""
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


def folded(algorithm: Algorithm, trace: Trace, problem: Problem = PROBLEM) -> list[np.ndarray]:
    """Return the parameters after each update."""
    stops = np.arange(trace.n_updates + 1)
    states = fold(algorithm, problem, trace, stops=stops, batch=BATCH, seed=SEED)
    return [state.x for state in states]


@pytest.mark.jit_off
@pytest.mark.bounds
@settings(deadline=None, max_examples=60)
@given(st.sampled_from(ALGORITHMS), st.integers(0, 2**32))
def test_a_fold_has_the_bits_of_a_server_that_keeps_everything(
    algorithm: Algorithm, seed: int
) -> None:
    """Whoever leaves, joins or pulls an old version, the trace alone gives the server's numbers."""
    server = Server(algorithm, np.random.default_rng(seed))
    server.run(25)
    server.trace.verify()
    assert server.trace.gradients.tolist() == server.gradients[1:]
    assert np.array_equal(folded(algorithm, server.trace), [state.x for state in server.states])


BY_HAND = [  # time, sent, done, worker, verb, step, version, read
    (0, 0, 0, 0, PULL, 0, 0, 0),
    (0, 0, 0, 1, PULL, 0, 0, 0),
    (0, 0, 0, 2, PULL, 0, 0, 0),
    (1, 1, 2, 2, PUSH, 1, 0, 0),
    (1, 1, 2, 0, PUSH, 1, 0, 0),
    (2, 2, 2, 1, LEAVE, 0, 1, 1),
    (2, 2, 2, 2, PULL, 1, 1, 1),
    (2, 2, 2, 0, PULL, 1, 1, 0),
    (3, 3, 3, 1, JOIN, 0, 1, 1),
    (3, 3, 3, 1, PULL, 0, 1, 1),
    (4, 4, 5, 1, PUSH, 1, 1, 1),
    (4, 4, 5, 2, PUSH, 2, 1, 1),
    (5, 5, 5, 0, PUSH, 2, 2, 0),
]


def by_hand() -> Trace:
    """Return two synchronous rounds of three workers, one of whom is away when the first closes."""
    return Trace(np.array(BY_HAND, ROW), 3)


def test_a_death_in_the_middle_of_a_round_by_hand() -> None:
    """The round closes without the dead worker, and its next life takes part in the next one."""
    trace, problem = by_hand(), ds.problems.quadratic([1.0, 2.0], start=[9.0, 4.0])
    trace.verify()
    # x0 = (9, 4), both gradients (9, 8); then two gradients at x1 and a stale one at x0
    x1 = np.array([9.0, 4.0]) - 0.5 * np.array([9.0, 8.0])
    x2 = x1 - 0.5 * (np.array([9.0, 8.0]) + x1 * [1, 2] + x1 * [1, 2]) / 3
    assert np.array_equal(folded(algorithms.synchronous(0.5), trace, problem), [[9.0, 4.0], x1, x2])
    assert trace.staleness.tolist() == [0, 1]
    assert trace.gradients.tolist() == [2, 5]
    assert (trace.n_updates, trace.n_dropped, trace.n_lost) == (2, 0, 1)


def test_what_a_lost_worker_had_not_pushed_is_gone() -> None:
    """A worker replaced two steps before its push of four brings the two steps that come after."""
    rows = [
        (0, 0, 0, 0, PULL, 0, 0, 0),
        (1, 1, 1, 0, PULL, 1, 0, 0),
        (2, 2, 2, 0, PULL, 2, 0, 0),
        (3, 3, 3, 0, JOIN, 2, 0, 0),
        (3, 3, 3, 0, PULL, 2, 0, 0),
        (4, 4, 4, 0, PULL, 3, 0, 0),
        (5, 5, 5, 0, PUSH, 4, 1, 0),
    ]
    trace, problem = Trace(np.array(rows, ROW), 1), ds.problems.quadratic([1.0], start=[16.0])
    trace.verify()
    x = folded(algorithms.downpour(0.25, n_push=4), trace, problem)
    assert [one.tolist() for one in x] == [[16.0], [16.0 - 0.25 * (16.0 + 16.0)]]
    assert trace.gradients.tolist() == [2]
    assert trace.utilisation.tolist() == [4 / 5]


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.name)
def test_a_worker_that_joins_before_it_has_begun_changes_nothing(algorithm: Algorithm) -> None:
    """A life that ends before its first message leaves no mark on the numbers."""
    plain = schedule(algorithm.cycle, ds.Fleet(3, ds.exponential(1.0)), updates=20).rows
    rows = np.array([(0, 0, 0, 1, LEAVE, 0, 0, 0), (0, 0, 0, 1, JOIN, 0, 0, 0)], ROW)
    trace = Trace(np.concatenate([rows, plain]), 3)
    trace.verify()
    assert np.array_equal(folded(algorithm, trace), folded(algorithm, Trace(plain, 3)))


@pytest.mark.parametrize(
    ("row", "field", "value", "message"),
    [
        (5, "version", 2, "row 5: leave of worker 1: expected version 0 or 1, found 2"),
        (8, "version", 2, "row 8: join of worker 1: expected version 1, found 2"),
        (8, "step", 1, "row 8: join of worker 1: expected step 0, found 1"),
        (5, "step", 1, "row 5: leave of worker 1: expected step 0, found 1"),
        (8, "read", 0, "row 8: join of worker 1: expected read 1, found 0"),
        (5, "read", 0, "row 5: leave of worker 1: expected read 1, found 0"),
        (7, "read", 2, "row 7: pull of worker 0: expected read <= 1, found 2"),
        (7, "read", -1, "row 7: pull of worker 0: expected a version read between 0"),
        (12, "read", 1, "row 12: push of worker 0: expected read 0, found 1"),
        (8, "verb", PULL, "row 8: pull of worker 1: expected a join, since it had left, found a"),
        (8, "verb", LEAVE, "row 8: leave of worker 1: expected a join, since it had left, found a"),
        (8, "done", 2, "row 8: join of worker 1: expected done >= 3.0, found 2.0"),
        (8, "verb", 5, "row 8: verb 5 of worker 1: expected a verb's number between 0 and 4"),
    ],
)
def test_an_impossible_life_is_named(row: int, field: str, value: int, message: str) -> None:
    """A `TraceError` names the first row at fault, its worker, what was expected and found."""
    trace = by_hand()
    trace.rows[field][row] = value
    with pytest.raises(TraceError, match=message):
        trace.verify()


def test_a_loss_closes_no_empty_round() -> None:
    """The version rises at a `LEAVE` only where a push is held."""
    trace = by_hand()
    trace.rows["verb"][[3, 4]] = DROP
    with pytest.raises(TraceError, match="row 5: leave of worker 1: expected version 0, found 1"):
        trace.verify()


def test_a_push_after_a_join_reads_what_the_join_brought() -> None:
    """A worker that pushes without another pull has read the version at which it joined."""
    trace = by_hand()
    rows = np.delete(trace.rows, 9)
    Trace(rows, 3).verify()
    rows["read"][9] = 0
    with pytest.raises(TraceError, match="row 9: push of worker 1: expected read 1, found 0"):
        Trace(rows, 3).verify()


def test_who_goes_on_while_its_push_is_held_has_sent_it() -> None:
    """A worker that pulls again before its round closes takes nothing back."""
    rows = [
        (0, 0, 0, 0, PULL, 0, 0, 0),
        (1, 1, 1, 0, PUSH, 1, 0, 0),
        (2, 2, 2, 0, PULL, 1, 0, 0),
        (2, 2, 2, 1, PULL, 0, 0, 0),
        (3, 3, 3, 1, PUSH, 1, 1, 0),
    ]
    trace, problem = Trace(np.array(rows, ROW), 2), ds.problems.quadratic([1.0], start=[8.0])
    x = folded(algorithms.synchronous(0.5), trace, problem)
    assert [one.tolist() for one in x] == [[8.0], [4.0]]


def test_live_processes_do_without_polars() -> None:
    """What a process that forks imports of the fold does not start polars' threads."""
    script = "import sys, distsgd.fold.fold, distsgd.problems; sys.exit('polars' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_read_ends_in_its_push_or_with_its_life() -> None:
    """Every pull that somebody uses begins one read, which ends where it was used or lost."""
    lives = Lives(by_hand().rows)
    opens, ends = lives.reads(lives.claims)
    found = dict(zip(opens.tolist(), ends.tolist(), strict=True))
    assert found == {0: 4, 1: 5, 2: 3, 6: 11, 7: 12, 9: 10}
    rows = np.delete(by_hand().rows, 5)[:9]
    opens, ends = Lives(rows).reads(Lives(rows).claims)
    found = dict(zip(opens.tolist(), ends.tolist(), strict=True))
    assert found == {0: 4, 1: 7, 2: 3, 5: -1, 6: -1, 8: -1}


def test_only_the_interpreted_driver_folds_losses() -> None:
    """Whoever asks for compiled rules or interleaved reads is told what a recorded order needs."""
    algorithm, trace = ALGORITHMS[3], by_hand()
    thin = ds.problems.logistic(ds.data.sparse(20, 12, 3, seed=3))
    known = {"stops": np.array([2]), "batch": 1}
    for refused in ({"driver": "compiled"}, {"reads": "interleaved"}):
        with pytest.raises(ConfigError, match="or with pulls of older versions, is interpreted"):
            list(fold(algorithm, thin, trace, **known, **refused))
    assert np.isfinite(next(fold(algorithm, thin, trace, **known)).x).all()


def test_verbs_have_names() -> None:
    """Each verb has the name that reports show."""
    assert [VERBS[verb] for verb in (PULL, PUSH, DROP, JOIN, LEAVE)] == list(VERBS)
