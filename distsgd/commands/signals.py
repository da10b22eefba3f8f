"""Ctrl-C and SIGTERM: what they ask of a command on its way."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM has come, which stops the command as Ctrl-C does."""


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], *signals: signal.Signals) -> Iterator[None]:
    """Let `handler` be called for some signals while the block runs."""
    before = {one: signal.signal(one, handler) for one in signals}
    try:
        yield
    finally:
        for one, own in before.items():
            signal.signal(one, own)


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` while the block runs."""

    def end(*_: object) -> None:
        raise Terminated

    with _handled(end, signal.SIGTERM):
        yield


class Stop:
    """Says whether a signal has asked to stop; a second one does not wait for that."""

    code = 0
    """Exit code of the signal that came, as a shell has it; 0 if none did."""

    def __call__(self) -> bool:
        """Return whether a signal has come."""
        return self.code > 0

    def note(self, number: int, _: object) -> None:
        """Note the signal with this `number`."""
        if self.code:
            raise KeyboardInterrupt
        self.code = 128 + number


@contextmanager
def stop_asked() -> Iterator[Stop]:
    """Let Ctrl-C and SIGTERM ask to stop while the block runs, instead of ending it."""
    stop = Stop()
    with _handled(stop.note, signal.SIGINT, signal.SIGTERM):
        yield stop
