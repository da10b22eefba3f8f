"""The contract of an algorithm, and its checks."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd import algorithms
from distsgd.algorithm import (
    Algorithm,
    At,
    Pull,
    Push,
    Rules,
    Server,
    Start,
    Step,
    Worker,
    before_step,
    check_algorithm,
    check_cycle,
    exchange,
    is_memoryless,
    message_columns,
    settings,
    verb,
    where,
)
from distsgd.errors import ConfigError

EVERY = {
    "serial": algorithms.serial(0.1),
    "synchronous": algorithms.synchronous(0.1, backup=1),
    "hogwild": algorithms.hogwild(0.1),
    "downpour": algorithms.downpour(0.1),
    "downpour, adagrad": algorithms.downpour(0.1, server="adagrad"),
    "downpour, periods": algorithms.downpour(0.1, n_fetch=3, n_push=2),
    "adaptive_revision": algorithms.adaptive_revision(0.1),
    "elastic_averaging": algorithms.elastic_averaging(0.1, period=3),
    "elastic_averaging, momentum": algorithms.elastic_averaging(0.1, 0.2, 3, momentum=0.9),
    "stale_synchronous": algorithms.stale_synchronous(0.1, 2),
}
SPARSE = {name: one for name, one in EVERY.items() if one.sparse}

columns = st.floats(-100, 100)


class Numbers(NamedTuple):
    """Hyper-parameters of a small algorithm."""

    learning_rate: float


class State(NamedTuple):
    """Its one column, of the server and of a worker."""

    x: float


class Message(NamedTuple):
    """Its message."""

    g: float


class Replica(NamedTuple):
    """A worker's point and gradient."""

    x: float
    g: float


def small(**changed: object) -> Algorithm:
    """Return plain SGD, with some of its parts changed."""
    halves = {
        "init": lambda h, x: State(x),
        "reads": ("x",),
        "apply": lambda h, s, m: State(s.x - h.learning_rate * m.g),
    }
    worker = {
        "init": lambda h, x: Replica(x, 0.0),
        "receive": lambda h, w, x: Replica(x, 0.0),
        "at": lambda h, w: w.x,
        "step": lambda h, w, g: Replica(w.x, g),
        "send": lambda h, w: (w, Message(w.g)),
    }
    server = {name: changed.get(f"server_{name}", one) for name, one in halves.items()}
    worker = {name: changed.get(f"worker_{name}", one) for name, one in worker.items()}
    return Algorithm(
        "small",
        changed.get("hyper", Numbers(0.1)),
        Server(**server),
        Worker(**worker),
        changed.get("cycle", (Pull(), Step(), Push())),
    )


@pytest.mark.parametrize("algorithm", EVERY.values(), ids=EVERY)
def test_every_algorithm_keeps_the_contract(algorithm: Algorithm) -> None:
    """The rules of each algorithm return the columns that the next rule takes."""
    check_algorithm(algorithm)


