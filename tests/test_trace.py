import math
import re
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import distsgd as ds
from distsgd import trace as module
from distsgd.algorithm import Pull, Push, Step, where
from distsgd.errors import ConfigError, TraceError
from distsgd.fold.fold import fold
from distsgd.order import laws
from distsgd.order.fleet import Failures, Fleet
from distsgd.order.schedule import schedule
from distsgd.trace import DROP, PULL, PUSH, ROW, VERBS, Trace

PLAIN = (Pull(), Step(), Push())
BY_HAND = [  # time, sent, done, worker, verb, step, version, read
    (0.0, 0.0, 0.0, 0, PULL, 0, 0, 0),
    (0.0, 0.0, 0.0, 1, PULL, 0, 0, 0),
    (1.0, 1.0, 1.0, 0, PUSH, 1, 1, 0),
    (1.0, 1.0, 1.0, 0, PULL, 1, 1, 1),
    (3.0, 3.0, 3.0, 0, PUSH, 2, 2, 1),
    (3.0, 3.0, 3.0, 0, PULL, 2, 2, 2),
    (4.0, 4.0, 4.0, 1, PUSH, 1, 3, 0),
]


class Sent(NamedTuple):
    """One column."""

    x: float


def by_hand() -> Trace:
    """Two workers, the second one slow."""
    return Trace(np.array(BY_HAND, ROW), 2)


def example_of(rule: int) -> Trace:
    """Return the rows that the docstring of `distsgd.trace` has below a rule, a second apart."""
    (text,) = re.findall(rf"^{rule}\. (.*?)(?=^\d\. |\Z)", module.__doc__, re.MULTILINE | re.DOTALL)
    table = re.findall(r"^ +(\d)  (\w+) +(\d) +(\d) +(\d)", text, re.MULTILINE)
    assert len(table) == 5
    rows = [
        (time, time, time, worker, VERBS.index(verb), step, version, read)
        for time, (worker, verb, step, version, read) in enumerate(table)
    ]
    return Trace(np.array(rows, ROW), 2)


def test_staleness_counts_from_the_read() -> None:
    """A gradient read at version v and applied at version u has staleness u - v."""
    trace = by_hand()
    trace.verify(always_busy=True)
    assert trace.staleness.tolist() == [0, 0, 2]
    assert trace.closing.tolist() == [2, 4, 6]
    assert trace.n_updates == 3
    assert trace.gradients.tolist() == [1, 2, 3]
    assert trace.seconds.tolist() == [1.0, 3.0, 4.0]


def test_a_round_is_as_stale_as_its_oldest_push() -> None:
    """With a quorum the staleness of an update is that of the push read longest ago."""
    trace = schedule((Pull(), Step(), Push(quorum=2)), Fleet(3, speeds=[1.0, 1.0, 0.3]), updates=4)
    pushes = trace.rows[trace.rows["verb"] == PUSH]
    rounds = np.arange(len(pushes)) // 2
    oldest = [pushes["read"][rounds == update].min() for update in range(4)]
    assert trace.staleness.tolist() == [update - oldest[update] for update in range(4)]
    assert trace.staleness.max() > 0


def test_gradients_count_steps_between_pushes() -> None:
    """A push brings the steps that its worker has taken since its push before."""
    trace = schedule((Pull(2), Step(), Push(3)), Fleet(2), updates=6)
    assert trace.gradients.tolist() == [3, 6, 9, 12, 15, 18]
    assert trace.steps.sum() == 18


def test_the_head_of_a_trace_is_a_trace() -> None:
    """`head(n)` ends with update n, and refuses what the trace does not have."""
    trace = by_hand()
    assert trace.head(2).rows.tolist() == trace.rows[:5].tolist()
    assert len(trace.head(0).rows) == 0
    with pytest.raises(ConfigError, match="updates must be <= 3, those of the trace, not 4"):
        trace.head(4)


def test_utilisation_is_the_share_of_time_spent_computing() -> None:
    """One second of computing between two messages half a second long each way makes one half."""
    trace = schedule(PLAIN, Fleet(3, latency=0.5), updates=30)
    # The first pull takes a second, then each cycle of two seconds has one of computing.
    assert trace.utilisation == pytest.approx(0.5)
    assert schedule(PLAIN, Fleet(3), updates=30).utilisation.tolist() == [1.0] * 3
    alone = Trace(by_hand().rows[:1], 2).utilisation
    assert np.isnan(alone).all()


def test_a_synchronous_fleet_waits_for_its_slowest() -> None:
    """In a round of 4 s a worker of 1 s is busy for a quarter of the time."""
    fleet = Fleet(2, speeds=[1.0, 0.25])
    trace = schedule((Pull(), Step(), Push(quorum=None)), fleet, updates=50)
    assert trace.utilisation == pytest.approx([0.25, 1.0], abs=0.02)


