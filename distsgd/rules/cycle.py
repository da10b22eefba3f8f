"""The cycle of an algorithm: verbs that a worker repeats, as data.

Theory of operation. A worker counts its gradient steps k = 0, 1, 2, ... A verb that stands before
`Step` acts before step k whenever `every` divides k. A verb that stands behind `Step` acts after
every `every`-th step. So between two steps the verbs behind `Step` come first, then those before.
"""

from typing import Any, NamedTuple, TypeAlias

from distsgd.errors import ConfigError, check_count


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
