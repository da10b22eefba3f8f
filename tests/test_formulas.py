"""Formulas: what a rule may do, and that both drivers do the same with it."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_rules import AT, FORBIDDEN, Hyper, Message, Replica, State, Writer, algorithm_of

import distsgd as ds
from distsgd.algorithm import (
    Algorithm,
    At,
    Contract,
    Rules,
    check_algorithm,
    is_memoryless,
    maximum,
    minimum,
    sqrt,
    where,
)
from distsgd.algorithms.parts import Parameters, Rate, sgd
from distsgd.errors import ConfigError
from distsgd.fold.fold import fold
from distsgd.kernels.fold.dense import server_source
from distsgd.kernels.fold.rules import RuleSet, columns, loops
from distsgd.order.schedule import schedule
from distsgd.rules.formulas import FLOAT64

NASTY = np.array(
    [0.0, -0.0, 1.0, -1.0, 0.1, -3.5, 1e-300, -1e-310, 5e-324, 1e300, -1e308, math.inf, -math.inf, math.nan, 2.0, 7.0]
)
AT_SOME = At(version=7, staleness=0, workers=3, step=4, factor=0.9)


def same_bits(one: object, other: object) -> bool:
    """Return whether two columns have equal bits, or are NaN in the same places."""
    pair = [np.array(np.broadcast_to(column, NASTY.shape)) for column in (one, other)]
    are_nan = np.isnan(pair[0]) & np.isnan(pair[1])
    return bool((are_nan | (pair[0] == pair[1]) & (np.signbit(pair[0]) == np.signbit(pair[1]))).all())


def applied(
    algorithm: Algorithm, h: Hyper, s: State, m: Message, dtype: np.dtype = FLOAT64
) -> list[tuple[object, object]]:
    """Return what both drivers make of a push, column by column of a type."""
    with np.errstate(all="ignore"):
        s, m = (type(one)(*(column.astype(dtype) for column in one)) for one in (s, m))
        whole = Rules.of(algorithm, dtype).apply(h, s, m, AT_SOME)
    rules = RuleSet.of(algorithm, dtype)
    kinds, compiled = columns(rules), loops(rules, server_source)["apply_one"]
    state = kinds.state(*(column.copy() for column in s))
    compiled(kinds.hyper(*h), state, kinds.message(*m), AT_SOME, None)
    return list(zip(whole, state, strict=True))


def nasty_columns(seed: int, kind: type) -> object:
    """Return columns of numbers in which something may go wrong, in some order."""
    return kind(*(np.random.default_rng(seed + n).permutation(NASTY) for n in range(2)))


def folded(algorithm: Algorithm, problem: object, driver: str, **given: object) -> np.ndarray:
    """Return the parameters after a few updates."""
    fleet = ds.Fleet(3, ds.exponential(1.0), latency=0.1)
    trace = schedule(algorithm.cycle, fleet, seed=1, updates=8)
    states = fold(algorithm, problem, trace, stops=np.array([8]), batch=2, seed=1, driver=driver, **given)
    return list(states)[-1].x


@given(st.integers(0, 10**6))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_rules_within_the_contract_are_accepted(seed: int) -> None:
    """Any expression of a rule's arguments and the allowed operations is a rule."""
    check_algorithm(algorithm_of(Writer(seed).source()))


@pytest.mark.parametrize("outside", FORBIDDEN)
@given(st.integers(0, 10**6))
@settings(derandomize=True, deadline=None, max_examples=4)
def test_anything_else_is_refused(outside: str, seed: int) -> None:
    """One operation outside of the contract, anywhere in a rule, is refused and the rule named."""
    writer = Writer(seed, outside)
    with pytest.raises(ConfigError, match=f"random: rule {writer.spoilt} "):
        check_algorithm(algorithm_of(writer.source()))


