"""What a callable or an object does, as a digest: equal digests, equal results.

1. A function is its code, its defaults, and the values that it closes over or looks up: helpers
   with their own code, constants, classes with their methods. Line numbers, file names, addresses
   and docstrings do not count.
2. Functions and classes of the standard library and of installed packages are their names and the
   package's version.
3. Any other object is what pickle would keep of it. One that pickle refuses has no stable value.

A digest survives a restart, and does not depend on ``PYTHONHASHSEED``. Another minor version of
Python compiles to another code, so that functions have other digests there; saved runs are then
made again rather than mistaken.
"""

import functools
import hashlib
import inspect
import secrets
import sys
import weakref
from collections import namedtuple
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.rules.surroundings import MISSING, PLAIN, is_library, looked_up

_METHODS = (FunctionType, staticmethod, classmethod, property, functools.cached_property)
_INNER: Mapping[type, tuple[str, ...]] = {
    MethodType: ("__func__", "__self__"),
    BuiltinFunctionType: ("__name__", "__self__"),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget", "fset"),
    functools.cached_property: ("func",),
    ModuleType: ("__name__",),
}
"""What stands for an object of these types."""
_NAMED_TUPLE = frozenset(vars(namedtuple("_NAMED_TUPLE", ()))) - {"_field_defaults"}  # no fields


class UnidentifiedError(Exception):
    """Something has no stable value; the message is a sentence without a subject."""


def digest(value: object) -> str:
    """Return the hexadecimal SHA-256 of what `value` does, or raise an `UnidentifiedError`."""
    return _Walk().text((value,))


def identified(place: str, value: object) -> dict[str, Any]:
    """Return what identifies `value` in the settings of a run, as JSON: ``identity``, its digest.

    If it has none, why it is ``unidentified``, and a random ``token``, so that the run is equal to
    no other. A sentence calls it `place`, for example ``"the schedule of mine"``.
    """
    try:
        return {"identity": digest(value)}
    except UnidentifiedError as error:
        why = f"{place} {error}; the run is never used again: pass plain numbers or arrays instead"
        return {"unidentified": why, "token": secrets.token_hex(16)}


class _Walk:
    """One walk over what a value refers to, which may refer back to it."""

    def __init__(self) -> None:
        self._above: dict[int, int] = {}
        self._done: dict[int, str] = {}
        self._kept: list[Any] = []  # an address is an object's only as long as it lives
        self._path: list[str] = []

    def text(self, value: Any, name: str = "") -> str:  # noqa: ANN401 # whatever is identified
        """Return a text for `value`: the digest of what it does, or its place if it is above."""
        if type(value) in PLAIN:
            return f"{type(value).__name__}:{value!r}"
        key = id(value)
        if key in self._above:
            return f"above:{self._above[key]}"
        if key not in self._done:
            self._above[key] = len(self._above)
            self._path.append(name or (self._path[-1] if self._path else ""))
            described = f"{type(value).__name__}({self._described(value)})"
            self._kept.append(value)
            self._path.pop()
            del self._above[key]
            self._done[key] = hashlib.sha256(described.encode()).hexdigest()
        return self._done[key]

    def _all(self, values: Any) -> str:  # noqa: ANN401 # an iterable
        return ",".join(map(self.text, values))

    def _named(self, pairs: Any) -> str:  # noqa: ANN401 # pairs of a name and a value
        return ",".join(f"{name}={self.text(value, str(name))}" for name, value in pairs)

    def _described(self, value: Any) -> str:  # noqa: ANN401 # as above
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return array_digest(value)
        if type(value) in {set, frozenset}:
            return ",".join(sorted(map(self.text, value)))
        if type(value) in {tuple, list}:
            return self._all(value)
        if type(value) is dict:
            return ",".join(f"{self.text(key)}:{self.text(one, str(key))}" for key, one in value.items())
        if isinstance(value, CodeType):
            return self._code(value)
        return _library_name(value) or self._own(value)

    def _own(self, value: Any) -> str:  # noqa: ANN401 # any object of no library
        if isinstance(value, FunctionType):
            return self._function(value)
        return self._class(value) if isinstance(value, type) else self._object(value)

    def _code(self, code: CodeType, doc: object = MISSING) -> str:
        own = (
            code.co_code.hex(),
            code.co_exceptiontable.hex(),
            code.co_names,
            code.co_varnames,
            code.co_freevars,
            code.co_cellvars,
            code.co_argcount,
            code.co_posonlyargcount,
            code.co_kwonlyargcount,
            code.co_flags,
        )
        constants = [None if doc and one is doc else one for one in code.co_consts]
        # constants stand in the code by their place, and may be the same object elsewhere
        return f"{own}{[_constant(self, one) for one in constants]}"

    def _function(self, function: FunctionType) -> str:
        code = self._code(function.__code__, function.__doc__)
        extra = {name: one for name, one in vars(function).items() if name != "__wrapped__"}
        return f"{code}{self._named(looked_up(function))}{self._named(extra.items())}"

    def _class(self, kind: type) -> str:
        fields = getattr(kind, "_fields", ()) if issubclass(kind, tuple) else ()
        members = sorted((name, one) for name, one in vars(kind).items() if _is_about(kind, name, one))
        return f"{kind.__name__}{fields}{self._all(kind.__bases__)}{self._named(members)}"

    def _object(self, value: Any) -> str:  # noqa: ANN401 # any object
        for kind, names in _INNER.items():
            if isinstance(value, kind):
                return self._named((name, getattr(value, name)) for name in names)
        if inspect.isdatadescriptor(value) and hasattr(value, "__objclass__"):
            return str(getattr(value, "__name__", ""))  # a slot, or a field of a C structure
        for inner in ("py_func", "__wrapped__"):  # what numba and functools have wrapped
            if isinstance(vars_of(value).get(inner), FunctionType):
                return self.text(vars_of(value)[inner])
        return self._reduced(value)

    def _reduced(self, value: Any) -> str:  # noqa: ANN401 # any object
        try:
            reduced = value.__reduce_ex__(2)
        except Exception:  # noqa: BLE001 # whatever an object raises, it has no value
            raise self._unidentified(value) from None
        if isinstance(reduced, str):
            return f"{type(value).__module__}.{reduced}"
        made, given, state, *items = (*reduced, None, None, None)[:5]
        if type(value) is object:
            raise self._unidentified(value)
        if isinstance(state, Mapping):
            state = {key: one for key, one in state.items() if not _is_cached(value, key)}
        parts = [self.text(made), self._all(given)]
        parts.append(self._named(state.items()) if isinstance(state, dict) else self.text(state))
        return ";".join(parts + [self._all(one or ()) for one in items])

    def _unidentified(self, value: object) -> UnidentifiedError:
        kind = type(value)
        name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
        what = f"`{self._path[-1]}` of the type {name}" if self._path[-1] else f"an object {name}"
        return UnidentifiedError(f"uses {what}, which has no stable value")


