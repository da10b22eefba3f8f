"""Compiled twins of an algorithm's rules, and loops over coordinates generated around them.

1. What is compiled is a rule's formula (`distsgd.rules.formulas`), and the compiler inlines it.
2. The loops are generated as source, because only source can name columns: `State(S.x[i], S.z[i])`,
   the rule, and the columns stored back. A loop costs about a tenth more than one written by hand.
3. Hyper-parameters are an argument. Loops are compiled once for equal formulas, and never again for
   another learning rate.

In the loops, S is the server's state, W the workers' states, V the versions that workers have
pulled, R what one worker has read at its support (or each of them, where reads interleave), L what
each has loaded in order to change it, M one message, and B the messages in flight.
"""

import functools
import itertools
import math
import re
from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from distsgd.algorithm import Algorithm, Contract
from distsgd.kernels import specialised
from distsgd.kernels.atomic import exchanged, hold, loaded, release
from distsgd.rules.formulas import Formula

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


class Loops(NamedTuple):
    """The compiled loops of an algorithm by name, and the NamedTuples that they take.

    These have the fields of the algorithm's own, but names that no other class has: numba tells two
    classes apart by their names and fields, or else, thirty times slower, by a search.
    """

    hyper: type
    state: type
    replica: type
    reads: type
    message: type
    by_name: dict[str, Loop]


class Names(NamedTuple):
    """Names of the columns, by the NamedTuple that holds them."""

    hyper: Sequence[str]
    state: Sequence[str]
    replica: Sequence[str]
    reads: Sequence[str]
    message: Sequence[str]


def values(names: Sequence[str], column: str) -> str:
    """Return an argument list: ``values(("x", "z"), "S.{}[i]")`` is ``S.x[i], S.z[i]``."""
    return ", ".join(column.format(name) for name in names)


def stores(names: Sequence[str], statement: str) -> str:
    """Return one statement per column, on one line."""
    return "; ".join(statement.format(name) for name in names)


def shared_source(names: Names) -> str:
    """Return the loops of workers that remember nothing but the version that they pulled."""
    read = f"receive(h, init(h, 0.0), {values(names.reads, 'V.{}[slot, i]')}, at)"
    return f"""
def keep(S, V, slot):
    for i in range(S.x.size):
        {stores(names.reads, "V.{0}[slot, i] = S.{0}[i]")}

def point_shared(h, V, slot, at, out):
    for i in range(out.size):
        out[i] = position(h, {read}, at)

def message_shared(h, V, slot, at, sent, g, first, M):
    for i in range(g.size):
        w, m = send(h, step(h, {read}, g[i], at), sent)
        {stores(names.message, "M.{0}[i] = m.{0} if first else M.{0}[i] + m.{0}")}
"""


def private_source(names: Names) -> str:
    """Return the loops of workers with a state of their own."""
    state = f"Replica({values(names.replica, 'W.{}[slot, i]')})"
    store = stores(names.replica, "W.{0}[slot, i] = w.{0}")
    return f"""
def receive_private(h, S, W, slot, at):
    for i in range(S.x.size):
        w = receive(h, {state}, {values(names.reads, "S.{}[i]")}, at)
        {store}

def point_private(h, W, slot, at, out):
    for i in range(out.size):
        out[i] = position(h, {state}, at)

def step_private(h, W, slot, at, g):
    for i in range(g.size):
        w = step(h, {state}, g[i], at)
        {store}

def message_private(h, W, slot, at, first, M):
    for i in range(M[0].size):
        w, m = send(h, {state}, at)
        {store}
        {stores(names.message, "M.{0}[i] = m.{0} if first else M.{0}[i] + m.{0}")}
"""


def server_source(names: Names) -> str:
    """Return the loops that apply the mean of a round's messages, or the message of a single one.

    A mean of one has the bits of the message; not dividing halves the time of a large one.
    """
    return f"""
def apply_one(h, S, M, at):
    for i in range(S.x.size):
        m = Message({values(names.message, "M.{}[i]")})
        s = apply(h, State({values(names.state, "S.{}[i]")}), m, at)
        {stores(names.state, "S.{0}[i] = s.{0}")}

def apply_mean(h, S, M, members, at):
    for i in range(S.x.size):
        m = Message({values(names.message, "M.{}[i] / members")})
        s = apply(h, State({values(names.state, "S.{}[i]")}), m, at)
        {stores(names.state, "S.{0}[i] = s.{0}")}
"""


