"""Symbolic columns: numbers that write down what a rule computes with them.

A rule that is called with them returns formulas instead of numbers. They know the operations that
are rounded exactly and touch one coordinate; whatever else a rule does with them is refused with a
sentence. A formula has no branch: it holds for every number, or the rule has none.
"""

import numbers
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

_DEEPEST = 20
"""Operations that a line nests: Python's parser knows no more than a hundred parentheses."""

ALLOWED = "+ - * /, sqrt, abs, minimum, maximum and where"
_BRANCH = (
    "branches on a column, on h or on at (if, and, or, not, max, min or a chained comparison); "
    "use where(condition, then, otherwise)"
)
_NORM = "which mixes coordinates; a norm of the whole vector belongs to the problem's gradient"
_ROUNDED = f"which is none of the operations with equal bits everywhere; use {ALLOWED}"


class RefusedError(Exception):
    """A rule did what no formula can say."""


class Operation(NamedTuple):
    """One operation: how it is written, and its operands' names or numbers."""

    text: str
    operands: tuple[str, ...]


class Graph:
    """The operations of one call of a rule, in their order; equal ones are one."""

    def __init__(self) -> None:
        self._known: dict[Operation, str] = {}
        self.refusal = ""
        """Why there is no formula: also of a rule that has caught the error."""

    def refuse(self, why: str) -> NoReturn:
        """Raise a `RefusedError`, and remember why."""
        self.refusal = self.refusal or why
        raise RefusedError(why)

    def column(self, name: str) -> "Column":
        """Return the column that formulas call `name`."""
        return Column(self, name)

    def result(self, text: str, *operands: Any) -> str:  # noqa: ANN401 # columns and numbers
        """Return the name of an operation's result."""
        found = Operation(text, tuple(self.operand(one) for one in operands))
        return self._known.setdefault(found, f"t{len(self._known)}")

    def operand(self, value: Any) -> str:  # noqa: ANN401 # whatever a rule computes with
        """Return the name of a column, or a number as text."""
        if isinstance(value, Symbol):
            if value.graph is not self:
                self.refuse("uses a column of an earlier call; a rule keeps nothing to itself")
            return value.name
        if isinstance(value, np.ndarray) and value.ndim == 0:
            value = value.item()  # what NumPy makes of numbers alone
        if isinstance(value, np.ndarray):
            self.refuse(f"uses an array of the shape {value.shape}; a rule sees one coordinate")
        if not isinstance(value, numbers.Real):
            self.refuse(f"computes with {value!r}, which is no number")
        number = float(value)
        if number != value and value == value:  # noqa: PLR0124 # only NaN differs from itself
            self.refuse(f"uses {value!r}, which no float64 holds; write a float")
        return repr(number)

    def output(self, value: Any) -> str:  # noqa: ANN401 # a field of what a rule returned
        """Return the name of a column that a rule returns."""
        return self.operand(_no_condition(value))

    def sources(self, outputs: Sequence[str]) -> set[str]:
        """Return the names of the columns, and the numbers, on which `outputs` depend."""
        needed = set(outputs)
        for one, name in reversed(self._known.items()):
            if name in needed:
                needed.remove(name)
                needed.update(one.operands)
        return needed

    def lines(self, outputs: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the statements that `outputs` need, and the expression of each of them.

        A result that is used once stands where it is used.
        """
        operations = {name: one for one, name in self._known.items()}
        uses = Counter(outputs)
        for name in reversed(operations):
            if uses[name]:
                uses.update(operations[name].operands)
        texts: dict[str, tuple[str, int]] = {}
        statements: list[str] = []
        for name, one in operations.items():
            parts = [texts.get(operand, (operand, 0)) for operand in one.operands]
            text, depth = (one.text.format(*(part[0] for part in parts)), 1 + max(part[1] for part in parts))
            if uses[name] > 1 or depth > _DEEPEST:
                statements.append(f"t{len(statements)} = {text}")
                text, depth = f"t{len(statements) - 1}", 0
            if uses[name]:
                texts[name] = (text, depth)
        return statements, [texts.get(name, (name, 0))[0] for name in outputs]


class Symbol(NDArrayOperatorsMixin):
    """What columns and conditions have in common: operators are NumPy's functions."""

    __slots__ = ("graph", "name")
    __hash__ = object.__hash__
    # x += y gives a new column; NumPy's own would write into the old one
    __iadd__, __isub__ = NDArrayOperatorsMixin.__add__, NDArrayOperatorsMixin.__sub__
    __imul__, __itruediv__ = NDArrayOperatorsMixin.__mul__, NDArrayOperatorsMixin.__truediv__

    def __init__(self, graph: Graph, name: str) -> None:
        self.graph, self.name = graph, name

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # NumPy asks for protocols
            raise AttributeError(name)
        self.graph.refuse(f"uses .{name} of a column; a rule sees one number of it: use {ALLOWED}")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *given: object, **options: object) -> Any:  # noqa: ANN401 # a column or a condition
        name = f"numpy.{ufunc.__name__}"
        if method != "__call__":
            self.graph.refuse(f"uses {name}.{method}, {_NORM}")
        if ufunc not in _UFUNCS or options:
            self.graph.refuse(_REFUSED.get(ufunc, f"uses {name}, {_ROUNDED}"))
        kind, text = _UFUNCS[ufunc]
        return kind(self.graph, self.graph.result(text, *map(_no_condition, given)))

    def __array_function__(
        self, function: Callable[..., Any], types: object, given: Sequence[Any], options: object
    ) -> Any:  # noqa: ANN401 # a column, or a number that `where` passes on
        if function is np.where and len(given) == 3 and not options:
            return _where(self.graph, *given)
        name = f"{function.__module__}.{function.__name__}"
        why = _ROUNDED if function.__name__ in _ELEMENTWISE else _NORM
        return self.graph.refuse(f"uses {name}, {_INSTEAD.get(function.__name__, why)}")


