"""Identity: equal digests for what does the same, others for what does something else."""

import functools
import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from rules_of_users import Decay, Locked, Plain, Point, power, scaled

import distsgd as ds
from distsgd.rules.identity import UnidentifiedError, digest


def module(source: str) -> ModuleType:
    """Return a module with this text, as a notebook that runs its cells again has it."""
    found = ModuleType("__main__")
    exec(source, vars(found))
    return found


def function(body: str, before: str = "") -> Callable[..., object]:
    """Return a function of that body."""
    return module(f"import numpy as np\n{before}\ndef f(x):\n    {body}\n").f


DIFFERENT: dict[str, list[object]] = {
    "constants": [function("return 2 * x"), function("return 3 * x"), function("return x * 2")],
    "operations": [function("return 2 * x"), function("return 2 + x"), function("return 2 - x")],
    "defaults": [lambda x, a=1.0: a * x, lambda x, a=2.0: a * x, lambda x, *, a=2.0: a * x],
    "closures": [scaled(1.0).server.apply, scaled(2.0).server.apply],
    "globals": [function("return K * x", "K = 1"), function("return K * x", "K = 2")],
    "helpers": [function("return g(x)", f"def g(x):\n    return {n} * x\n") for n in (2, 3)],
    "helpers of helpers": [
        function("return g(x)", f"def k(x):\n    return x - {n}\ndef g(x):\n    return k(x)\n") for n in (2, 3)
    ],
    "attributes": [function("return np.sqrt(x)"), function("return np.exp(x)")],
    "inner functions": [function("return (lambda y: y)(x)"), function("return (lambda y: -y)(x)")],
    "sets": [function("return x in {1, 2}"), function("return x in {1, 3}")],
    "partials": [functools.partial(power, 0.9), functools.partial(power, 0.8), power],
    "objects": [Decay(0.1), Decay(0.2), Decay(0.1, [1.0]), Plain(0.1), Plain(0.2), Point(1.0)],
    "methods": [Plain(0.1).other, Plain(0.2).other, Plain(0.1).__call__],
    "arrays": [np.zeros(3), np.zeros(4), np.zeros((3, 1)), np.zeros(3, np.float32), np.ones(3)],
    "large arrays": [np.zeros(10**5), np.ones(10**5), np.zeros(10**5)[:-1]],
    "numbers": [1, 1.0, True, "1", b"1", 1j, None, (1,), [1], {1}, {1: 1}, -0.0, 0.0],
    "classes": [module(f"class A:\n    def f(self):\n        return {n}\n").A for n in (1, 2)],
}


@pytest.mark.parametrize("values", DIFFERENT.values(), ids=DIFFERENT)
def test_what_does_something_else_has_another_digest(values: list[object]) -> None:
    """A number, an operation, a helper or an attribute that differs makes another digest."""
    assert len({digest(one) for one in values}) == len(values)


def test_what_does_the_same_has_the_same_digest() -> None:
    """Names, lines, docstrings, addresses and what is remembered do not count."""
    shifted = module("\n\n\ndef g(x):\n    'Another text.'\n    return 2 * x\n").g
    assert digest(shifted) == digest(module("def f(x):\n    return 2 * x\n").f)
    used = Plain(0.1)
    assert used.found == 0.2
    assert digest(used) == digest(Plain(0.1))
    assert digest(scaled(1.0).server.apply) == digest(scaled(1.0).server.apply)
    assert digest([np.zeros(3), np.zeros(3)]) == digest([np.zeros(3)] * 2)


def test_a_function_may_refer_to_itself() -> None:
    """Recursion, of one function or of two, has a digest that knows both bodies."""
    text = "def f(x):\n    return g(x)\ndef g(x):\n    return f(x) + {}\n"
    one, other, same = (module(text.format(n)).f for n in (1, 2, 1))
    assert digest(one) == digest(same) != digest(other)
    looped: list[object] = []
    looped.append(looped)
    assert len(digest(looped)) == 64


def test_an_array_that_has_changed_in_place_is_seen() -> None:
    """A large array is hashed once, and again when its numbers are others."""
    large = np.zeros(10**5)
    first = digest(large)
    large *= 2.0
    assert digest(large) == first
    large += 1.0
    assert digest(large) != first


SCRIPT = """
import functools, hashlib
from dataclasses import dataclass
import numpy as np
import distsgd as ds
from distsgd.algorithm import settings
from distsgd.rules.identity import digest

NAMES = {"one", "two", "three", "four"}
def helper(x):
    return np.sqrt(x) if x in {"a", "b", "c", 1} else len(NAMES)
@dataclass
class Decay:
    rate: float
    def __call__(self, epoch):
        return helper(epoch) * self.rate
values = [helper, Decay(0.5), Decay, functools.partial(helper, 1), NAMES, frozenset(NAMES),
          lambda x: x in {"p", "q", "r"}, settings(ds.algorithms.hogwild(0.1))]
print(hashlib.sha256("".join(map(digest, values)).encode()).hexdigest())
"""


def test_a_digest_survives_a_restart() -> None:
    """Two interpreters with other hash seeds and other addresses find the same digests."""
    found = {
        subprocess.run(
            [sys.executable, "-c", "\n" * int(seed) + SCRIPT],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            cwd=Path(ds.__file__).parent.parent,
        ).stdout
        for seed in ("1", "3")
    }
    assert len(found) == 1
    assert len(found.pop().strip()) == len(hashlib.sha256().hexdigest())


def numbers() -> Iterator[int]:
    """Yield a number."""
    yield 1


LOCK = threading.Lock()


def locked(epoch: float) -> float:
    """Return the factor."""
    with LOCK:
        return 1.0 + 0.0 * epoch


UNKNOWN = {
    "a generator": (numbers(), "an object generator"),
    "a bare object": (object(), "an object object"),
    "a global": (locked, "`LOCK` of the type _thread.lock"),
    "an attribute": (Locked(), "`guard` of the type _thread.lock"),
    "an item": ({"key": [LOCK]}, "`key` of the type _thread.lock"),
}


@pytest.mark.parametrize(("value", "says"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_has_no_stable_value_is_named(value: object, says: str) -> None:
    """An object that cannot be written down has no digest, and the error says which it is."""
    with pytest.raises(UnidentifiedError, match=f"uses {says}, which has no stable value"):
        digest(value)