def support_source(names: Names) -> str:
    """Return the loops over supports; what lies outside of a batch's support is never touched.

    A single sample is its own support, and its margin and its gradient need no loop of their own.
    """
    read = f"receive(h, init(h, 0.0), {values(names.reads, 'R.{}[p]')}, at)"
    point = f"""
        {stores(names.reads, "R.{0}[p] = S.{0}[support[p]]")}
        out[p] = position(h, {read}, at)"""
    message = f"""
        w, m = send(h, step(h, {read}, g, at), sent)
        {stores(names.message, "B.{0}[worker, p] = m.{0}")}"""
    return f"""
def point_support(h, S, support, at, R, out):
    for p in range(support.size):{point}

def message_support(h, R, at, sent, gradient, B, worker):
    for p in range(gradient.size):
        g = gradient[p]{message}

def margin_single(h, S, support, at, R, out, row):
    margin = 0.0
    for p in range(support.size):{point}
        margin += row[p] * out[p]
    return margin

def message_single(h, R, at, sent, support, row, slope, shrink, x, B, worker):
    for p in range(support.size):
        g = slope * row[p]
        if shrink.size > 0:
            g += shrink[support[p]] * x[p]
        g = 0.0 + g  # as in a sum over samples, where -0.0 becomes 0.0{message}

def apply_support(h, S, support, B, worker, at):
    for p in range(support.size):
        i = support[p]
        m = Message({values(names.message, "B.{}[worker, p]")})
        s = apply(h, State({values(names.state, "S.{}[i]")}), m, at)
        {stores(names.state, "S.{0}[i] = s.{0}")}

def add_support(support, B, worker, M, is_touched, touched, n_touched):
    for p in range(support.size):
        i = support[p]
        if is_touched[i]:
            {stores(names.message, "M.{0}[i] += B.{0}[worker, p]")}
        else:
            {stores(names.message, "M.{0}[i] = B.{0}[worker, p]")}
            is_touched[i] = True
            touched[n_touched] = i
            n_touched += 1
    return n_touched

def apply_touched(h, S, touched, M, is_touched, members, at):
    for p in range(touched.size):
        i = touched[p]
        is_touched[i] = False
        m = Message({values(names.message, "M.{}[i] / members")})
        s = apply(h, State({values(names.state, "S.{}[i]")}), m, at)
        {stores(names.state, "S.{0}[i] = s.{0}")}
"""


def interleaved_source(names: Names) -> str:
    """Return the accesses to single coordinates, between which others have theirs."""
    read = f"receive(h, init(h, 0.0), {values(names.reads, 'R.{}[worker, p]')}, at)"
    return f"""
def read_one(S, i, R, worker, p):
    {stores(names.reads, "R.{0}[worker, p] = S.{0}[i]")}

def point_read(h, R, worker, at, out):
    for p in range(out.size):
        out[p] = position(h, {read}, at)

def message_read(h, R, worker, at, sent, g, B):
    for p in range(g.size):
        w, m = send(h, step(h, {read}, g[p], at), sent)
        {stores(names.message, "B.{0}[worker, p] = m.{0}")}

def load_one(S, i, L, worker):
    {stores(names.state, "L.{0}[worker] = S.{0}[i]")}

def store_one(h, S, i, L, B, worker, p, at):
    m = Message({values(names.message, "B.{}[worker, p]")})
    s = apply(h, State({values(names.state, "L.{}[worker]")}), m, at)
    {stores(names.state, "S.{0}[i] = s.{0}")}
"""