def _constant(walk: _Walk, value: Any) -> str:  # noqa: ANN401 # a constant of a code object
    if isinstance(value, CodeType):
        return walk._code(value)  # noqa: SLF001 # a part of the walk
    if isinstance(value, tuple):
        return f"({','.join(_constant(walk, one) for one in value)})"
    if isinstance(value, frozenset):
        return f"{{{','.join(sorted(_constant(walk, one) for one in value))}}}"
    return f"{type(value).__name__}:{value!r}"


def vars_of(value: object) -> Mapping[str, Any]:
    """Return the attributes of an object, none if it keeps them elsewhere."""
    return getattr(value, "__dict__", {})


def _is_about(kind: type, name: str, member: object) -> bool:
    """Return whether an attribute of a class says what it does, and was not written by Python."""
    if issubclass(kind, tuple) and (name in _NAMED_TUPLE or name in getattr(kind, "_fields", ())):
        return False
    is_special = name.startswith("__") and name.endswith("__")
    if is_special and not isinstance(member, _METHODS):
        return False
    code = getattr(member, "__code__", None)
    is_dataclass = "__dataclass_fields__" in vars(kind)
    return not (is_special and is_dataclass and code and code.co_filename == "<string>")


def _is_cached(value: object, name: object) -> bool:
    """Return whether an attribute is what a `cached_property` has found."""
    return isinstance(getattr(type(value), str(name), None), functools.cached_property)


def _version(module: str) -> str:
    top = module.partition(".")[0]
    return str(getattr(sys.modules.get(top), "__version__", "")) if is_library(module) else ""


def _library_name(value: Any) -> str:  # noqa: ANN401 # any object
    """Return the name of a function or class of a library; nothing for anything else."""
    name: Any
    module: Any
    if isinstance(value, np.ufunc):
        name, module = value.__name__, "numpy"
    else:
        owner = getattr(value, "__objclass__", None)
        module = getattr(value, "__module__", None) or getattr(owner, "__module__", "")
        name = getattr(value, "__qualname__", "")
    if not (isinstance(module, str) and isinstance(name, str) and is_library(module)):
        return ""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, MISSING)
    return f"{module}.{name} {_version(module)}" if found is value else ""


_digests: dict[int, tuple[Callable[[], Any], bytes, str]] = {}
"""Digests of arrays by their address: a weak reference, a sample of the numbers, the digest."""


def array_digest(array: NDArray[Any]) -> str:
    """Return the SHA-256 of an array's type, shape and numbers, computed once for each array.

    One that has changed in place is seen by 64 of its numbers.
    """
    if array.nbytes < 2**16:
        return _hashed(array)
    known = _digests.get(id(array))
    sample = array.reshape(-1)[:: max(1, array.size // 64)].tobytes()
    if known is None or known[0]() is not array or known[1] != sample:
        forget = functools.partial(_digests.pop, id(array))
        _digests[id(array)] = known = (weakref.ref(array, forget), sample, _hashed(array))
    return known[2]


def _hashed(array: NDArray[Any]) -> str:
    content = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    content.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return content.hexdigest()