class Condition(Symbol):
    """What a comparison gives: only `where` takes it."""

    __slots__ = ()


class Column(Symbol):
    """A number per coordinate, or one for all of them: a hyper-parameter, or a part of `at`."""

    __slots__ = ()


_ELEMENTWISE = {"round", "around", "fix", "nan_to_num", "real", "imag", "sinc", "i0", "unwrap"}
_INSTEAD = {
    "clip": "which a rule does not know; use minimum and maximum",
    "zeros_like": "which makes an array; write 0.0",
    "ones_like": "which makes an array; write 1.0",
    "full_like": "which makes an array; write the number",
}


def _no_condition(value: Any) -> Any:  # noqa: ANN401 # whatever a rule computes with
    if isinstance(value, Condition):
        value.graph.refuse("computes with a condition; use where(condition, then, otherwise)")
    return value


def _where(graph: Graph, condition: Any, then: Any, otherwise: Any) -> Any:  # noqa: ANN401 # numbers or columns
    if isinstance(condition, (bool, np.bool_)):
        return then if condition else otherwise
    if not isinstance(condition, Condition):
        graph.refuse("gives where a number; where needs a comparison, such as x > 0")
    branches = map(_no_condition, (then, otherwise))
    return Column(graph, graph.result("where({}, {}, {})", condition, *branches))


_UFUNCS: Mapping[np.ufunc, tuple[type[Symbol], str]] = {
    np.add: (Column, "({} + {})"),
    np.subtract: (Column, "({} - {})"),
    np.multiply: (Column, "({} * {})"),
    np.divide: (Column, "divide({}, {})"),
    np.negative: (Column, "(-{})"),
    np.positive: (Column, "(+{})"),
    np.absolute: (Column, "abs({})"),
    np.fabs: (Column, "abs({})"),
    np.sqrt: (Column, "sqrt({})"),
    np.minimum: (Column, "minimum({}, {})"),
    np.maximum: (Column, "maximum({}, {})"),
    np.less: (Condition, "({} < {})"),
    np.less_equal: (Condition, "({} <= {})"),
    np.greater: (Condition, "({} > {})"),
    np.greater_equal: (Condition, "({} >= {})"),
    np.equal: (Condition, "({} == {})"),
    np.not_equal: (Condition, "({} != {})"),
}
_REFUSED: Mapping[np.ufunc, str] = {
    np.power: "uses **, which has other bits elsewhere; write products",
    np.floor_divide: f"uses //, which a rule does not know; use {ALLOWED}",
    np.remainder: f"uses %, which a rule does not know; use {ALLOWED}",
    np.divmod: f"uses divmod, which a rule does not know; use {ALLOWED}",
    np.matmul: f"uses @, {_NORM}",
    np.bitwise_and: "uses &; nest two where",
    np.bitwise_or: "uses |; nest two where",
    np.bitwise_xor: "uses ^; nest two where",
    np.left_shift: f"uses <<; use {ALLOWED}",
    np.right_shift: f"uses >>; use {ALLOWED}",
    np.invert: "uses ~; exchange then and otherwise of where",
}
_SINGLE = {
    "bool": _BRANCH,
    "float": "turns a column into a number (float, or a function of math); use sqrt, abs and the "
    "others of distsgd.algorithm",
    "array": "turns a column into an array; a rule sees one coordinate",
    "iter": "goes through a column (for, sum, in); a rule sees one coordinate",
    "len": "uses len of a column; a rule sees one coordinate",
    "getitem": "picks a part of a column ([...]); a rule sees one coordinate",
    "setitem": "changes a column; return new ones",
    "contains": "uses in; a rule sees one coordinate",
    "round": f"uses round; use {ALLOWED}",
    "call": "calls a column",
} | dict.fromkeys(
    ("int", "index", "complex", "trunc", "floor", "ceil"),
    f"turns a column into another kind of number (int, floor and the like); use {ALLOWED}",
)


def _refusing(why: str) -> Callable[..., NoReturn]:
    return lambda self, *_given, **_options: self.graph.refuse(why)


for _name, _why in _SINGLE.items():
    setattr(Symbol, f"__{_name}__", _refusing(_why))