def lock_free_source(names: Names) -> str:
    """Return the loops over a row, or over a support, of columns that others change meanwhile.

    What was read for the margin of a row is not kept, but read again where a rule needs it. Rows
    have distinct columns, so that one worker alone finds the same numbers.

    A change that is atomic exchanges a single column only if no other worker has changed it since
    it was loaded, and begins again otherwise; several columns of a coordinate change under a lock.
    """
    read = f"receive(h, init(h, 0.0), {values(names.reads, 'S.{}[i]')}, at)"
    changed = f"apply(h, State({values(names.state, 'S.{}[i]')}), m, applied)"
    racy = f"""
        s = {changed}
        {stores(names.state, "S.{0}[i] = s.{0}")}"""
    held = f"""
        hold(locks, i, owner){racy}
        release(locks, i)"""
    tried = """
        while True:
            old = loaded(S.x, i)
            s = apply(h, State(old), m, applied)
            if exchanged(S.x, i, old, s.x):
                break"""
    atomic = tried if len(names.state) == 1 else held
    return f"""
def margin_row(h, S, columns, entries, first, end, at):
    margin = 0.0
    for entry in range(first, end):
        i = columns[entry]
        margin += entries[entry] * position(h, {read}, at)
    return margin
""" + "".join(
        f"""
def change_row_{name}(
    h, S, columns, entries, first, end, slope, shrink, at, sent, applied, locks, owner
):
    for entry in range(first, end):
        i = columns[entry]
        g = slope * entries[entry]
        if shrink.size > 0:
            g += shrink[i] * position(h, {read}, at)
        g = 0.0 + g
        w, m = send(h, step(h, {read}, g, at), sent){change}

def change_support_{name}(h, S, support, B, applied, locks, owner):
    for p in range(support.size):
        i = support[p]
        m = Message({values(names.message, "B.{}[0, p]")}){change}
"""
        for name, change in (("racy", racy), ("atomic", atomic))
    )


def gathered_source(names: Names) -> str:
    """Return the loops that exchange a worker's copy C, taken as B, with what others see, S."""
    return f"""
def take_popular(S, C, B):
    for i in range(C.x.size):
        {stores(names.state, "C.{0}[i] = B.{0}[i] = S.{0}[i]")}

def exchange_popular(S, C, B):
    for i in range(C.x.size):
        {stores(names.state, "S.{0}[i] = C.{0}[i] = B.{0}[i] = S.{0}[i] + (C.{0}[i] - B.{0}[i])")}
"""


_serial_numbers = itertools.count()


class Halves(NamedTuple):
    """What decides the loops of an algorithm: everything but its numbers."""

    formulas: tuple[Formula, ...]
    names: Names

    @classmethod
    def of(cls, algorithm: Algorithm) -> "Halves":
        """Return the halves of `algorithm`."""
        known = Contract.of(algorithm)
        names = Names(
            hyper=type(algorithm.hyper)._fields,
            state=known.state._fields,
            replica=known.replica._fields,
            reads=algorithm.server.reads,
            message=known.message._fields,
        )
        return cls(tuple(known.formulas.values())[1:], names)


@functools.cache
def loops(halves: Halves) -> Loops:
    """Return the compiled loops of an algorithm's halves: the same for all hyper-parameters."""
    names = halves.names
    classes = [namedtuple(f"Columns{next(_serial_numbers)}", fields) for fields in names]
    hyper, state, replica, reads, message = classes
    namespace: dict[str, Any] = {"State": state, "Replica": replica, "Message": message, **_NUMBERS}
    namespace |= {"exchanged": exchanged, "loaded": loaded, "hold": hold, "release": release}
    for name, formula in zip(_RULES, halves.formulas, strict=True):
        exec(formula.source(name), namespace)
        namespace[name] = specialised(namespace[name])
    parts = (
        shared_source,
        private_source,
        support_source,
        interleaved_source,
        server_source,
        lock_free_source,
        gathered_source,
    )
    source = "".join(part(names) for part in parts)
    exec(source, namespace)
    generated = re.findall(r"^def (\w+)", source, re.MULTILINE)
    by_name = {name: specialised(namespace[name]) for name in generated}
    return Loops(hyper, state, replica, reads, message, by_name)
