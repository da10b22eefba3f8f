"""What a function refers to outside of its arguments, and whether that is still the same."""

import builtins
import dis
import functools
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from operator import is_
from types import CodeType, FunctionType, ModuleType
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

Result = TypeVar("Result")

MISSING = object()
"""Stands for a name that is not bound."""
PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes})
"""Types whose values are what they are."""
_FIXED = (type, ModuleType, np.ufunc, np.generic, type(np.where), type(len))
"""Types of what stays as it is; what a module's attributes are is looked up beside it."""
_INSTALLED = ("site-packages", "dist-packages")
MOST_REMEMBERED = 256


class Names(NamedTuple):
    """What a code looks up by name, that of the functions in it included."""

    globals: tuple[str, ...]
    attributes: tuple[str, ...]


@functools.lru_cache(maxsize=4096)
def names_of(code: CodeType) -> Names:
    """Return the names of globals and attributes that `code` uses, each once and sorted."""
    lines = list(dis.get_instructions(code))
    inner = [names_of(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    own = {str(line.argval) for line in lines if line.opname in {"LOAD_GLOBAL", "LOAD_NAME"}}
    attributes = {str(line.argval) for line in lines if line.opname in {"LOAD_ATTR", "LOAD_METHOD"}}
    own.update(*(one.globals for one in inner))
    attributes.update(*(one.attributes for one in inner))
    return Names(tuple(sorted(own)), tuple(sorted(attributes)))


def looked_up(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the values that a function finds outside of its arguments, with their names."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield name, _content(cell)
    for number, value in enumerate(function.__defaults__ or ()):
        yield f"default {number}", value
    yield from (function.__kwdefaults__ or {}).items()
    names = names_of(function.__code__)
    for name in names.globals:
        value = function.__globals__.get(name, MISSING)
        if value is MISSING:
            yield name, getattr(builtins, name, "missing")
        else:
            yield name, value
            yield from _of_module(name, value, names.attributes)


def _of_module(name: str, value: Any, attributes: tuple[str, ...]) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 # any global
    """Yield what a module's attributes are, those of installed packages left out."""
    is_ours = isinstance(value, ModuleType) and sys.modules.get(value.__name__, value) is not value
    if isinstance(value, ModuleType) and (is_ours or not is_library(value.__name__)):
        for attribute in attributes:
            if attribute in vars(value):
                found = vars(value)[attribute]
                yield f"{name}.{attribute}", found
                yield from _of_module(f"{name}.{attribute}", found, attributes)


def parts_of(callables: Sequence[Any]) -> list[Any] | None:
    """Return all that `callables` refer to, or None if some of it can change in place.

    As long as these are the same objects, the callables do the same. It takes less time than
    calling them.
    """
    parts: list[Any] = []
    return parts if all(_adds_parts(one, parts, set()) for one in callables) else None


def _adds_parts(value: Any, parts: list[Any], above: set[int]) -> bool:  # noqa: ANN401 # any object
    parts.append(value)
    if type(value) in PLAIN or isinstance(value, _FIXED) or id(value) in above:
        return True
    above.add(id(value))
    if type(value) is tuple:
        return all(_adds_parts(one, parts, above) for one in value)
    if not isinstance(value, FunctionType):
        return False
    parts.append(value.__code__)
    if is_library(value.__module__ or ""):
        return True
    return all(_adds_parts(one, parts, above) for _, one in looked_up(value))


def _content(cell: Any) -> Any:  # noqa: ANN401 # a cell
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return "missing"


@functools.cache
def is_library(module: str) -> bool:
    """Return whether a module is the standard library's, or of an installed package."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top == "builtins":
        return top != "__main__"
    path = str(getattr(sys.modules.get(top), "__file__", "") or "")
    return top != "distsgd" and any(f"/{place}/" in path for place in _INSTALLED)


class Memo(Generic[Result]):
    """Results of calling functions, which hold as long as these refer to the same objects."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[list[Any], Result]] = {}

    def find(self, key: Hashable, callables: Sequence[Any], make: Callable[[], Result]) -> Result:
        """Return what `make` returned for a `key` and `callables`, or call it."""
        parts, place = parts_of(callables), (key, *map(id, callables))
        if parts is None:
            return make()
        known = self._known.get(place)
        if known is None or len(known[0]) != len(parts) or not all(map(is_, parts, known[0])):
            if len(self._known) >= MOST_REMEMBERED:
                self._known.clear()
            known = self._known[place] = (parts, make())
        return known[1]