@pytest.mark.jit_off
@pytest.mark.bounds
@pytest.mark.parametrize(
    ("row", "field", "value", "message"),
    [
        (2, "worker", 2, "row 2: push of worker 2: expected a worker's number between 0 and 1"),
        (2, "verb", 7, "row 2: verb 7 of worker 0: expected a verb's number between 0 and 4"),
        (2, "step", -1, "row 2: push of worker 0: expected a step between 0"),
        (2, "sent", math.nan, r"row 2: push of worker 0: expected sent \[s\] between 0"),
        (4, "time", 0.5, "row 4: push of worker 0: expected time >= 1.0, found 0.5"),
        (6, "time", math.inf, r"row 6: push of worker 1: expected time \[s\] between 0"),
        (4, "sent", 3.5, "row 4: push of worker 0: expected time >= 3.5, found 3.0"),
        (5, "done", 2.0, "row 5: pull of worker 0: expected done >= 3.0, found 2.0"),
        (4, "sent", 0.5, "row 4: push of worker 0: expected sent >= 1.0, found 0.5"),
        (5, "step", 1, "row 5: pull of worker 0: expected step >= 2, found 1"),
        (3, "version", 2, "row 3: pull of worker 0: expected version 1, found 2"),
        (4, "version", 3, "row 4: push of worker 0: expected version 1 or 2, found 3"),
        (5, "read", 3, "row 5: pull of worker 0: expected read <= 2, found 3"),
        (4, "read", 0, "row 4: push of worker 0: expected read 1, found 0"),
        (6, "read", 2, "row 6: push of worker 1: expected read 0, found 2"),
    ],
)
def test_an_impossible_row_is_named(row: int, field: str, value: float, message: str) -> None:
    """A `TraceError` names the first row at fault, its worker, what was expected and found."""
    trace = by_hand()
    trace.rows[field][row] = value
    with pytest.raises(TraceError, match=message):
        trace.verify()


@pytest.mark.parametrize(
    ("rule", "staleness", "gradients"), [(6, [0, 1], [1, 2]), (7, [0, 0], [1, 3]), (8, [0], [1]), (9, [0], [4])]
)
def test_worked_examples_are_orders(rule: int, staleness: list[int], gradients: list[int]) -> None:
    """The example of each rule is an order that a server can have served, with these accounts."""
    trace = example_of(rule)
    trace.verify()
    assert trace.staleness.tolist() == staleness
    assert trace.gradients.tolist() == gradients


@pytest.mark.parametrize(
    ("rule", "row", "field", "value", "message"),
    [
        (6, 3, "read", 1, "row 3: push of worker 0: expected read 0, found 1"),
        (6, 4, "read", 3, "row 4: pull of worker 1: expected read <= 2, found 3"),
        (7, 3, "read", 0, "row 3: join of worker 0: expected read 1, found 0"),
        (7, 3, "step", 1, "row 3: join of worker 0: expected step 0, found 1"),
        (7, 4, "read", 0, "row 4: push of worker 0: expected read 1, found 0"),
        (8, 2, "verb", DROP, "row 3: leave of worker 1: expected version 0, found 1"),
        (8, 4, "worker", 1, "row 4: pull of worker 1: expected a join, since it had left"),
        (9, 2, "version", 1, "row 2: join of worker 1: expected version 0, found 1"),
        (9, 4, "read", 1, "row 4: push of worker 0: expected read 0, found 1"),
    ],
)
def test_altered_examples_are_refused(rule: int, row: int, field: str, value: int, message: str) -> None:
    """The example of a rule with one number that breaks it is no order."""
    trace = example_of(rule)
    trace.rows[field][row] = value
    with pytest.raises(TraceError, match=message):
        trace.verify()


def ages(trace: Trace, reads: list[tuple[int, int | None]], update: int) -> tuple[int, int]:
    """Return both sides of the conservation of ages after an update.

    `reads` are the rows that begin each read and that end it.
    """
    rows, closing = trace.rows, trace.closing
    before = np.append(0, rows["version"][:-1])
    last, left, right = closing[update - 1], 0, 0
    for begin, end in reads:
        if begin <= last:
            is_ended = end is not None and end <= last
            left += (before[end] if is_ended else update) - rows["read"][begin]
            right += rows["version"][begin] - rows["read"][begin]
            right += sum(begin < row and (end is None or row < end) for row in closing[:update])
    return int(left), int(right)