@pytest.mark.parametrize(
    "cycle",
    [
        (Pull(), Step()),
        (Step(), Push()),
        (Pull(), Pull(), Step(), Push()),
        (Pull(every=0), Step(), Push()),
        (Pull(), Step(), Push(every=-1)),
        (Pull(), Step(), Push(every=1.5)),
        (Pull(bound=-1), Step(), Push()),
        (Pull(), Step(), Push(quorum=0)),
        (Pull(), Step(), Push(quorum=None, backup=-1)),
    ],
    ids=str,
)
def test_a_cycle_that_cannot_turn_is_refused(cycle: tuple[object, ...]) -> None:
    """A cycle has one Pull, Step and Push, with whole periods, bounds and quorums."""
    with pytest.raises(ConfigError, match=r"must"):
        check_cycle(cycle)


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"server_reads": ("y",)}, "no column"),
        ({"server_apply": lambda h, s, m: Message(s.x)}, "apply must return State"),
        ({"server_apply": lambda h, s: s}, "small: rule apply must take 3 arguments"),
        ({"worker_receive": lambda h, w, x: State(x)}, "receive must return Replica"),
        ({"worker_step": lambda h, w, g: State(g)}, "step must return Replica"),
        ({"worker_send": lambda h, w: (State(w.x), Message(w.g))}, "send must return Replica"),
        ({"worker_send": lambda h, w: w}, "send must return 2 values, a state and"),
        ({"server_apply": lambda h, s, m: State(m.slope)}, "apply cannot be called on columns"),
        ({"worker_init": lambda h, x: 0.0}, "worker.init must return a NamedTuple, not float"),
        ({"hyper": Numbers(float("nan"))}, "learning_rate must be"),
        ({"hyper": Numbers("fast")}, "learning_rate must be a number"),
    ],
)
def test_rules_that_do_not_fit_are_refused(changed: dict[str, object], names: str) -> None:
    """A wrong column, argument list, state or number is named before anything runs."""
    with pytest.raises(ConfigError, match=names):
        check_algorithm(small(**changed))


def test_a_rule_may_leave_out_what_is_known() -> None:
    """A rule without `at` is called as if it took `at` and ignored it."""
    asks = small(server_apply=lambda h, s, m, at: State(s.x - at.factor * h.learning_rate * m.g))
    at = At(version=3, staleness=1, workers=2, step=4, factor=1.0)
    results = [Rules.of(one).apply(one.hyper, State(2.0), Message(0.5), at) for one in (small(), asks)]
    assert results[0] == results[1] == State(2.0 - 0.1 * 0.5)


def test_memoryless_workers_are_told_from_others() -> None:
    """A worker is memoryless exactly when nothing that it keeps from before a pull can matter."""
    keeps = {"downpour, periods", "elastic_averaging", "elastic_averaging, momentum"}
    assert {name for name, one in EVERY.items() if not is_memoryless(one)} == keeps


MEMORIES = {
    "accrues": {
        "worker_receive": lambda h, w, x: Replica(x, w.g),
        "worker_step": lambda h, w, g: Replica(w.x, w.g + g),
    },
    "moves its point": {"worker_receive": lambda h, w, x: Replica(x, w.g), "worker_at": lambda h, w: w.x + w.g},
    "decides by its state": {"worker_receive": lambda h, w, x: Replica(where(w.x > 0, x, -x), 0.0)},
}


@pytest.mark.parametrize("worker", MEMORIES.values(), ids=MEMORIES)
def test_a_memory_is_found_wherever_it_acts(worker: dict[str, object]) -> None:
    """A state that reaches the point or the message, or decides over them, is a memory."""
    assert not is_memoryless(small(**worker))
    assert is_memoryless(small())


def test_a_state_that_every_push_resets_is_no_memory() -> None:
    """What `send` sets to a constant, and `init` to the same one, may survive a pull."""
    resets = {
        "worker_receive": lambda h, w, x: Replica(x, w.g),
        "worker_step": lambda h, w, g: Replica(w.x, w.g + g),
        "worker_send": lambda h, w: (Replica(w.x, 0.0), Message(w.g)),
    }
    assert is_memoryless(small(**resets))


@pytest.mark.parametrize("algorithm", SPARSE.values(), ids=SPARSE)
@given(x=columns, more=st.lists(columns, min_size=3, max_size=3), read=st.lists(columns, min_size=2))
def test_a_sparse_algorithm_leaves_coordinates_without_gradient_alone(
    algorithm: Algorithm, x: float, more: list[float], read: list[float]
) -> None:
    """Where an algorithm claims to be sparse, a gradient of 0 changes no column of the server."""
    h, server = algorithm.hyper, algorithm.server
    first = server.init(h, x)
    others = sorted(abs(value) + 1.0 for value in more)  # so that z <= z_max, as always
    state = type(first)(x, *others[: len(first) - 1])
    rules, at = Rules.of(algorithm), At(version=5, staleness=2, workers=3, step=1, factor=0.5)
    done = exchange(rules, h, rules.init(h, 0.0), read[: len(server.reads)], 0.0)
    assert rules.apply(h, state, done.message, at) == state


