"""The cycle of an algorithm: verbs that a worker repeats, as data.

Theory of operation. A worker counts its gradient steps k = 0, 1, 2, ... A verb that stands before
`Step` acts before step k whenever `every` divides k. A verb that stands behind `Step` acts after
every `every`-th step. So between two steps the verbs behind `Step` come first, then those before.

`SyncProtocol` is this arithmetic in numbers. The compiled schedule, the live server and the live
worker are fed from it; compiled code has twins of its methods (`distsgd.kernels.order.machines`).
"""

from typing import Any, NamedTuple, TypeAlias

from distsgd.errors import ConfigError, check_count, check_number


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


def verb(cycle: Cycle, kind: type) -> Any:  # noqa: ANN401 # the verb's own class, given by `kind`
    """Return the verb of the class `kind` in `cycle`, or that class's default."""
    return next((one for one in cycle if isinstance(one, kind)), kind())


def before_step(cycle: Cycle, kind: type) -> bool:
    """Return whether the verb `kind` stands before `Step`."""
    kinds = [type(one) for one in cycle]
    return kinds.index(kind) < kinds.index(Step)


def check_cycle(cycle: Cycle) -> None:
    """Raise a `ConfigError` unless `cycle` has one Pull, Step and Push, and whole periods."""
    kinds = sorted(type(one).__name__ for one in cycle if not isinstance(one, Start))
    if kinds != ["Pull", "Push", "Step"]:
        raise ConfigError(f"a cycle must have one Pull, one Step and one Push, not {kinds}")
    pull, push = verb(cycle, Pull), verb(cycle, Push)
    for name, every in (("Pull.every", pull.every), ("Push.every", push.every)):
        if check_count(name, every) > MOST_STEPS:
            raise ConfigError(f"{name} must be at most {MOST_STEPS:,} steps, not {every}")
    check_number("Start.others_after", verb(cycle, Start).others_after, at_least=0, finite=False)
    check_count("Push.backup", push.backup, at_least=0)
    if pull.bound is not None:
        check_count("Pull.bound", pull.bound, at_least=0)
    if push.quorum is not None:
        check_count("Push.quorum", push.quorum)


Due: TypeAlias = tuple[type[Pull | Push], ...]
"""The verbs that a worker has to do between two steps, in their order."""


class SyncProtocol(NamedTuple):
    """A cycle in numbers: how workers that repeat it keep step with the server and one another.

    Compiled code takes it as it is, so that all fields are plain numbers.
    """

    pull_every: int
    """Steps between two pulls."""
    push_every: int
    """Steps between two pushes."""
    pulls_before_step: bool
    pushes_before_step: bool
    pushes_first: bool
    """Whether, of a push and a pull due between the same two steps, the push comes first; then both
    travel together."""
    quorum: int
    """Pushes that the server averages into one update."""
    drops_late: bool
    """Whether a push that comes after its round has closed is dropped."""
    waits: bool
    """Whether a live worker waits until its push has been taken: while its round may be open."""
    bound: float
    """Steps that a worker may be ahead of the slowest one when it pulls; often infinite."""
    others_after: float
    """Version at which all workers but the first start; infinite if they never do."""

    @classmethod
    def of(cls, cycle: Cycle, workers: int) -> "SyncProtocol":
        """Return the protocol of a number of workers, or raise a `ConfigError` as `quorum_of`."""
        pull, push, start = verb(cycle, Pull), verb(cycle, Push), verb(cycle, Start)
        kinds = [type(one) for one in cycle]
        place = kinds.index(Step)
        between_steps = kinds[place + 1 :] + kinds[:place]
        quorum = int(push.quorum_of(workers))
        return cls(
            pull_every=int(pull.every),
            push_every=int(push.every),
            pulls_before_step=kinds.index(Pull) < place,
            pushes_before_step=kinds.index(Push) < place,
            pushes_first=between_steps.index(Push) < between_steps.index(Pull),
            quorum=quorum,
            drops_late=push.quorum is None and push.backup > 0,
            waits=quorum > 1 or push.backup > 0,
            bound=float("inf") if pull.bound is None else float(pull.bound),
            others_after=float(start.others_after),
        )

    @property
    def has_bound(self) -> bool:
        """Whether the server has to know the slowest worker, which takes time."""
        return self.bound < float("inf")

    def due(self, step: int, *, is_first: bool) -> Due:
        """Return what a worker does in front of its step number `step`.

        In front of its first one it has computed nothing that a verb behind `Step` could send.
        """
        pulls = step % self.pull_every == 0 and (self.pulls_before_step or not is_first)
        pushes = step % self.push_every == 0 and (self.pushes_before_step or not is_first)
        if pulls and pushes:
            return (Push, Pull) if self.pushes_first else (Pull, Push)
        return (Pull,) * pulls + (Push,) * pushes

    def next_due(self, step: int) -> int:
        """Return the first step behind `step` in front of which something is due."""
        return min(step - step % every + every for every in (self.pull_every, self.push_every))
