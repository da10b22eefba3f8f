r"""The contract of an algorithm: a few pure scalar rules, and a cycle of verbs.

1. A rule touches one coordinate. It maps NamedTuples of numbers to NamedTuples of numbers and
   knows no clock, socket, index or random number. NumPy calls it on whole vectors (the fields are
   arrays), a generated loop calls its compiled twin per coordinate (floats): equal bits.
2. Rules use ``+ - * /``, `sqrt`, `abs`, `minimum`, `maximum` and `where` only. These are rounded
   exactly, so that both drivers agree; ``exp``, ``log`` and powers are not.
3. Hyper-parameters `h` are arguments, never closed over: a sweep must not compile again.
4. Any rule may take one more, last argument: `at`, what is known when it is called.
5. The cycle is data. An engine interprets it, a kernel fuses it, a report prints it.

Theory of operation. A worker counts its gradient steps k = 0, 1, 2, ... A verb that stands before
`Step` acts before step k whenever `every` divides k. A verb that stands behind `Step` acts after
every `every`-th step. So between two steps the verbs behind `Step` come first, then those before.
"""

from collections.abc import Callable, Sequence
from operator import is_
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from distsgd.errors import ConfigError, check_count, check_number, wrong_kind
from distsgd.formulas import COLUMN, Argument, Formula, Returned, Traced, for_numpy, takes_at, trace
from distsgd.identity import identified, parts_of

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
    factor: float
    """The schedule's factor on the learning rate, 1 without a schedule."""


class Start(NamedTuple):
    """The first worker starts at once, the others when the server's version is `others_after`."""

    others_after: float = 0


MOST_STEPS = 1_000_000
"""Steps between two pulls, or two pushes, at most."""


class Pull(NamedTuple):
    """Ask the server for the columns that it lets workers read, and wait for them.

    With a `bound`, the server lets a worker wait while it is more than `bound` steps ahead of the
    slowest one.
    """

    every: int = 1
    bound: int | None = None


class Step(NamedTuple):
    """Evaluate the gradient of one mini-batch and take a local step."""


class Push(NamedTuple):
    """Send a message to the server.

    The server holds pushes until `quorum` of them are in, averages them in worker order, applies
    the average once, and releases their workers. `quorum` None stands for every worker but
    `backup`. A push that arrives after its round has closed is dropped, and counted.
    """

    every: int = 1
    quorum: int | None = 1
    backup: int = 0

    def quorum_of(self, workers: int) -> int:
        """Return the pushes in a round of a fleet of `workers`, or raise a `ConfigError`."""
        quorum = workers - self.backup if self.quorum is None else self.quorum
        if 1 <= quorum <= workers:
            return quorum
        if self.quorum is None:
            msg = f"backup must be < the number of workers ({workers}), not {self.backup}"
        else:
            msg = f"quorum must be >= 1 and <= the number of workers ({workers}), not {quorum}"
        raise ConfigError(msg)


Verb: TypeAlias = Start | Pull | Step | Push
Cycle: TypeAlias = tuple[Verb, ...]


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
    that nobody serves them and there is no order."""


def floats(algorithm: Algorithm) -> Hyper:
    """Return the hyper-parameters as floats: no kernel is compiled for whole numbers."""
    return type(algorithm.hyper)(*map(float, algorithm.hyper))


def verb(cycle: Cycle, kind: type) -> Any:  # noqa: ANN401 # the verb's own class, given by `kind`
    """Return the verb of the class `kind` in `cycle`, or that class's default."""
    return next((one for one in cycle if isinstance(one, kind)), kind())


def before_step(cycle: Cycle, kind: type) -> bool:
    """Return whether the verb `kind` stands before `Step`."""
    kinds = [type(one) for one in cycle]
    return kinds.index(kind) < kinds.index(Step)


MOST_CONTRACTS = 256


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
        key = (algorithm.name, type(algorithm.hyper), server.reads, *map(id, rules))
        parts = parts_of(rules)
        known, found = _contracts.get(key, (None, None))
        if found is None or not _is_same(parts, known):
            found = cls._traced(algorithm)
            if len(_contracts) > MOST_CONTRACTS:
                _contracts.clear()
            _contracts[key] = (parts, found)
        return found

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
        return cls(*formulas, state=s.kind, replica=w.kind, message=m.kind)

    @property
    def formulas(self) -> dict[str, Formula]:
        """The formulas by the names of the rules."""
        return {name: one for name, one in self._asdict().items() if isinstance(one, Formula)}


def _traced(
    algorithm: Algorithm, name: str, rule: Callable[..., Any], arguments: list[Argument],
    *returns: Returned,
) -> Traced:  # fmt: skip
    place = f"{algorithm.name}: rule {name}"
    if takes_at(place, rule, len(arguments)) and not name.endswith("init"):
        return trace(place, rule, [*arguments, Argument("at", At)], returns)
    found = trace(place, rule, arguments, returns)
    if name.endswith("init"):
        return found
    given = (*found.formula.arguments, "at")
    return found._replace(formula=found.formula._replace(arguments=given))


_contracts: dict[Any, tuple[list[Any] | None, Contract]] = {}
"""Contracts that are known, and all that their rules refer to: tracing takes as long as a short
run."""


