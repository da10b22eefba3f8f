r"""The contract of an algorithm: a few pure scalar rules, and a cycle of verbs.

1. A rule touches one coordinate. It maps NamedTuples of numbers to NamedTuples of numbers and
   knows no clock, socket, index or random number.
2. Rules use ``+ - * /``, `sqrt`, `abs`, `minimum`, `maximum`, and `where` with a comparison. These
   are rounded exactly; ``exp``, ``log`` and powers are not. A rule has no branch, neither on a
   column nor on `h` or `at`: use `where`, or choose the rule when the algorithm is made. A rule is
   called once on symbolic columns, which refuse everything else with a sentence, and both drivers
   run the formula that comes of it (`distsgd.rules.formulas`): NumPy on whole vectors, compiled
   code per coordinate, with equal bits. What a rule computes without columns is a constant of its
   formula. It computes in float64, those numbers of `at` too; x / 0 is infinite, and -0.0 out of
   `minimum` or `maximum` is 0.0. Where a problem's columns are float32, every column that a rule
   returns is rounded to that.
3. Hyper-parameters `h` are arguments, never closed over: a sweep must not compile again.
4. Any rule may take one more, last argument: `at`, what is known when it is called.
5. The cycle is data. An engine interprets it, a kernel fuses it, a report prints it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from distsgd.errors import ConfigError, check_number, wrong_kind
from distsgd.rules.columns import Graph, Symbol
from distsgd.rules.cycle import Cycle, Pull, Push, Start, Step, Verb, before_step, check_cycle, verb
from distsgd.rules.formulas import (
    COLUMN,
    FLOAT64,
    SYMBOLIC,
    Argument,
    Formula,
    Returned,
    Traced,
    for_numpy,
    takes_at,
    trace,
)
from distsgd.rules.identity import identified
from distsgd.rules.surroundings import MOST_REMEMBERED, Memo

__all__ = ["FIRST", "Algorithm", "At", "Column", "Contract", "Exchange", "Hyper", "Rules", "Server", "State", "Worker"]
__all__ += ["Cycle", "Pull", "Push", "Start", "Step", "Verb", "before_step", "check_cycle", "verb"]
__all__ += ["check_algorithm", "exchange", "floats", "is_memoryless", "message_columns", "settings"]
__all__ += ["maximum", "minimum", "sqrt", "where"]

Column: TypeAlias = Any
"""One number per coordinate: a float64[d] for NumPy, a float in compiled code, hence Any."""
Hyper: TypeAlias = Any
"""A NamedTuple of numbers. Each algorithm declares its own, hence Any."""
State: TypeAlias = Any
"""A NamedTuple of columns. Each algorithm declares its own, hence Any."""

sqrt: Callable[[Column], Column] = np.sqrt
minimum: Callable[[Column, Column], Column] = np.minimum
maximum: Callable[[Column, Column], Column] = np.maximum


def where(condition: bool, then: Column, otherwise: Column) -> Column:
    """Return `then` in the coordinates where `condition` holds, else `otherwise`."""
    return np.where(condition, then, otherwise)


class At(NamedTuple):
    """What is known when a rule is called.

    For a server's rule these describe the server and the push that it applies; for a worker's rule,
    the worker and the version that it pulled last.
    """

    version: int
    """Updates applied so far. The papers' t or k."""
    staleness: int
    """Versions applied between the read of a gradient and its application, 0 when fresh."""
    workers: int
    """Workers of the fleet. The papers' p, P, n or M."""
    step: int
    """Steps that this worker has taken so far."""
    factor: Column
    """The factor on the learning rate, of the schedule and of the coordinate's layer: 1 without."""


class Server(NamedTuple):
    """The server's half: its columns, those that a pull returns, and what a push does to them.

    The column ``x`` of the state is the model.
    """

    init: Callable[[Hyper, Column], State]
    """``init(h, x) -> s``: the state before the first update, from the starting point."""
    reads: tuple[str, ...]
    """Names of the columns that a pull returns, in the order in which `receive` takes them."""
    apply: Callable[..., State]
    """``apply(h, s, m, at) -> s``."""


