"""Compiled twins of an algorithm's rules, and loops over coordinates generated around them.

1. What is compiled is a rule's formula (`distsgd.rules.formulas`), and the compiler inlines it.
2. The loops are generated as source, because only source can name columns: `State(S.x[i], S.z[i])`,
   the rule, and the columns stored back. A loop costs about a tenth more than one written by hand.
   Its source stands beside the kernel that calls it.
3. Hyper-parameters are an argument. Loops are compiled once for equal formulas, and never again for
   another learning rate.
4. All loops of one rule set take the same classes, whichever kernel they belong to: the columns
   that a driver makes are those of each kernel.
5. Where columns are float32, each rule widens what it takes to float64, computes, and rounds what
   it returns, as in the interpreted driver.
6. A sum of messages begins with the first of them, as in the interpreted driver. Begun with 0.0, a
   message of -0.0 would become 0.0, which is another number to a division.

In the loops, S is the server's state, W the workers' states, V the versions that workers have
pulled, R what one worker has read at its support (or each of them, where reads interleave), L what
each has loaded in order to change it, M one message, and B the messages in flight.
"""

import ast
import functools
import itertools
import math
import re
from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from distsgd.algorithm import Algorithm, At, Contract
from distsgd.kernels import specialised
from distsgd.kernels.atomic import exchanged, hold, loaded, release
from distsgd.rules.formulas import FLOAT64, Formula

Loop = Callable[..., Any]


_RULES = ("init", "receive", "position", "step", "send", "apply")
"""The rules, as the loops call them."""


@specialised
def _where(condition: bool, then: float, otherwise: float) -> float:
    return then if condition else otherwise


@specialised
def _divide(one: float, other: float) -> float:
    return one / other


@specialised
def _minimum(one: float, other: float) -> float:
    # NaN stays NaN, and -0.0 becomes 0.0
    return (one if one < other or math.isnan(one) else other) + 0.0


@specialised
def _maximum(one: float, other: float) -> float:
    return (one if one > other or math.isnan(one) else other) + 0.0


@specialised
def _rounded(value: float) -> float:
    return np.float64(np.float32(value))


@specialised
def within(at: Any, factors: Any, i: int) -> Any:  # noqa: ANN401 # At, and float64[d] or None
    """Return what is known in the coordinate i, whose layer may have a factor of its own."""
    if factors is None:
        return at
    return At(at.version, at.staleness, at.workers, at.step, at.factor * factors[i])


_NUMBERS = {
    "divide": _divide,
    "sqrt": math.sqrt,
    "where": _where,
    "minimum": _minimum,
    "maximum": _maximum,
    "nan": math.nan,
    "inf": math.inf,
}
"""What formulas call, for one coordinate."""


class Columns(NamedTuple):
    """The NamedTuples that the loops of an algorithm take."""

    hyper: Any
    state: Any
    replica: Any
    reads: Any
    message: Any


class Left(NamedTuple):
    """Columns of a worker that a rule leaves as they were."""

    receive: frozenset[str]
    step: frozenset[str]
    send: frozenset[str]

    @classmethod
    def of(cls, contract: Contract) -> "Left":
        """Return what the rules of a contract leave."""
        return cls(*(_left(getattr(contract, rule), contract.replica._fields) for rule in cls._fields))


def _left(formula: Formula, fields: Sequence[str]) -> frozenset[str]:
    returned = ast.parse(formula.result, mode="eval").body
    replica = returned.elts[0] if isinstance(returned, ast.Tuple) else returned
    assert isinstance(replica, ast.Call)  # as formulas are written
    return frozenset(name for name, one in zip(fields, replica.args, strict=True) if ast.unparse(one) == f"w.{name}")


class Names(NamedTuple):
    """Names of the columns, by the NamedTuple that holds them."""

    hyper: Sequence[str]
    state: Sequence[str]
    replica: Sequence[str]
    reads: Sequence[str]
    message: Sequence[str]
    left: Left


def values(names: Sequence[str], column: str) -> str:
    """Return an argument list: ``values(("x", "z"), "S.{}[i]")`` is ``S.x[i], S.z[i]``."""
    return ", ".join(column.format(name) for name in names)


def stores(names: Sequence[str], statement: str) -> str:
    """Return one statement per column, on one line."""
    return "; ".join(statement.format(name) for name in names)


def received(names: Names, read: str) -> str:
    """Return the state of a worker that remembers nothing, from the columns that it has read."""
    return f"receive(h, init(h, 0.0), {values(names.reads, read)}, at)"


