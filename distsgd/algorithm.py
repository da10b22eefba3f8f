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

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from distsgd.errors import ConfigError, check_count, check_number, wrong_kind

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


class Rules(NamedTuple):
    """The five rules of an algorithm, each of which takes `at` as its last argument."""

    receive: Callable[..., State]
    at: Callable[..., Column]
    step: Callable[..., State]
    send: Callable[..., tuple[State, State]]
    apply: Callable[..., State]

    @classmethod
    def of(cls, algorithm: Algorithm) -> "Rules":
        """Return the rules of `algorithm`; those that do not ask for `at` are not given it."""
        rules = signatures(algorithm.server, algorithm.worker)
        return cls(*(with_at(rule, arguments) for rule, arguments in rules))


def signatures(server: Server, worker: Worker) -> list[tuple[Callable[..., Any], int]]:
    """Return each rule, in the order of `Rules`, and the number of its arguments without `at`."""
    return [
        (worker.receive, 2 + len(server.reads)),
        (worker.at, 2),
        (worker.step, 3),
        (worker.send, 2),
        (server.apply, 3),
    ]


@functools.cache  # a signature takes longer to inspect than a short run to begin
def takes_at(rule: Callable[..., Any], arguments: int) -> bool:
    """Return whether `rule` takes `at` behind its `arguments` others, or raise a `ConfigError`."""
    taken = len(inspect.signature(rule).parameters)
    if taken not in (arguments, arguments + 1):
        name = getattr(rule, "__name__", repr(rule))
        msg = f"rule {name} must take {arguments} arguments, or `at` behind them, not {taken}"
        raise ConfigError(msg)
    return taken == arguments + 1


def with_at(rule: Callable[..., Any], arguments: int) -> Callable[..., Any]:
    """Return `rule` as a function that takes `at` last, whether the rule asks for it or not."""
    if takes_at(rule, arguments):
        return rule
    return lambda *given: rule(*given[:-1])


FIRST = At(version=0, staleness=0, workers=1, step=0, factor=1.0)
"""What is known before anything has happened, to a fleet of one."""


class Exchange(NamedTuple):
    """What one pull, step and push show of a worker."""

    point: Column
    sent: State
    message: State


def exchange(algorithm: Algorithm, w: State, columns: Sequence[Column], g: Column) -> Exchange:
    """Run a worker's four rules once on numbers: pull `columns`, step along `g`, push."""
    h, rules = algorithm.hyper, Rules.of(algorithm)
    received = rules.receive(h, w, *columns, FIRST)
    stepped = rules.step(h, received, g, FIRST)
    return Exchange(rules.at(h, received, FIRST), *rules.send(h, stepped, FIRST))


def message_columns(algorithm: Algorithm) -> tuple[str, ...]:
    """Return the names of the columns of a push."""
    h, zeros = algorithm.hyper, [0.0] * len(algorithm.server.reads)
    names: tuple[str, ...] = exchange(
        algorithm, algorithm.worker.init(h, 0.0), zeros, 0.0
    ).message._fields
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
    columns = [0.3 + 0.1 * i for i in range(len(algorithm.server.reads))]
    outcomes = set()
    for junk in (1.5, -250.0, 0.0):
        fresh = algorithm.worker.init(algorithm.hyper, junk)
        used = exchange(algorithm, type(fresh)(*[junk] * len(fresh)), columns, junk).sent
        for w in (fresh, used):
            done = exchange(algorithm, w, columns, 0.7)
            outcomes.add((float(done.point), *map(float, done.message)))
    return len(outcomes) == 1


def check_cycle(cycle: Cycle) -> None:
    """Raise a `ConfigError` unless `cycle` has one Pull, Step and Push, and whole periods."""
    kinds = sorted(type(one).__name__ for one in cycle if not isinstance(one, Start))
    if kinds != ["Pull", "Push", "Step"]:
        msg = f"a cycle must have one Pull, one Step and one Push, not {kinds}"
        raise ConfigError(msg)
    pull, push = verb(cycle, Pull), verb(cycle, Push)
    check_count("Pull.every", pull.every)
    check_count("Push.every", push.every)
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
    server, worker = algorithm.server.init(h, 0.5), algorithm.worker.init(h, 0.5)
    missing = {"x", *algorithm.server.reads} - set(server._fields)
    if missing:
        msg = f"{name}: the server has no column {sorted(missing)}, only {list(server._fields)}"
        raise ConfigError(msg)
    columns = [getattr(server, column) for column in algorithm.server.reads]
    rules = Rules.of(algorithm)
    received = _check_state(name, "receive", worker, rules.receive(h, worker, *columns, FIRST))
    rules.at(h, received, FIRST)
    stepped = _check_state(name, "step", worker, rules.step(h, received, 0.25, FIRST))
    sent, message = rules.send(h, stepped, FIRST)
    _check_state(name, "send", worker, sent)
    _check_state(name, "apply", server, rules.apply(h, server, message, FIRST))


def _check_state(algorithm: str, rule: str, expected: State, got: State) -> State:
    if type(got) is type(expected):
        return got
    msg = f"{algorithm}: {rule} must return {type(expected).__name__}, not {type(got).__name__}"
    raise ConfigError(msg)


def settings(algorithm: Algorithm) -> dict[str, Any]:
    """Return what identifies `algorithm`, as JSON: its name, numbers, cycle and rules' names."""
    return {
        "name": algorithm.name,
        "hyper": {name: float(value) for name, value in algorithm.hyper._asdict().items()},
        "cycle": [str(one) for one in algorithm.cycle],
        "rules": [
            f"{rule.__module__}.{rule.__qualname__}"
            for rule, _ in signatures(algorithm.server, algorithm.worker)
        ],
        "schedule": _name(algorithm.schedule),
    }


def _name(schedule: Callable[[float], float] | None) -> str | None:
    # the text of a function holds its address; that of a value that can be called, its numbers
    return getattr(schedule, "__qualname__", None) or (schedule and str(schedule))