class Worker(NamedTuple):
    """A worker's half. A column of its state is private: no other worker sees it."""

    init: Callable[[Hyper, Column], State]
    """``init(h, x) -> w``: the state before the first pull, from the starting point."""
    receive: Callable[..., State]
    """``receive(h, w, *columns) -> w``: what a pull does to the state."""
    at: Callable[..., Column]
    """``at(h, w) -> point``: where the gradient is evaluated."""
    step: Callable[..., State]
    """``step(h, w, g) -> w``: what a gradient does to the state."""
    send: Callable[..., tuple[State, State]]
    """``send(h, w) -> (w, m)``: the state after a push, and the message."""


class Algorithm(NamedTuple):
    """An algorithm as a value: rules, numbers and a cycle."""

    name: str
    hyper: Hyper
    server: Server
    worker: Worker
    cycle: Cycle
    sparse: bool = False
    """Whether a coordinate whose gradient is 0 is left alone by worker and server, so that sparse
    data cost what their support costs."""
    schedule: Callable[[float], float] | None = None
    """Factor on the learning rate as a function of the epochs completed, None for a constant 1. It
    is evaluated outside the rules, so it may use any function."""
    lock_free: bool = False
    """Whether live workers change the server's columns themselves, in memory that they share, so
    that no server serves them and there is no order."""


def floats(algorithm: Algorithm) -> Hyper:
    """Return the hyper-parameters as floats: no kernel is compiled for whole numbers."""
    return type(algorithm.hyper)(*map(float, algorithm.hyper))


class Contract(NamedTuple):
    """What the rules of an algorithm compute, and the classes of its states and messages."""

    server_init: Formula
    init: Formula
    receive: Formula
    at: Formula
    step: Formula
    send: Formula
    apply: Formula
    state: Any
    replica: Any
    message: Any

    @classmethod
    def of(cls, algorithm: Algorithm) -> "Contract":
        """Return the contract of `algorithm`, or raise a `ConfigError` that says what breaks it."""
        server, worker = algorithm.server, algorithm.worker
        rules = (server.init, server.apply, *worker)
        key = (algorithm.name, type(algorithm.hyper), server.reads)
        return _contracts.find(key, rules, lambda: cls._traced(algorithm))

    @classmethod
    def _traced(cls, algorithm: Algorithm) -> "Contract":
        server, worker = algorithm.server, algorithm.worker
        h, x = Argument("h", type(algorithm.hyper)), Argument("x")
        begin = _traced(algorithm, "server.init", server.init, [h, x], Returned("State"))
        init = _traced(algorithm, "worker.init", worker.init, [h, x], Returned("Replica"))
        w = Argument("w", init.kinds[0])
        _check_reads(algorithm, begin.kinds[0])
        read = [Argument(f"read_{name}") for name in server.reads]
        replica = Returned("Replica", w.kind)
        send = _traced(algorithm, "send", worker.send, [h, w], replica, Returned("Message"))
        s, m = Argument("s", begin.kinds[0]), Argument("m", send.kinds[1])
        rules = [
            _traced(algorithm, "receive", worker.receive, [h, w, *read], replica),
            _traced(algorithm, "at", worker.at, [h, w], COLUMN),
            _traced(algorithm, "step", worker.step, [h, w, Argument("g")], replica),
            send,
            _traced(algorithm, "apply", server.apply, [h, s, m], Returned("State", s.kind)),
        ]
        formulas = (one.formula for one in (begin, init, *rules))
        return cls._make([*formulas, s.kind, w.kind, m.kind])

    def rules(self, dtype: "np.dtype[Any]" = FLOAT64, *, symbolic: bool = False) -> "Rules":
        """Return the formulas as functions of numbers and arrays, or of symbolic columns.

        They take and return columns of the type `dtype`, float64 or float32.
        """
        kinds = (("State", self.state), ("Replica", self.replica), ("Message", self.message))
        own = SYMBOLIC if symbolic else ()
        return Rules(*(for_numpy(one, (*kinds, *own), dtype) for one in self.formulas.values()))

    @property
    def formulas(self) -> dict[str, Formula]:
        """The formulas by the names of the rules."""
        return {name: one for name, one in self._asdict().items() if isinstance(one, Formula)}


def _traced(
    algorithm: Algorithm, name: str, rule: Callable[..., Any], arguments: list[Argument], *returns: Returned
) -> Traced:
    place = f"{algorithm.name}: rule {name}"
    if takes_at(place, rule, len(arguments)) and not name.endswith("init"):
        return trace(place, rule, [*arguments, Argument("at", At)], returns)
    found = trace(place, rule, arguments, returns)
    if name.endswith("init"):
        return found
    given = (*found.formula.arguments, "at")
    return found._replace(formula=found.formula._replace(arguments=given))