def applied(names: Names, message: str, state: str = "S.{}[i]") -> str:
    """Return statements, on one line, that apply a message to the coordinate i of the server."""
    s = f"apply(h, State({values(names.state, state)}), Message({values(names.message, message)}), at)"
    return f"s = {s}; {stores(names.state, 'S.{0}[i] = s.{0}')}"


class RuleSet(NamedTuple):
    """What decides the loops of an algorithm: everything but its numbers."""

    formulas: tuple[Formula, ...]
    names: Names
    dtype: str = "float64"
    """The type of the columns, float64 or float32."""

    @classmethod
    def of(cls, algorithm: Algorithm, dtype: np.dtype[Any] = FLOAT64) -> "RuleSet":
        """Return the rule set of `algorithm`, for columns of the type `dtype`."""
        known = Contract.of(algorithm)
        names = Names(
            hyper=type(algorithm.hyper)._fields,
            state=known.state._fields,
            replica=known.replica._fields,
            reads=algorithm.server.reads,
            message=known.message._fields,
            left=Left.of(known),
        )
        return cls(tuple(known.formulas.values())[1:], names, dtype.name)


_serial_numbers = itertools.count()


@functools.cache
def columns(rules: RuleSet) -> Columns:
    """Return the NamedTuples of a rule set: the same for all of its loops (rule 4).

    They have the fields of the algorithm's own, but names that no other class has: numba tells two
    classes apart by their names and fields, or else, thirty times slower, by a search.
    """
    names = (getattr(rules.names, kind) for kind in Columns._fields)
    return Columns(*(namedtuple(f"Columns{next(_serial_numbers)}", fields) for fields in names))


def empty_columns(kind: Any, shape: int | tuple[int, ...], dtype: np.dtype[Any] = FLOAT64) -> Any:  # noqa: ANN401 # NamedTuples
    """Return room for the numbers of one of the `Columns`."""
    return kind(*(np.empty(shape, dtype) for _ in kind._fields))


@functools.cache
def _compiled_rules(rules: RuleSet) -> dict[str, Any]:
    """Return what generated source may name: the rules, the classes, and words of shared memory."""
    _, state, replica, _, message = columns(rules)
    scope: dict[str, Any] = {"State": state, "Replica": replica, "Message": message, **_NUMBERS}
    scope |= {"float64": np.float64, "rounded": _rounded, "within": within}
    scope |= {"exchanged": exchanged, "loaded": loaded, "hold": hold, "release": release}
    for name, formula in zip(_RULES, rules.formulas, strict=True):
        exec(formula.source(name), scope)
        scope[name] = specialised(scope[name])
        if rules.dtype != FLOAT64.name:  # rule 5
            scope[f"exact_{name}"] = scope[name]
            exec(_rounding_source(name, formula, rules.names), scope)
            scope[name] = specialised(scope[name])
    return scope  # shared: `loops` runs each source in a copy, so that equal names do not meet


_TAKEN = {"w": "replica", "s": "state", "m": "message"}
"""The arguments of rules that are NamedTuples of columns, and whose columns they have."""
_RETURNED = {"position": (), "send": ("Replica", "Message"), "apply": ("State",)}
"""The classes that rules return, a `Replica` where nothing else is said."""


def _rounding_source(name: str, formula: Formula, names: Names) -> str:
    """Return a rule for float32 columns around the one of float64 (rule 5)."""
    given = ", ".join(_widened(argument, names) for argument in formula.arguments)
    kinds = _RETURNED.get(name, ("Replica",))
    parts = ["first", "second"][: len(kinds)]
    returned = ", ".join(
        f"{kind}({values(getattr(names, kind.lower()), f'rounded({part}.{{}})')})"
        for kind, part in zip(kinds, parts, strict=True)
    )
    return f"""
def {name}({", ".join(formula.arguments)}):
    {", ".join(parts) or "first"} = exact_{name}({given})
    return {returned or "rounded(first)"}
"""


def _widened(argument: str, names: Names) -> str:
    if argument in {"h", "at"}:
        return argument
    if argument not in _TAKEN:
        return f"float64({argument})"
    kind = _TAKEN[argument]
    return f"{kind.capitalize()}({values(getattr(names, kind), f'float64({argument}.{{}})')})"


@functools.cache
def loops(rules: RuleSet, write: Callable[[Names], str]) -> dict[str, Loop]:
    """Return the loops that `write` gives the source of, around `rules`: by name, in its order."""
    source, scope = write(rules.names), dict(_compiled_rules(rules))
    exec(source, scope)
    return {name: specialised(scope[name]) for name in re.findall(r"^def (\w+)", source, re.MULTILINE)}
