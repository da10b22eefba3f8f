"""What has the same labels, put together; and what has finished."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from distsgd.experiment.outcome import Outcome
from distsgd.run import Run

Key = TypeVar("Key")
One = TypeVar("One")


def grouped(several: Iterable[One], key: Callable[[One], Key]) -> dict[Key, list[One]]:
    """Return all that have one `key`, by it; keys and what has them keep their order."""
    groups: dict[Key, list[One]] = {}
    for one in several:
        groups.setdefault(key(one), []).append(one)
    return groups


def finished(outcomes: Iterable[Outcome]) -> list[tuple[Outcome, Run]]:
    """Return the outcomes that have a run, with it."""
    return [(one, one.run) for one in outcomes if one.run is not None]