_contracts: Memo[Contract] = Memo()  # tracing takes as long as a short run


def _check_reads(algorithm: Algorithm, state: Any) -> None:  # noqa: ANN401 # a NamedTuple
    missing = {"x", *algorithm.server.reads} - set(state._fields)
    if missing:
        raise ConfigError(f"{algorithm.name}: the server has no column {sorted(missing)}, only {list(state._fields)}")


class Rules(NamedTuple):
    """The rules of an algorithm as NumPy calls them; each but the first two takes `at` last."""

    server_init: Callable[[Hyper, Column], State]
    init: Callable[[Hyper, Column], State]
    receive: Callable[..., State]
    at: Callable[..., Column]
    step: Callable[..., State]
    send: Callable[..., tuple[State, State]]
    apply: Callable[..., State]

    @classmethod
    def of(cls, algorithm: Algorithm, dtype: "np.dtype[Any]" = FLOAT64) -> "Rules":
        """Return the rules of `algorithm`, or raise a `ConfigError` that says what breaks them.

        They take and return columns of the type `dtype`, float64 or float32.
        """
        return Contract.of(algorithm).rules(dtype)


FIRST = At(version=0, staleness=0, workers=1, step=0, factor=1.0)
"""What is known before anything has happened, to a fleet of one."""


class Exchange(NamedTuple):
    """What one pull, step and push show of a worker."""

    point: Column
    sent: State
    message: State


def exchange(rules: Rules, h: Hyper, w: State, columns: Sequence[Column], g: Column, *, at: At = FIRST) -> Exchange:
    """Run a worker's four rules once: pull `columns`, step along `g`, push."""
    received = rules.receive(h, w, *columns, at)
    stepped = rules.step(h, received, g, at)
    return Exchange(rules.at(h, received, at), *rules.send(h, stepped, at))


def message_columns(algorithm: Algorithm) -> tuple[str, ...]:
    """Return the names of the columns of a push."""
    return tuple(Contract.of(algorithm).message._fields)


def is_memoryless(algorithm: Algorithm) -> bool:
    """Return whether all that a worker keeps from one exchange to the next is lost in the pull.

    Then a worker's state is the version that it pulled, and workers that pulled the same version
    share it.
    """
    pull, push = verb(algorithm.cycle, Pull), verb(algorithm.cycle, Push)
    is_alternating = pull.every == push.every == 1 and not before_step(algorithm.cycle, Push)
    return is_alternating and _forgets(Contract.of(algorithm), algorithm.hyper.__class__, len(algorithm.server.reads))


def point_column(algorithm: Algorithm) -> str | None:
    """Return the column at which gradients are taken as it stands, None if a rule computes them.

    It is one that a pull returns if the worker remembers nothing else, otherwise one of its state.
    """
    graph, contract = Graph(), Contract.of(algorithm)
    rules, reads = contract.rules(symbolic=True), algorithm.server.reads
    h, w = (Argument(*one).symbol(graph) for one in (("h", type(algorithm.hyper)), ("w", contract.replica)))
    at = At._make(map(graph.column, At._fields))
    if is_memoryless(algorithm):
        w = rules.receive(h, w, *map(graph.column, reads), at)
    known = {name: name for name in reads} if is_memoryless(algorithm) else {f"w.{name}": name for name in w._fields}
    return known.get(graph.operand(rules.at(h, w, at)))


@functools.lru_cache(maxsize=MOST_REMEMBERED)
def _forgets(contract: Contract, hyper: Any, n_reads: int) -> bool:  # noqa: ANN401 # a class
    """Return whether no formula of an exchange has a column that was there before the pull."""
    graph, rules = Graph(), contract.rules(symbolic=True)
    h, at = Argument("h", hyper).symbol(graph), At._make(map(graph.column, At._fields))
    columns = [graph.column(f"read {n}") for n in range(n_reads)]
    fresh = rules.init(h, graph.column("x"))._asdict()
    constant = {name: one for name, one in fresh.items() if not isinstance(one, Symbol)}
    before = Argument("w", contract.replica).symbol(graph)
    while True:  # columns that every push sets to the constant with which they began
        w = before._replace(**constant)
        with np.errstate(all="ignore"):
            found = exchange(rules, h, w, columns, graph.column("g"), at=at)
        kept = {n: one for n, one in constant.items() if repr(getattr(found.sent, n)) == repr(one)}
        if kept == constant:
            break
        constant = kept
    outputs = map(graph.operand, (found.point, *found.message))
    return not any(name.startswith("w.") for name in graph.sources([*outputs]))