@pytest.mark.quick
@given(st.integers(0, 10**6))
@settings(derandomize=True, deadline=None, max_examples=6)
def test_a_rule_has_the_same_bits_whoever_calls_it(seed: int) -> None:
    """NumPy and compiled code agree on NaN, infinities, signed zeros and subnormal numbers."""
    algorithm = algorithm_of(Writer(seed).source())
    s, m = nasty_columns(seed, State), nasty_columns(seed + 2, Message)
    for dtype in (FLOAT64, np.dtype(np.float32)):
        pairs = applied(algorithm, Hyper(0.0, -2.0), s, m, dtype)
        assert all(same_bits(*pair) and pair[1].dtype == dtype for pair in pairs)


def test_float32_columns_are_computed_in_float64() -> None:
    """A rule of float32 columns has the bits of its float64 twin, rounded once at the end."""
    algorithm = ruled(lambda h, s, m: State(s.x * m.g * m.u + s.y, s.x - s.y / 3))
    narrow = [np.random.default_rng(n).normal(size=NASTY.size).astype(np.float32) for n in range(4)]
    s, m = State(*narrow[:2]), Message(*narrow[2:])
    exact = applied(algorithm, Hyper(1.0, 1.0), *(type(one)(*(c.astype(float) for c in one)) for one in (s, m)))
    for (whole, compiled), (wide, _) in zip(applied(algorithm, Hyper(1.0, 1.0), s, m, s.x.dtype), exact, strict=True):
        assert same_bits(whole, np.float32(wide))
        assert same_bits(compiled, np.float32(wide))


@pytest.mark.quick
@pytest.mark.parametrize(("memoryless", "seed"), [(False, 11), (True, 12)])
def test_a_fold_of_random_rules_has_the_same_bits(memoryless: bool, seed: int) -> None:  # a parameter
    """Interpreted and compiled folds of random rules agree in every bit."""
    algorithm = algorithm_of(Writer(seed, memoryless=memoryless, is_tame=True).source())
    problem = ds.problems.quadratic(np.linspace(0.5, 2.0, NASTY.size), noise=0.1)
    runs = [folded(algorithm, problem, one) for one in ("interpreted", "compiled")]
    assert same_bits(*runs)
    assert np.isfinite(runs[0]).all()
    assert np.unique(runs[0]).size == NASTY.size
    assert is_memoryless(algorithm) or not memoryless


def test_what_a_formula_is_made_of() -> None:
    """Helpers, closures and constants are in the formula, and what is used twice stands alone."""
    scale = 3

    def helper(x: object) -> object:
        return x * scale

    rule = sgd._replace(apply=lambda h, s, m: Parameters(helper(s.x) + helper(s.x) - 1 / 4))
    one = ds.algorithms.serial(0.1)._replace(server=rule, sparse=False)
    assert str(Contract.of(one).apply) == "t0 = (s.x * 3.0); State(((t0 + t0) - 0.25))"
    scale = 4
    assert str(Contract.of(one).apply) == "t0 = (s.x * 4.0); State(((t0 + t0) - 0.25))"


