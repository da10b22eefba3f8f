"""What a worker sends when: its cycle, as the server that expects it sees it."""

from typing import NamedTuple

from distsgd.algorithm import Cycle, Pull, Push, Step, before_step, verb
from distsgd.live.messages.wire import Kind


class Turns(NamedTuple):
    """A cycle in numbers."""

    pull_every: int
    push_every: int
    pulls_before: bool
    """Whether pulls stand in front of `Step`."""
    pushes_before: bool
    pushes_first: bool
    """Whether, of a push and a pull due between the same two steps, the push comes first; then both
    are one exchange."""
    waits: bool
    """Whether a worker waits until its push has been taken."""

    @classmethod
    def of(cls, cycle: Cycle, workers: int) -> "Turns":
        """Return the turns of workers that repeat `cycle`."""
        pull, push = verb(cycle, Pull), verb(cycle, Push)
        pulls_before, pushes_before = before_step(cycle, Pull), before_step(cycle, Push)
        kinds = [type(one) for one in cycle if isinstance(one, Pull | Push | Step)]
        pushes_first = pulls_before and not pushes_before
        if pulls_before == pushes_before:
            pushes_first = kinds.index(Push) < kinds.index(Pull)
        waits = push.quorum_of(workers) > 1 or push.backup > 0
        return cls(pull.every, push.every, pulls_before, pushes_before, pushes_first, waits)

    def due(self, step: int, *, is_first: bool) -> tuple[Kind, ...]:
        """Return what a worker sends in front of its step number `step`.

        In front of its first one it has computed nothing that could be sent from behind a step.
        """
        pulls = step % self.pull_every == 0 and (self.pulls_before or not is_first)
        pushes = step % self.push_every == 0 and (self.pushes_before or not is_first)
        if pulls and pushes:
            return (Kind.EXCHANGE,) if self.pushes_first else (Kind.PULL, Kind.PUSH)
        return (Kind.PULL,) * pulls + (Kind.PUSH,) * pushes

    def after(self, step: int) -> int:
        """Return the next step behind `step` in front of which something is due."""
        return min(step - step % every + every for every in (self.pull_every, self.push_every))