@pytest.mark.parametrize(
    ("push", "names"),
    [
        (Push(quorum=4), "quorum must be >= 1 and <= the number of workers \\(3\\), not 4"),
        (Push(quorum=None, backup=3), "backup must be < the number of workers \\(3\\), not 3"),
    ],
    ids=["quorum", "backup"],
)
def test_a_round_that_cannot_close_is_refused(push: Push, names: str) -> None:
    """A quorum above the workers, or as many backups as workers, names both numbers."""
    with pytest.raises(ConfigError, match=names):
        push.quorum_of(3)


def test_a_round_is_everybody_but_the_backups() -> None:
    """Without a quorum of its own, a push waits for W - b workers."""
    assert Push(quorum=None, backup=2).quorum_of(10) == 8


def test_verbs_are_found_by_kind() -> None:
    """A verb that a cycle lacks has its class's defaults, and places are relative to Step."""
    cycle = (Pull(every=3), Push(every=3), Step())
    assert verb(cycle, Pull).every == 3
    assert verb(cycle, Start) == Start()
    assert before_step(cycle, Push)
    assert not before_step((Pull(), Step(), Push()), Push)


def test_messages_carry_what_the_rules_send() -> None:
    """The columns of a push are those of the message that `send` returns."""
    assert message_columns(EVERY["adaptive_revision"]) == ("g", "g_read")
    assert message_columns(EVERY["serial"]) == ("g",)


def test_where_chooses_by_coordinate() -> None:
    """`where` takes each coordinate from one of two columns."""
    np.testing.assert_array_equal(where(np.array([True, False]), 1.0, 2.0), [1.0, 2.0])


def test_settings_tell_algorithms_apart() -> None:
    """Algorithms that differ in a number, a rule, a cycle or a schedule have other settings."""
    different = [
        *EVERY.values(),
        algorithms.hogwild(0.1, backoff=0.5),
        algorithms.serial(0.2),
        algorithms.downpour(0.1, warm_start=5),
        algorithms.stale_synchronous(0.1, 3),
    ]
    texts = [str(settings(one)) for one in different]
    assert len(set(texts)) == len(texts)
    assert settings(algorithms.hogwild(0.1)) == settings(algorithms.hogwild(0.1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: algorithms.serial(0),
        lambda: algorithms.synchronous(-0.1),
        lambda: algorithms.synchronous(0.1, backup=-1),
        lambda: algorithms.hogwild(float("nan")),
        lambda: algorithms.hogwild(0.1, backoff=1.1),
        lambda: algorithms.downpour(0.1, n_fetch=0),
        lambda: algorithms.downpour(0.1, n_push=0),
        lambda: algorithms.downpour(0.1, server="adagard"),
        lambda: algorithms.downpour(0.1, local_rate=0),
        lambda: algorithms.downpour(0.1, warm_start=-1),
        lambda: algorithms.adaptive_revision(float("inf")),
        lambda: algorithms.adaptive_revision(0.1, z0=0),
        lambda: algorithms.elastic_averaging(0.1, moving_rate=-0.1),
        lambda: algorithms.elastic_averaging(0.1, period=0),
        lambda: algorithms.elastic_averaging(0.1, momentum=1.0),
        lambda: algorithms.stale_synchronous(0.1, bound=-1),
        lambda: algorithms.serial("fast"),
        lambda: algorithms.serial(True),
    ],
)
def test_numbers_outside_their_bounds_are_refused(make: object) -> None:
    """Each constructor names the argument, its bound and the value that breaks it."""
    with pytest.raises(ConfigError, match=r"must be|unknown server 'adagard'; did you mean 'adagrad'"):
        make()