@pytest.mark.parametrize(
    ("rule", "reads", "sums"),
    [
        (6, [(0, 1), (2, 3), (4, None)], [0, 1]),
        (7, [(0, 3), (1, 2), (3, 4)], [1, 1]),
        (8, [(0, 2), (1, 3), (4, None)], [0]),
        (9, [(0, 1), (2, 3)], [0]),
    ],
)
def test_ages_of_the_examples_are_conserved(rule: int, reads: list[tuple[int, int | None]], sums: list[int]) -> None:
    """Ages of reads, summed by hand, are what `verify` says that they are after every update."""
    trace = example_of(rule)
    assert [ages(trace, reads, update) for update in range(1, trace.n_updates + 1)] == [(one, one) for one in sums]


def test_the_round_of_the_example_is_averaged_in_worker_order() -> None:
    """Numbers whose sum depends on the order, and the step that the server is told, show rule 9."""

    def send(h, w, at):  # noqa: ANN001, ANN202 # a rule
        del h
        return w, Sent(where(at.step < 2, 1.0, where(at.step < 3, 1e16, -1e16)))

    def apply(h, s, m, at):  # noqa: ANN001, ANN202 # a rule
        del h, s
        return Sent(m.x + at.step)

    base = ds.algorithms.downpour(0.1)
    server, worker = base.server._replace(init=lambda h, x: Sent(x), apply=apply), base.worker._replace(send=send)
    algorithm, problem = base._replace(sparse=False, server=server, worker=worker), ds.problems.quadratic([1.0])
    (state,) = fold(algorithm, problem, example_of(9), stops=np.array([1]))
    assert state.x.tolist() == [0.0 / 3 + 3]  # (1 + 1e16) - 1e16 = 0, and (1e16 - 1e16) + 1 = 1


def test_a_push_without_its_pull_is_found() -> None:
    """Rows that are missing are as wrong as rows that are false."""
    trace = by_hand()
    with pytest.raises(TraceError, match="row 3: push of worker 0: expected read 0, found 1"):
        Trace(np.delete(trace.rows, 3), 2).verify()


def test_a_worker_that_rests_is_not_always_busy() -> None:
    """Only where every other worker owes a push are W - 1 reads in flight after each update."""
    fleet = Fleet(4, laws.exponential(1.0), latency=0.1)
    trace = schedule((Pull(), Push(), Step()), fleet, updates=50)
    trace.verify()
    with pytest.raises(TraceError, match="expected reads in flight 3, found"):
        trace.verify(always_busy=True)


@settings(deadline=None)
@given(
    law=st.sampled_from([laws.exponential(1.0), laws.gamma(1.0, 0.5), laws.uniform(0.5, 1.5)]),
    workers=st.integers(1, 9),
    seed=st.integers(0, 1000),
    failures=st.sampled_from([None, Failures(3.0, 2.0)]),
)
def test_staleness_is_conserved(law: laws.Law, workers: int, seed: int, failures: Failures | None) -> None:
    """Applied staleness plus current ages is (W - 1) updates, whatever the times."""
    trace = schedule(PLAIN, Fleet(workers, law, failures=failures), seed=seed, updates=60)
    trace.verify(always_busy=True)
    last_read = [
        trace.rows["read"][(trace.rows["worker"] == w) & (trace.rows["verb"] == PULL)][-1]
        for w in set(range(workers)) - {trace.rows["worker"][-1]}
    ]
    ages = sum(60 - read for read in last_read)
    assert trace.staleness.sum() + ages == (workers - 1) * 60


def test_a_push_in_front_of_the_step_goes_with_the_pull_just_made() -> None:
    """Elastic averaging pulls and pushes before it steps: without latency nothing is stale."""
    trace = schedule((Pull(3), Push(3), Step()), Fleet(4, laws.exponential(1.0)), updates=50)
    trace.verify()
    assert not trace.staleness.any()


def test_an_empty_trace_is_a_trace() -> None:
    """A budget too short for any message leaves an order of nothing."""
    empty = Trace(np.empty(0, ROW), 3)
    empty.verify(always_busy=True)
    assert empty.n_updates == empty.n_dropped == len(empty.staleness) == 0


def test_rows_of_another_shape_are_refused() -> None:
    """A trace is made of rows of dtype ROW, for at least one worker."""
    with pytest.raises(ConfigError, match="rows must be a one-dimensional array of dtype ROW"):
        Trace(np.zeros(3), 1)
    with pytest.raises(ConfigError, match="workers must be a whole number >= 1, not 0"):
        Trace(np.empty(0, ROW), 0)


def test_a_trace_prints_as_one_line() -> None:
    """A trace shows how long it is, and not its rows."""
    trace = schedule((Pull(), Step(), Push()), Fleet(3), updates=5)
    assert repr(trace) == f"Trace({len(trace.rows)} rows, 5 updates, 3 workers, mean staleness 1.4)"
