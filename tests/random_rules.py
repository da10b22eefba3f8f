"""Random rules as source text: within the contract, and with one operation outside of it."""

import math
import random
import time
from itertools import count
from typing import NamedTuple

import numpy as np

from distsgd.algorithm import Algorithm, Column, Pull, Push, Server, Step, Worker, maximum, minimum, sqrt, where


class Hyper(NamedTuple):
    """Two numbers."""

    a: float
    b: float


class State(NamedTuple):
    """The server's columns."""

    x: Column
    y: Column


class Replica(NamedTuple):
    """A worker's columns."""

    x: Column
    v: Column


class Message(NamedTuple):
    """The columns of a push."""

    g: Column
    u: Column


AT = ("at.version", "at.staleness", "at.workers", "at.step", "at.factor")
H = ("h.a", "h.b")
CONSTANTS = ("0.0", "-0.0", "1", "2", "-3", "0.1", "1e-3", "1 / 3", "float('inf')")
BINARY = (
    "({} + {})",
    "({} - {})",
    "({} * {})",
    "({} / {})",
    "minimum({}, {})",
    "maximum({}, {})",
    "np.minimum({}, {})",
    "np.add({}, {})",
)
UNARY = ("(-{})", "(+{})", "abs({})", "sqrt({})", "sqrt(abs({}))", "np.abs({})", "helper({})")
COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
FORBIDDEN = (
    "np.exp({})",
    "({}) ** 2",
    "2.0 ** ({})",
    "np.sum({})",
    "np.mean({})",
    "np.max({})",
    "np.dot({0}, {0})",
    "np.linalg.norm({})",
    "np.power({}, 2)",
    "np.square({})",
    "np.tanh({})",
    "np.log({})",
    "np.floor({})",
    "np.sign({})",
    "np.clip({}, 0, 1)",
    "np.cumsum({})",
    "np.add.reduce({})",
    "np.random.normal() * {}",
    "random.random() + {}",
    "next(counter) * {}",
    "time.perf_counter() * {}",
    "(1.0 if {} > 0 else 2.0)",
    "({} and 1.0)",
    "(not {})",
    "(0 < {} < 1) * 1.0",
    "max({}, 0)",
    "min({}, 0)",
    "math.sqrt({})",
    "math.exp({})",
    "len({})",
    "({})[0]",
    "({}) // 2",
    "({}) % 3",
    "divmod({}, 2)[0]",
    "float({})",
    "int({})",
    "round({})",
    "math.floor({})",
    "({} > 0) * 2.0",
    "(({0} > 0) & ({0} < 1)) * 1.0",
    "({}).sum()",
    "({}).shape[0]",
    "np.array([1.0, 2.0]) * {}",
    "np.asarray({})",
    "np.zeros_like({})",
    "np.where({}, 1.0, 2.0)",
    "({0}) @ ({0})",
    "sum({})",
    "np.logical_and({0} > 0, {0} < 1)",
    "np.isfinite({})",
    "np.float64({})",
    "[1.0, 2.0][{}]",
    "{}.real",
    "np.nan_to_num({})",
    "remember({})",
    "np.heaviside({}, 0.5)",
    "10**400 * {}",
    "(2**60 + 1) * {}",
    "{} + None",
)
"""Each stands for one thing that a rule may not do."""

_TAME = {
    ("receive", "Replica"): ("x", "0.0"),
    ("at", ""): ("w.x",),
    ("step", "Replica"): ("w.x", "g"),
    ("send", "Message"): ("w.v", "w.x"),
    ("", "Replica"): ("w.x", "w.v"),
    ("apply", "State"): ("0.5 * s.x - 0.1 * m.g", "0.5 * s.y"),
}
_kept: list[object] = []


def _helper(x: Column) -> Column:
    return 2 * x - abs(x)


def _remember(x: Column) -> Column:
    _kept.append(x)
    return _kept[-2] if len(_kept) > 1 else x


class Writer:
    """Writes rules; `outside` is put into one of them."""

    def __init__(self, seed: int, outside: str = "", *, memoryless: bool = False, is_tame: bool = False) -> None:
        self._is_tame = is_tame  # whether the numbers stay finite, and gradients matter
        self._random, self._memoryless = random.Random(seed), memoryless
        self.spoilt = self._random.choice(["receive", "at", "step", "send", "apply"])
        self._outside = outside

    def expression(self, leaves: tuple[str, ...], depth: int = 3, *, is_number: bool = True) -> str:
        """Return an expression of `leaves` and allowed operations, each of a leaf at least."""
        draw, kind = self._random, self._random.random()
        if depth == 0 or kind < 0.15:
            return draw.choice(CONSTANTS if is_number and draw.random() < 0.2 else leaves)
        inner = [self.expression(leaves, depth - 1, is_number=n > 0) for n in range(4)]
        if kind < 0.3:
            return f"where({inner[0]} {draw.choice(COMPARISONS)} {leaves[0]}, {inner[1]}, {inner[2]})"
        return draw.choice(BINARY if kind < 0.75 else UNARY).format(*inner)

    def result(self, rule: str, kind: str, leaves: tuple[str, ...]) -> str:
        """Return what a rule returns: a NamedTuple of two expressions, or one expression."""
        leaves = (*leaves, *H, *AT)
        parts = [self.expression(leaves) for _ in range(2 if kind else 1)]
        if self._is_tame:
            parts = [
                f"({own} + 0.01 * where(abs({part}) < 10.0, {part}, 0.1))"
                for own, part in zip(_TAME[rule, kind], parts, strict=True)
            ]
        if rule == self.spoilt and self._outside:
            parts[-1] = f"{parts[-1]} + {self._outside.format(f'({leaves[0]} + {parts[0]})')}"
        return f"{kind}({', '.join(parts)})"

    def source(self) -> str:
        """Return the text of all rules."""
        w, read, s, m = ("w.x", "w.v"), ("x", "y"), ("s.x", "s.y"), ("m.g", "m.u")
        received = read if self._memoryless else w + read
        send = self.result("send", "Message", w)
        replica = "w" if self._memoryless else self.result("", "Replica", w)
        rules = {
            "receive(h, w, x, y, at)": self.result("receive", "Replica", received),
            "at(h, w, at)": self.result("at", "", w),
            "step(h, w, g, at)": self.result("step", "Replica", (*w, "g")),
            "send(h, w, at)": f"{replica}, {send}",
            "apply(h, s, m, at)": self.result("apply", "State", s + m),
        }
        return "".join(f"def {head}:\n    return {body}\n" for head, body in rules.items())


def algorithm_of(source: str, **given: object) -> Algorithm:
    """Return the algorithm of the rules in a text."""
    names: dict[str, object] = {
        "np": np,
        "math": math,
        "random": random,
        "time": time,
        "counter": count(),
        "helper": _helper,
        "remember": _remember,
        "sqrt": sqrt,
        "where": where,
        "minimum": minimum,
        "maximum": maximum,
        "State": State,
        "Replica": Replica,
        "Message": Message,
    }
    exec(source, names)
    receive, at, step, send, apply = (names[name] for name in ("receive", "at", "step", "send", "apply"))
    return Algorithm(
        "random",
        Hyper(0.5, 2.0),
        Server(lambda h, x: State(x, 0.1 * x), ("x", "y"), apply),
        Worker(lambda h, x: Replica(x, 0.0), receive, at, step, send),
        (Pull(), Step(), Push()),
        **given,
    )
