"""Rows of a trace, and the lives of the workers in them: which rows belong together.

The rules that the rows obey are those of `distsgd.trace`. Positions are in the order by worker.
"""

import functools
from dataclasses import dataclass
from functools import cached_property

import numpy as np

PULL, PUSH, DROP, JOIN, LEAVE = range(5)
ROW = np.dtype(
    [
        ("time", "f8"),
        ("sent", "f8"),
        ("done", "f8"),
        ("worker", "i4"),
        ("verb", "i4"),
        ("step", "i8"),
        ("version", "i8"),
        ("read", "i8"),
    ]
)
"""One served message, or a worker given up.

`time` is when it was served, `sent` when the worker sent it, `done` when the worker went on [s]:
the reply to a pull or a join has arrived; a push was sent or, if its worker waited for the round
and for nothing else, its release has arrived (if it never did: `sent`). The three are equal for a
worker given up. `step` counts the steps that the worker had completed. `version` is the server's
after the row. `read` is, for a pull, the version that it returns; for a push the version read by
the oldest gradient in it; for a join and a worker given up, `version`.
"""
VERBS = ("pull", "push", "drop", "join", "leave")


@dataclass(frozen=True, eq=False)
class Lives:
    """The rows of each worker, life by life; `rows` are ``ROW[n]``, in the order of service."""

    rows: np.ndarray

    @cached_property
    def order(self) -> np.ndarray:
        """Rows ordered by worker, and in the order of service for each, ``int64[n]``."""
        return np.argsort(self.rows["worker"], kind="stable")

    @cached_property
    def births(self) -> np.ndarray:
        """Position of the row with which the life of each row began, ``int64[n]``."""
        is_later = same_as_before(self.rows["worker"][self.order]) & ~self._is(JOIN)
        return np.maximum.accumulate(np.where(is_later, 0, np.arange(len(is_later))))

    @property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Each worker's rows but its last, and its next row after each of them."""
        later = np.flatnonzero(same_as_before(self.rows["worker"][self.order]))
        return self.order[later - 1], self.order[later]

    @cached_property
    def claims(self) -> np.ndarray:
        """The pull in force for each row, that is for the steps of a push; -1 for none."""
        places = self._claims()
        claims = np.full(len(self.order), -1)
        claims[self.order] = np.where(places >= 0, self.order[places], -1)
        return claims

    def _is(self, *verbs: int) -> np.ndarray:
        """Return whether each row, ordered by worker, is one of `verbs`."""
        found: np.ndarray = is_one_of(self.rows["verb"], *verbs)[self.order]
        return found

    def _claims(self) -> np.ndarray:
        births, place = self.births, np.arange(len(self.order))
        steps, is_push = self.rows["step"][self.order], self._is(PUSH, DROP)
        latest = _last(self._is(PULL, JOIN), births)
        if np.any(is_push & (steps == 0)):
            return latest
        # The pull in force at the first step behind the push before, or of the life: the latest of
        # those that were made when as many steps were completed, or before.
        is_later = same_as_before(births)
        pushed = shifted(_last(is_push, births), is_later, -1)
        begun = np.where(pushed >= 0, pushed, births)
        ends = _ends(is_later & (steps == shifted(steps, is_later, -1)))
        claims = latest[np.minimum(ends[begun], place)]
        from_start = (pushed < 0) & (steps[births] > 0) & ~self._is(JOIN)[births]
        return np.where(from_start, -1, claims)

    def reads(self, claims: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the pull that begins each read, and the row that ends it, -1 if none has.

        A read ends in its push. The last pull of a life that no push has claimed is one more read,
        which ends with that life: with a `LEAVE`, or else with the join that follows.
        """
        pushes = np.flatnonzero(is_one_of(self.rows["verb"], PUSH, DROP))
        pushes = pushes[claims[pushes] >= 0]
        is_claimed = np.zeros(len(self.rows), bool)
        is_claimed[claims[pushes]] = True
        pulls, deaths = self._last_pulls()
        is_lost = ~is_claimed[pulls]
        opens = np.concatenate([claims[pushes], pulls[is_lost]])
        return opens, np.concatenate([pushes, deaths[is_lost]])

    def _last_pulls(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the last pull of each life that has one, and the row that ended that life."""
        order, births = self.order, self.births
        latest = _last(self._is(PULL, JOIN), births)
        ends = np.flatnonzero(np.append(~same_as_before(births), True)[1:])
        ends = ends[latest[ends] >= 0]
        is_followed = np.append(same_as_before(self.rows["worker"][order]), False)[ends + 1]
        following = np.where(is_followed, np.append(order, -1)[ends + 1], -1)
        return order[latest[ends]], np.where(self._is(LEAVE)[ends], order[ends], following)


def is_one_of(given: np.ndarray, *verbs: int) -> np.ndarray:
    """Return whether each of the verbs `given` is one of `verbs`, ``bool[n]``."""
    return functools.reduce(np.logical_or, [given == verb for verb in verbs])


def same_as_before(values: np.ndarray) -> np.ndarray:
    """Return whether the entry in front is equal, ``bool[n]``."""
    return np.concatenate([[False], values[1:] == values[:-1]])[: len(values)]


def shifted(values: np.ndarray, keep: np.ndarray, fill: float) -> np.ndarray:
    """Return the value in front of each one where `keep` holds, else `fill`."""
    return np.where(keep, np.concatenate([values[:1], values[:-1]]), fill)


def _last(chosen: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return the place of the last chosen entry up to each one, -1 if none since its `start`."""
    place = np.maximum.accumulate(np.where(chosen, np.arange(len(chosen)), -1))
    return np.where(place >= start, place, -1)


def _ends(is_later: np.ndarray) -> np.ndarray:
    """Return the last place of each entry's run; those that begin a run are not `is_later`."""
    starts = np.flatnonzero(~is_later)
    ends: np.ndarray = (np.append(starts[1:], len(is_later)) - 1)[np.cumsum(~is_later) - 1]
    return ends
