"""Recorded orders by hand: what a lost life changes, and which orders cannot be."""

import numpy as np
import pytest
from recorded_order import by_hand, folded

import distsgd as ds
from distsgd import algorithms
from distsgd.errors import TraceError
from distsgd.lives import Lives
from distsgd.trace import DROP, JOIN, LEAVE, PULL, PUSH, ROW, VERBS, Trace


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


def test_a_read_ends_in_its_push_or_with_its_life() -> None:
    """Every pull that is used begins one read, which ends where it was used or lost."""
    lives = Lives(by_hand().rows)
    opens, ends = lives.reads(lives.claims)
    found = dict(zip(opens.tolist(), ends.tolist(), strict=True))
    assert found == {0: 4, 1: 5, 2: 3, 6: 11, 7: 12, 9: 10}
    rows = np.delete(by_hand().rows, 5)[:9]
    opens, ends = Lives(rows).reads(Lives(rows).claims)
    found = dict(zip(opens.tolist(), ends.tolist(), strict=True))
    assert found == {0: 4, 1: 7, 2: 3, 5: -1, 6: -1, 8: -1}


def test_verbs_have_names() -> None:
    """Each verb has the name that reports show."""
    assert [VERBS[verb] for verb in (PULL, PUSH, DROP, JOIN, LEAVE)] == list(VERBS)