@pytest.mark.parametrize(
    ("apply", "says"),
    [
        (lambda h, s, m: np.sum(m.g * m.g), "uses numpy.sum, which mixes coordinates; a norm"),
        (lambda h, s, m: s.x**2, r"uses \*\*, which has other bits elsewhere; write products"),
        (lambda h, s, m: s.x if m.g > 0 else m.g, r"branches on a column.*use where\(condition"),
        (lambda h, s, m: s.x if h.learning_rate > 1 else m.g, "on h or on at"),
        (lambda h, s, m, at: s.x if at.step % 10 else m.g, "uses %"),
        (lambda h, s, m: m.g * np.ones(3), r"an array of the shape \(3,\); a rule sees one"),
        (lambda h, s, m: s.x + m.g * (m.g > 0), r"computes with a condition; use where"),
        (lambda h, s, m: h.learning_rate**2, r"uses \*\*"),
        (lambda h, s, m: m.g > 0, "computes with a condition"),
        (lambda h, s, m: None, "computes with None, which is no number"),
        (lambda h, s, m: m.h, "AttributeError: 'Gradient' object has no attribute 'h'"),
        (lambda h, s, m: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_the_sentence_says_what_to_use(apply: object, says: str) -> None:
    """A refusal names the algorithm, the rule and the operation, and what to write instead."""
    names = {"at"} & set(apply.__code__.co_varnames)
    rule = (
        (lambda h, s, m, at: Parameters(apply(h, s, m, at))) if names else (lambda h, s, m: Parameters(apply(h, s, m)))
    )
    mine = ds.algorithms.serial(0.1)._replace(name="mine", server=sgd._replace(apply=rule))
    with pytest.raises(ConfigError, match=f"^mine: rule apply .*{says}"):
        check_algorithm(mine)


def test_a_refusal_cannot_be_caught() -> None:
    """A rule that catches the error of an operation is refused all the same."""

    def apply(h: Rate, s: Parameters, m: object) -> Parameters:  # noqa: ARG001 # a rule's arguments
        try:
            return Parameters(np.exp(s.x))
        except Exception:  # noqa: BLE001 # whatever it is
            return s

    mine = ds.algorithms.serial(0.1)._replace(server=sgd._replace(apply=apply))
    with pytest.raises(ConfigError, match=r"uses numpy\.exp"):
        check_algorithm(mine)


def test_a_rule_that_assigns_outside_of_itself_is_refused() -> None:
    """A counter in a closure is no part of a rule, even if it has not changed anything yet."""
    calls = 0

    def apply(h: Rate, s: Parameters, m: object) -> Parameters:
        nonlocal calls
        calls += 1
        return Parameters(s.x - h.learning_rate * m.g * (1.0 if calls < 10 else 2.0))

    mine = ds.algorithms.serial(0.1)._replace(server=sgd._replace(apply=apply))
    with pytest.raises(ConfigError, match="assigns to calls, which is outside of it"):
        check_algorithm(mine)


def test_defaults_are_constants() -> None:
    """An argument with a default is a constant of the rule, unless it is called `at`."""
    found = [
        str(Contract.of(ds.algorithms.serial(0.1)._replace(server=sgd._replace(apply=rule))).apply)
        for rule in (
            lambda h, s, m, scale=2.0: Parameters(s.x - scale * m.g),
            lambda h, s, m, at=None: Parameters(s.x - at.factor * m.g),
        )
    ]
    assert found == ["State((s.x - (2.0 * m.g)))", "State((s.x - (float(at.factor) * m.g)))"]


def ruled(apply: object) -> Algorithm:
    """Return an algorithm with this rule of the server."""
    algorithm = algorithm_of(Writer(0).source())
    return algorithm._replace(server=algorithm.server._replace(apply=apply))


def test_dividing_by_zero_is_infinite() -> None:
    """A rule that divides by a staleness of 0, or a column by 0, finds infinity in both drivers."""
    algorithm = ruled(lambda h, s, m, at: State(h.a / at.staleness, (1.0 + abs(s.y)) / 0.0))
    ones = np.ones(NASTY.size)
    for pair in applied(algorithm, Hyper(0.5, 2.0), State(ones, ones), Message(ones, ones)):
        assert all(np.isposinf(column).all() for column in pair)


def test_zeros_have_one_sign_after_a_minimum() -> None:
    """`minimum` and `maximum` of 0.0 and -0.0 are 0.0 in both drivers, wherever they run."""
    algorithm = ruled(lambda h, s, m: State(minimum(s.x, m.g), maximum(s.y, m.u)))
    zeros, minus = np.zeros(NASTY.size), -np.zeros(NASTY.size)
    for pair in ((zeros, minus), (minus, zeros), (minus, minus)):
        s, m = State(pair[0], pair[0]), Message(pair[1], pair[1])
        for whole, compiled in applied(algorithm, Hyper(1.0, 1.0), s, m):
            assert not np.signbit(whole).any()
            assert same_bits(whole, compiled)


CLAIMS = {
    "decays": lambda h, s, m: Parameters(s.x - h.learning_rate * (m.g + 0.1 * s.x)),
    "drifts": lambda h, s, m, at: Parameters(s.x - h.learning_rate * m.g - 1e-9 * at.version),
    "is NaN": lambda h, s, m: Parameters(s.x - m.g / sqrt(m.g * m.g)),
}


@pytest.mark.parametrize("apply", CLAIMS.values(), ids=CLAIMS)
def test_a_false_claim_to_be_sparse_is_refused(apply: object) -> None:
    """An algorithm that moves a coordinate without gradient is not sparse, and told so."""
    mine = ds.algorithms.serial(0.1)._replace(name="mine", server=sgd._replace(apply=apply))
    with pytest.raises(ConfigError, match="mine: rule apply changes the column x of a coordinate"):
        check_algorithm(mine)
    check_algorithm(mine._replace(sparse=False))


def test_a_column_may_begin_as_a_number() -> None:
    """A column that begins as 0.0, and constants that NumPy computes, are whole vectors."""
    init = lambda h, x: State(x, 0.0)  # noqa: E731 # short
    apply = lambda h, s, m: State(s.x - h.a * m.g, where(np.sqrt(4.0) > 1.0, s.y, m.u))  # noqa: E731 # short
    counting = ruled(apply)
    counting = counting._replace(
        server=counting.server._replace(init=init),
        worker=ds.algorithms.parts.gradient_worker._replace(
            receive=lambda h, w, x, y: type(w)(x, where(w.g / w.g > 1.0, 1.0, 0.0)),
            send=lambda h, w: (w._replace(g=0.0), Message(w.g, 0.0)),
        ),
        sparse=True,
    )
    check_algorithm(counting)
    x = folded(counting, ds.problems.quadratic([1.0, 2.0]), "interpreted")
    assert np.isfinite(x).all()


def test_a_memory_far_away_is_found() -> None:
    """A worker's state that decides only beyond a million, or from step 50 on, is a memory."""
    plain = ds.algorithms.serial(0.1)
    for condition in (lambda w, at: w.x > 1e6, lambda w, at: w.x * where(at.step > 50, 1.0, 0.0) > 0):
        receive = lambda h, w, x, at, c=condition: type(w)(where(c(w, at), -x, x), 0.0)  # noqa: E731 # short
        worker = plain.worker._replace(receive=receive)
        assert not is_memoryless(plain._replace(worker=worker))


def test_a_helper_that_was_redefined_is_compiled_again() -> None:
    """A rule that stays the same object gets new machine code when its helper changes."""
    names = {"State": State}
    exec("def apply(h, s, m):\n    return State(helper(s.x), m.g)\n", names)
    algorithm, found = ruled(names["apply"]), []
    s, m = nasty_columns(0, State), nasty_columns(2, Message)
    for helper in ("2 * x", "3 * x", "2 * x"):
        exec(f"def helper(x):\n    return {helper}\n", names)
        pairs = applied(algorithm, Hyper(0.5, 2.0), s, m)
        assert all(same_bits(*pair) for pair in pairs)
        found.append(np.array(pairs[0][1]).tobytes())
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize(
    "schedule",
    [lambda epoch: random.random(), lambda: 1.0, lambda epoch: 1 / epoch, lambda epoch: "fast"],  # no secret
)
def test_a_schedule_that_is_no_function_is_refused(schedule: object) -> None:
    """A schedule that draws, fails or gives no number is refused before anything runs."""
    with pytest.raises(ConfigError, match=r"hogwild: .*schedule"):
        check_algorithm(ds.algorithms.hogwild(0.1)._replace(schedule=schedule))


def test_parts_of_at_are_numbers_that_a_formula_names() -> None:
    """A formula takes each part of `at` as a float, so that no product of them can wrap."""
    text = AT[3]
    source = Writer(0).source() + f"def apply(h, s, m, at):\n    return State({text} * s.x, s.y)\n"
    found = str(Contract.of(algorithm_of(source)).apply)
    assert found == f"State((float({text}) * s.x), s.y)"
    assert Replica._fields == Contract.of(algorithm_of(source)).replica._fields
