"""Rules as formulas: what a rule computes, as one text that every driver runs.

A rule is called on symbolic columns (`distsgd.rules.columns`), and what it returns is written down.
NumPy runs that text on whole vectors, and a kernel compiles the same text for one coordinate. So
the two have equal bits whatever the rule calls, closes over or looks up, and the text says what it
does.
"""

import ast
import dis
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import numpy as np

from distsgd.errors import ConfigError
from distsgd.rules.columns import Graph, RefusedError


class Formula(NamedTuple):
    """What a rule computes: names of its arguments, statements, and what it returns."""

    arguments: tuple[str, ...]
    statements: tuple[str, ...]
    result: str

    def source(self, name: str) -> str:
        """Return the text of a function of that `name`."""
        lines = (*self.statements, f"return {self.result}")
        return f"def {name}({', '.join(self.arguments)}):\n" + "".join(f"    {line}\n" for line in lines)

    def __str__(self) -> str:
        return "; ".join((*self.statements, self.result))


class Argument(NamedTuple):
    """An argument of a rule: a NamedTuple of columns, or a single column."""

    name: str
    kind: Any = None

    def symbol(self, graph: Graph) -> Any:  # noqa: ANN401 # a column, or a NamedTuple of columns
        """Return the argument as symbolic columns."""
        if self.kind is None:
            return graph.column(self.name)
        # whole numbers of `at` would be exact in Python, wrap in compiled code and round in NumPy
        text = "float({}.{})" if self.name == "at" else "{}.{}"
        names = (text.format(self.name, field) for field in self.kind._fields)
        return self.kind._make(map(graph.column, names))


class Returned(NamedTuple):
    """What a rule must return: a NamedTuple, of any class if `kind` is None, or a column."""

    role: str
    """What formulas call the class; empty for a column."""
    kind: Any = None


COLUMN = Returned("")


class Traced(NamedTuple):
    """A rule's formula, and the classes of what it returned."""

    formula: Formula
    kinds: tuple[Any, ...]


def trace(place: str, rule: Callable[..., Any], arguments: Sequence[Argument], returns: Sequence[Returned]) -> Traced:
    """Return the formula of a rule, which errors call `place`, for example ``"mine: rule apply"``.

    It `returns` one part, or a tuple of several. A rule that has no formula, or returns something
    else, is a `ConfigError`.
    """
    first, second = (_called(place, rule, arguments, returns) for _ in range(2))
    effect = _effect(rule)
    if first.formula != second.formula or effect:
        why = effect or "gives another formula at each call: random numbers, a clock or a counter"
        raise ConfigError(f"{place} {why}; a rule is a function of its arguments, so pass what it needs in them")
    return first


def _called(place: str, rule: Callable[..., Any], arguments: Sequence[Argument], returns: Sequence[Returned]) -> Traced:
    graph = Graph()
    try:
        returned = rule(*(one.symbol(graph) for one in arguments))
        parts = tuple(_parts(place, returned, returns))
        columns = [graph.output(one) for part in parts for one in _columns(part)]
    except ConfigError:
        raise
    except RefusedError:
        raise _refused(place, graph) from None
    except Exception as error:
        if graph.refusal:
            raise _refused(place, graph) from None
        msg = f"{place} cannot be called on columns ({type(error).__name__}: {error}); correct it"
        raise ConfigError(msg) from error
    if graph.refusal:  # and the rule has caught it
        raise _refused(place, graph)
    statements, texts = graph.lines(columns)
    left = iter(texts)
    result = ", ".join(_written(part, one, left) for part, one in zip(parts, returns, strict=True))
    names = tuple(one.name for one in arguments)
    return Traced(Formula(names, tuple(statements), result), tuple(map(type, parts)))


def _refused(place: str, graph: Graph) -> ConfigError:
    return ConfigError(f"{place} {graph.refusal}")


def _parts(place: str, returned: Any, returns: Sequence[Returned]) -> Iterator[Any]:  # noqa: ANN401 # whatever a rule returned
    if len(returns) > 1 and not (type(returned) is tuple and len(returned) == len(returns)):
        found = type(returned).__name__
        raise ConfigError(f"{place} must return {len(returns)} values, a state and a message, not {found}")
    for part, one in zip(returned if len(returns) > 1 else (returned,), returns, strict=True):
        expected = one.kind.__name__ if one.kind else "a NamedTuple"
        is_right = type(part) is one.kind if one.kind else hasattr(type(part), "_fields")
        if one.role and not is_right:
            raise ConfigError(f"{place} must return {expected}, not {type(part).__name__}")
        yield part


def _columns(part: Any) -> Sequence[Any]:  # noqa: ANN401 # a column, or a NamedTuple of columns
    return part if hasattr(type(part), "_fields") else (part,)


def _written(part: Any, one: Returned, texts: Iterator[str]) -> str:  # noqa: ANN401 # as above
    own = [next(texts) for _ in _columns(part)]
    return f"{one.role}({', '.join(own)})" if one.role else own[0]


def _effect(rule: Callable[..., Any]) -> str:
    """Return what a rule visibly changes outside of itself, or nothing."""
    code = getattr(inspect.unwrap(rule), "__code__", None)
    return _effect_of(code) if isinstance(code, CodeType) else ""


