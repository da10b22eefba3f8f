"""Control of a run by its supervisor: instructions go to the lead, states of the run come back.

1. The lead acts on each instruction and then answers it, in order, with the run's state.
2. One question how the run goes is open at a time. So the pipe never fills, and neither the lead
   nor the supervisor ever waits for the other.
3. A lead of another life has a pipe of its own. What the one before has left unsaid is never heard:
   it may be undone.
"""

import math
import time
from multiprocessing.connection import Connection
from typing import NamedTuple, TypeAlias

from distsgd.live.machine.channel import Channel
from distsgd.live.messages.wire import Kind, State

ASK_S = 0.05
"""Time between two questions how the run goes."""


class Instruction(NamedTuple):
    """What to tell the lead: the kind of a message, and the worker and the session it is about."""

    kind: Kind
    worker: int = 0
    session: int = 0


Answer: TypeAlias = tuple[Instruction, State]
"""What the lead has been told, and how the run is going since then."""


class Control(Channel):
    """The supervisor's end: it takes instructions, and brings answers of the lead of now."""

    def __init__(self) -> None:
        super().__init__()
        self._asked_at, self._is_asked = -math.inf, False

    def renew(self) -> Connection:
        """Return the end for another lead, which has not been asked anything yet."""
        self._is_asked = False
        return super().renew()

    def ask(self) -> float:
        """Ask how the run goes if it is time, and return how soon it will be again [s]."""
        now = time.monotonic()
        if now < self._asked_at + ASK_S:
            return self._asked_at + ASK_S - now
        self._asked_at = now
        if not self._is_asked:
            self._is_asked = True
            self.send(Instruction(Kind.STATUS))
        return ASK_S

    def answers(self) -> list[Answer]:
        """Return what the lead has answered since the last time."""
        found: list[Answer] = self.received()
        self._is_asked &= all(told.kind != Kind.STATUS for told, _ in found)
        return found