def _is_same(parts: list[Any] | None, known: list[Any] | None) -> bool:
    if parts is None or known is None or len(parts) != len(known):
        return False
    return all(map(is_, parts, known))


def _check_reads(algorithm: Algorithm, state: Any) -> None:  # noqa: ANN401 # a NamedTuple
    missing = {"x", *algorithm.server.reads} - set(state._fields)
    if missing:
        msg = (
            f"{algorithm.name}: the server has no column {sorted(missing)}, only "
            f"{list(state._fields)}"
        )
        raise ConfigError(msg)


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
    def of(cls, algorithm: Algorithm) -> "Rules":
        """Return the rules of `algorithm`, or raise a `ConfigError` that says what breaks them."""
        known = Contract.of(algorithm)
        kinds = (("State", known.state), ("Replica", known.replica), ("Message", known.message))
        return cls(*(for_numpy(one, kinds) for one in known.formulas.values()))


FIRST = At(version=0, staleness=0, workers=1, step=0, factor=1.0)
"""What is known before anything has happened, to a fleet of one."""


class Exchange(NamedTuple):
    """What one pull, step and push show of a worker."""

    point: Column
    sent: State
    message: State


def exchange(rules: Any, h: Hyper, w: State, columns: Sequence[Column], g: Column) -> Exchange:  # noqa: ANN401 # `Rules`
    """Run a worker's four rules once: pull `columns`, step along `g`, push."""
    received = rules.receive(h, w, *columns, FIRST)
    stepped = rules.step(h, received, g, FIRST)
    return Exchange(rules.at(h, received, FIRST), *rules.send(h, stepped, FIRST))


def message_columns(algorithm: Algorithm) -> tuple[str, ...]:
    """Return the names of the columns of a push."""
    names: tuple[str, ...] = Contract.of(algorithm).message._fields
    return names


def is_memoryless(algorithm: Algorithm) -> bool:
    """Return whether all that a worker keeps from one exchange to the next is lost in the pull.

    Then a worker's state is the version that it pulled, and workers that pulled the same version
    share it. Tried out: each exchange pulls, steps once and pushes, and what it evaluates and sends
    must be the same whatever number stood in the worker's state before.
    """
    pull, push = verb(algorithm.cycle, Pull), verb(algorithm.cycle, Push)
    if pull.every != 1 or push.every != 1 or before_step(algorithm.cycle, Push):
        return False
    h, rules = floats(algorithm), Rules.of(algorithm)
    columns = [0.3 + 0.1 * i for i in range(len(algorithm.server.reads))]
    outcomes = set()
    for junk in (1.5, -250.0, 0.0):
        fresh = rules.init(h, junk)
        used = exchange(rules, h, type(fresh)(*[junk] * len(fresh)), columns, junk).sent
        for w in (fresh, used):
            done = exchange(rules, h, w, columns, 0.7)
            outcomes.add((float(done.point), *map(float, done.message)))
    return len(outcomes) == 1


def check_cycle(cycle: Cycle) -> None:
    """Raise a `ConfigError` unless `cycle` has one Pull, Step and Push, and whole periods."""
    kinds = sorted(type(one).__name__ for one in cycle if not isinstance(one, Start))
    if kinds != ["Pull", "Push", "Step"]:
        msg = f"a cycle must have one Pull, one Step and one Push, not {kinds}"
        raise ConfigError(msg)
    pull, push = verb(cycle, Pull), verb(cycle, Push)
    for name, every in (("Pull.every", pull.every), ("Push.every", push.every)):
        if check_count(name, every) > MOST_STEPS:
            msg = f"{name} must be at most {MOST_STEPS:,} steps, not {every}"
            raise ConfigError(msg)
    check_count("Push.backup", push.backup, at_least=0)
    if pull.bound is not None:
        check_count("Pull.bound", pull.bound, at_least=0)
    if push.quorum is not None:
        check_count("Push.quorum", push.quorum)


def check_algorithm(algorithm: Algorithm) -> None:
    """Raise a `ConfigError` unless the rules and the columns of `algorithm` fit together.

    Each rule is called once on numbers, in the order of the cycle, and must return the NamedTuple
    that the next one takes.
    """
    if not isinstance(algorithm, Algorithm):
        raise wrong_kind("algorithm", "distsgd.algorithms.serial(0.1)", algorithm)
    check_cycle(algorithm.cycle)
    h, name = algorithm.hyper, algorithm.name
    for label, value in zip(h._fields, h, strict=True):
        check_number(f"{name}: hyper-parameter {label}", value)
    Contract.of(algorithm)


def settings(algorithm: Algorithm) -> dict[str, Any]:
    """Return what identifies `algorithm`, as JSON: its name, numbers and cycle, and what it does.

    A rule is identified by its formula, whatever it is called and wherever it stands.
    """
    schedule = algorithm.schedule and identified(
        f"the schedule of {algorithm.name}", algorithm.schedule
    )
    rules = {name: str(one) for name, one in Contract.of(algorithm).formulas.items()}
    return {
        "name": algorithm.name,
        "hyper": {name: float(value) for name, value in algorithm.hyper._asdict().items()},
        "cycle": [str(one) for one in algorithm.cycle],
        "rules": rules,
        "reads": list(algorithm.server.reads),
        "sparse": algorithm.sparse,
        "lock_free": algorithm.lock_free,
        "schedule": schedule,
    }