@functools.lru_cache(maxsize=1024)
def _effect_of(code: CodeType) -> str:
    for line in dis.get_instructions(code):
        is_outside = line.opname == "STORE_DEREF" and line.argval in code.co_freevars
        if is_outside or line.opname in {"STORE_GLOBAL", "DELETE_GLOBAL"}:
            return f"assigns to {line.argval}, which is outside of it"
    return ""


@functools.lru_cache(maxsize=1024)
def _parameters(code: CodeType, n_defaults: int) -> tuple[int, bool]:
    """Return the arguments that a function needs, and whether `at` follows them."""
    needed = code.co_argcount - n_defaults
    return needed, "at" in code.co_varnames[needed : needed + 1] and n_defaults > 0


def takes_at(place: str, rule: Callable[..., Any], arguments: int) -> bool:
    """Return whether a rule takes `at` behind its `arguments` others, or raise a `ConfigError`.

    Arguments with defaults do not count, unless the next one is called ``at``.
    """
    if isinstance(rule, FunctionType) and not hasattr(rule, "__wrapped__"):
        needed, has_at = _parameters(rule.__code__, len(rule.__defaults__ or ()))
    else:
        own = [
            one
            for one in inspect.signature(rule).parameters.values()
            if one.kind in {one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD}
        ]
        needed = sum(one.default is one.empty for one in own)
        has_at = [one.name for one in own[needed : needed + 1]] == ["at"]
    if needed not in {arguments, arguments + 1}:
        raise ConfigError(f"{place} must take {arguments} arguments, or `at` behind them, not {needed}")
    return needed == arguments + 1 or has_at


FLOAT64: np.dtype[Any] = np.dtype(np.float64)
"""The type in which rules compute, and that of columns where a problem says nothing else."""


def _real(value: Any) -> Any:  # noqa: ANN401 # a number or an array
    return value if isinstance(value, np.ndarray) else float(value)


def _as_type(dtype: np.dtype[Any], column: Any) -> Any:  # noqa: ANN401 # a number or an array
    """Return a column in another type, itself if it has that."""
    return column.astype(dtype, copy=False) if isinstance(column, np.ndarray) else dtype.type(column)


_NUMPY: Mapping[str, Any] = {
    # a factor on the learning rate may be one number per coordinate
    "float": _real,
    "wide": functools.partial(_as_type, FLOAT64),
    # Python's own division raises an error where a whole vector and compiled code give infinity
    "divide": np.divide,
    "sqrt": np.sqrt,
    "where": np.where,
    # which of -0.0 and 0.0 they return alone depends on the machine
    "minimum": lambda one, other: np.minimum(one, other) + 0.0,
    "maximum": lambda one, other: np.maximum(one, other) + 0.0,
    "nan": np.nan,
    "inf": np.inf,
}


def whole(column: Any, dimension: int) -> Any:  # noqa: ANN401 # a number or an array
    """Return what a formula gives as a vector: one number if it names no column."""
    return column if np.shape(column) else np.full(dimension, column, getattr(column, "dtype", FLOAT64))


SYMBOLIC: tuple[tuple[str, Any], ...] = (
    ("float", lambda column: column),
    ("minimum", np.minimum),
    ("maximum", np.maximum),
)
"""Kinds for a formula of symbolic columns."""


@functools.lru_cache(maxsize=1024)
def for_numpy(
    formula: Formula, kinds: tuple[tuple[str, Any], ...], dtype: np.dtype[Any] = FLOAT64
) -> Callable[..., Any]:
    """Return a formula as a function of numbers or arrays; `kinds` are the classes of its result.

    It computes in float64, and returns columns of the type `dtype`. Overflow and division by zero
    warn as NumPy is told to.
    """
    namespace = {**_NUMPY, **dict(kinds)}
    if dtype != FLOAT64:
        namespace["narrow"] = functools.partial(_as_type, dtype)
        formula = _rounding(formula, namespace)
    exec(formula.source("rule"), namespace)
    found: Callable[..., Any] = namespace["rule"]
    return found


def _rounding(formula: Formula, known: Mapping[str, Any]) -> Formula:
    """Return a formula that widens the columns with which it computes, and narrows what it returns.

    A column that it returns as it stands is not widened before.
    """
    taken = "|".join(one for one in formula.arguments if one not in {"h", "at"})
    columns = re.compile(rf"(?<![\w.])(?:{taken})\b(?:\.\w+)?")
    widened: dict[str, str] = {}

    def wide(text: str) -> str:
        return columns.sub(lambda found: widened.setdefault(found[0], f"wide{len(widened)}"), text)

    def narrow(part: ast.expr) -> str:
        role = ast.unparse(part.func) if isinstance(part, ast.Call) else ""
        if isinstance(part, ast.Call) and isinstance(known.get(role), type):  # a class of columns
            return f"{role}({', '.join(map(narrow, part.args))})"
        text = ast.unparse(part)
        return f"narrow({text if columns.fullmatch(text) else wide(text)})"

    statements = [wide(one) for one in formula.statements]
    body = ast.parse(formula.result, mode="eval").body
    result = ", ".join(map(narrow, body.elts if isinstance(body, ast.Tuple) else [body]))
    first = (f"{name} = wide({column})" for column, name in widened.items())
    return Formula(formula.arguments, (*first, *statements), result)