def check_algorithm(algorithm: Algorithm) -> None:
    """Raise a `ConfigError` unless `algorithm` keeps the contract.

    Each rule must have a formula and return the columns that the next one takes; a sparse algorithm
    must leave coordinates without gradient alone.
    """
    if not isinstance(algorithm, Algorithm):
        raise wrong_kind("algorithm", "distsgd.algorithms.serial(0.1)", algorithm)
    check_cycle(algorithm.cycle)
    name = algorithm.name
    for label, value in algorithm.hyper._asdict().items():
        check_number(f"{name}: hyper-parameter {label}", value)
    contract = Contract.of(algorithm)
    if algorithm.sparse and is_memoryless(algorithm):
        h = floats(algorithm)
        if moved := _moved(contract, h.__class__, h, algorithm.server.reads):
            raise ConfigError(
                f"{name}: rule apply changes the column {moved} of a coordinate whose gradient is 0, so that it is not"
                " sparse; set sparse=False, or let it leave them"
            )
    if algorithm.schedule is not None:
        _check_schedule(name, algorithm.schedule)


@functools.lru_cache(maxsize=MOST_REMEMBERED)
def _moved(contract: Contract, kind: Any, h: Hyper, reads: tuple[str, ...]) -> str:  # noqa: ANN401, ARG001 # equal numbers of another class have other names
    """Return the first column of the server that moves without a gradient, tried on numbers."""
    rules, random = contract.rules(), np.random.default_rng(0)
    states = [rules.server_init(h, random.normal(size=64) * (random.random(64) < 0.8))]
    for version in range(12):
        read = states[random.integers(max(0, version - 3), version + 1)]
        g = random.normal(size=64) * (random.random(64) < 0.5)
        at = At(version, 1, workers=4, step=version + 1, factor=0.5)
        columns = [getattr(read, name) for name in reads]
        with np.errstate(all="ignore"):
            m = exchange(rules, h, rules.init(h, 0.0), columns, g, at=at).message
            states.append(rules.apply(h, states[-1], m, at))
        is_left = g == 0
        for column in (*states[-2], *columns):
            is_left = is_left & np.isfinite(column)
        for name, was, now in zip(states[-1]._fields, *states[-2:], strict=True):
            if np.any(is_left & (was != now)):
                return str(name)
    return ""


def _check_schedule(name: str, schedule: Callable[[float], float]) -> None:
    try:
        factors = {check_number(f"{name}: schedule(0.0)", schedule(0.0)) for _ in range(2)}
    except ConfigError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{name}: the schedule cannot be called with 0.0 epochs ({what}); correct it") from error
    if len(factors) > 1:
        raise ConfigError(f"{name}: the schedule gives another factor at each call; it is a function of epochs")


def settings(algorithm: Algorithm) -> dict[str, Any]:
    """Return what identifies `algorithm`, as JSON: its name, numbers and cycle, and what it does.

    A rule is identified by its formula, whatever it is called and wherever it stands.
    """
    rules = {name: str(one) for name, one in Contract.of(algorithm).formulas.items()}
    return {
        "name": algorithm.name,
        "hyper": {name: float(value) for name, value in algorithm.hyper._asdict().items()},
        "cycle": [str(one) for one in algorithm.cycle],
        "rules": rules,
        "reads": list(algorithm.server.reads),
        "sparse": algorithm.sparse,
        "lock_free": algorithm.lock_free,
        **_schedule_settings(algorithm),
    }


def _schedule_settings(algorithm: Algorithm) -> dict[str, Any]:
    if algorithm.schedule is None:
        return {"schedule": None}
    found = identified(f"the schedule of {algorithm.name}", algorithm.schedule)
    name = getattr(algorithm.schedule, "__qualname__", None) or str(algorithm.schedule)
    if " at 0x" in name:
        name = type(algorithm.schedule).__qualname__
    return {"schedule": {"name": name, "identity": found.pop("identity", None)}, **found}
