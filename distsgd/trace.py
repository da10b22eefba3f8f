"""The order in which a server served its workers, and what follows from the order alone.

1. A row is a served message. Rows stand in the order of service, so the server's version before a
   row is that after the row in front of it.
2. A push that is held for its round leaves the version as it is; the one that closes the round
   raises it by one. A push that comes after its round has closed is a `DROP`.
3. Staleness counts from the read: a gradient read at version v and applied when the server is at
   version u has staleness u - v, and a fresh one 0.
4. A worker that has not pulled yet holds the starting point, which is version 0.
5. A push behind `Step` carries the gradients since the push before, the oldest of which was read
   from the pull in force at its first step. A push in front of `Step`, known by one at step 0, goes
   with the pull just made.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

import numpy as np

from distsgd.errors import ConfigError, TraceError, check_count

PULL, PUSH, DROP = range(3)
ROW = np.dtype(
    [
        ("time", "f8"), ("sent", "f8"), ("done", "f8"), ("worker", "i4"), ("verb", "i4"),
        ("step", "i8"), ("version", "i8"), ("read", "i8"),
    ]
)  # fmt: skip
"""One served message.

`time` is when it was served, `sent` when the worker sent it, `done` when the worker went on [s]: a
pull's reply has arrived; a push was sent or, if its worker waited for the round and for nothing
else, its release has arrived. `step` counts the steps that the worker had completed. `version` is
the server's after the row. `read` is, for a push, the version read by the oldest gradient in it,
and for a pull its version.
"""
VERBS = ("pull", "push", "drop")


@dataclass(frozen=True, eq=False)
class Trace:
    """An order: which message the server served when, and what each worker had read.

    Parameters
    ----------
    rows : ndarray
        ``ROW[n]``, in the order of service.
    workers : int
        Workers of the fleet, >= 1. Their numbers in the rows are below it.
    """

    rows: np.ndarray
    workers: int

    def __post_init__(self) -> None:
        check_count("workers", self.workers)
        if self.rows.dtype != ROW or self.rows.ndim != 1:
            msg = f"rows must be a one-dimensional array of dtype ROW, not {self.rows.dtype}"
            raise ConfigError(msg)

    def __repr__(self) -> str:
        return f"Trace({len(self.rows)} rows, {self.n_updates} updates, {self.workers} workers)"

    @cached_property
    def closing(self) -> np.ndarray:
        """Rows that raised the version, ``int64[updates]``."""
        return np.flatnonzero(np.diff(self.rows["version"], prepend=0) > 0)

    @property
    def n_updates(self) -> int:
        """Updates that the server applied."""
        return len(self.closing)

    @property
    def n_dropped(self) -> int:
        """Pushes that came too late for their round."""
        return int(np.count_nonzero(self.rows["verb"] == DROP))

    @cached_property
    def staleness(self) -> np.ndarray:
        """Staleness of each update, that of the oldest push of its round, ``int64[updates]``."""
        ends = self.closing
        pushes = np.flatnonzero(self.rows["verb"] == PUSH)
        rounds = np.searchsorted(ends, pushes)
        applied = rounds < len(ends)
        oldest = np.full(len(ends), np.iinfo(np.int64).max)
        np.minimum.at(oldest, rounds[applied], self.rows["read"][pushes[applied]])
        staleness: np.ndarray = np.arange(len(ends)) - oldest
        return staleness

    @cached_property
    def steps(self) -> np.ndarray:
        """Gradient steps that each row brings, 0 for a pull, ``int64[n]``."""
        brought = np.zeros(len(self.rows), np.int64)
        pushes = self._by_worker[self.rows["verb"][self._by_worker] != PULL]
        workers, steps = self.rows["worker"][pushes], self.rows["step"][pushes]
        brought[pushes] = steps - _shifted(steps, _same_as_before(workers), 0)
        return brought

    @property
    def gradients(self) -> np.ndarray:
        """Gradient steps pushed by the end of each update, dropped ones too, ``int64[updates]``."""
        served: np.ndarray = np.cumsum(self.steps)[self.closing]
        return served

    @property
    def seconds(self) -> np.ndarray:
        """When each update was applied [s], ``float64[updates]``."""
        times: np.ndarray = self.rows["time"][self.closing]
        return times

    @property
    def utilisation(self) -> np.ndarray:
        """Share of the time that each worker computed, ``float64[workers]``.

        Up to its last message; whatever lies between going on and sending is computing, repairs
        included. NaN for a worker that sent nothing after time 0.
        """
        rows = self.rows[self._by_worker]
        is_first = ~_same_as_before(rows["worker"])
        went_on = _shifted(rows["done"], ~is_first, 0.0)
        # A first message at step 0 was sent without computing, whenever its worker was started.
        computed = np.where(is_first & (rows["step"] == 0), 0.0, rows["sent"] - went_on)
        busy = np.bincount(rows["worker"], computed, self.workers)
        until = np.full(self.workers, np.nan)
        np.fmax.at(until, rows["worker"], rows["sent"])
        share: np.ndarray = np.divide(busy, until, out=np.full_like(until, np.nan), where=until > 0)
        return share

    def head(self, updates: int) -> "Trace":
        """Return the trace up to the row of the update number `updates`.

        Raises
        ------
        ConfigError
            If `updates` is negative or above the number of updates of the trace.
        """
        check_count("updates", updates, at_least=0)
        if updates > self.n_updates:
            msg = f"updates must be <= {self.n_updates}, those of the trace, not {updates}"
            raise ConfigError(msg)
        end = self.closing[updates - 1] + 1 if updates else 0
        return Trace(self.rows[:end], self.workers)

    def verify(self, *, always_busy: bool = False) -> None:
        r"""Raise a `TraceError` unless a server can have served this order.

        Time never runs back; nobody is in two places; the version rises by one, at pushes only;
        every push has its pull; and the staleness that is applied is conserved: after update t,

        .. math:: \sum_{s \le t} \tau_s + \sum_{i \in F_t} (t - v_i) = \sum_{s \le t} |F_s|,

        where :math:`F_t` are the reads in flight after update t and :math:`v_i` their versions.

        Parameters
        ----------
        always_busy : bool, default False
            Whether every worker but the one just served owes a push, as it does where each push is
            an update and the next pull travels with it: then all :math:`|F_t|` are W - 1.

        Raises
        ------
        TraceError
            With the first row at fault, its worker, what was expected and what was found.
        """
        self._verify_fields()
        self._verify_times()
        self._verify_versions()
        claimed = self._verify_reads()
        self._verify_conservation(claimed, always_busy=always_busy)

    @cached_property
    def _by_worker(self) -> np.ndarray:
        """Rows ordered by worker, and in the order of service for each."""
        return np.argsort(self.rows["worker"], kind="stable")

    def _verify_fields(self) -> None:
        rows = self.rows
        self._require(rows["worker"], "a worker's number", 0, self.workers - 1)
        self._require(rows["verb"], "a verb's number", PULL, DROP)
        self._require(rows["step"], "a step", 0, np.iinfo(np.int64).max)
        for name in ("time", "sent", "done"):
            self._require(rows[name], f"{name} [s]", 0.0, np.finfo(np.float64).max)

    def _require(self, values: np.ndarray, what: str, least: float, most: float) -> None:
        wrong = ~((values >= least) & (values <= most))
        if wrong.any():
            row = int(wrong.argmax())
            self._fail(row, f"{what} between {least} and {most}", values[row])

    def _verify_times(self) -> None:
        rows = self.rows
        self._at_least(rows["time"][1:], rows["time"][:-1], "time", np.arange(1, len(rows)))
        self._at_least(rows["time"], rows["sent"], "time", np.arange(len(rows)))
        is_pull = np.flatnonzero(rows["verb"] == PULL)
        self._at_least(rows["done"][is_pull], rows["time"][is_pull], "done", is_pull)
        self._at_least(rows["done"], rows["sent"], "done", np.arange(len(rows)))
        order = self._by_worker
        later = np.flatnonzero(_same_as_before(rows["worker"][order]))
        before, after = order[later - 1], order[later]
        self._at_least(rows["sent"][after], rows["done"][before], "sent", after)
        self._at_least(rows["step"][after], rows["step"][before], "step", after)

    def _at_least(
        self, values: np.ndarray, bounds: np.ndarray, what: str, numbers: np.ndarray
    ) -> None:
        wrong = values < bounds
        if wrong.any():
            first = int(np.flatnonzero(wrong)[numbers[wrong].argmin()])
            self._fail(int(numbers[first]), f"{what} >= {bounds[first]}", values[first])

    def _verify_versions(self) -> None:
        version = self.rows["version"]
        rise = np.diff(version, prepend=0)
        may_rise = self.rows["verb"] == PUSH
        wrong = (rise < 0) | (rise > may_rise)
        if wrong.any():
            row = int(wrong.argmax())
            before = version[row] - rise[row]
            allowed = f"version {before}" + f" or {before + 1}" * bool(may_rise[row])
            self._fail(row, allowed, version[row])
        is_pull = np.flatnonzero(~may_rise & (self.rows["verb"] == PULL))
        self._equal(self.rows["read"][is_pull], version[is_pull], "read", is_pull)

    def _equal(
        self, values: np.ndarray, expected: np.ndarray, what: str, numbers: np.ndarray
    ) -> None:
        wrong = values != expected
        if wrong.any():
            first = int(np.flatnonzero(wrong)[numbers[wrong].argmin()])
            self._fail(int(numbers[first]), f"{what} {expected[first]}", values[first])

    def _verify_reads(self) -> np.ndarray:
        """Check that every push has its pull; return the row of each row's pull, -1 for none."""
        order = self._by_worker
        places = self._claims()
        claimed = np.full(len(order), -1)
        claimed[order] = np.where(places >= 0, order[places], -1)
        pushes = np.flatnonzero(self.rows["verb"] != PULL)
        pulls = claimed[pushes]
        read = np.where(pulls >= 0, self.rows["read"][pulls], 0)
        self._equal(self.rows["read"][pushes], read, "read", pushes)
        return claimed

    def _claims(self) -> np.ndarray:
        """Position, in the order by worker, of the pull in force for each row; -1 for none."""
        order = self._by_worker
        place, steps = np.arange(len(order)), self.rows["step"][order]
        is_pull = self.rows["verb"][order] == PULL
        same = _same_as_before(self.rows["worker"][order])
        start = np.maximum.accumulate(np.where(same, 0, place))
        last = _last(is_pull, start)
        if np.any(~is_pull & (steps == 0)):
            return last
        # The pull in force at the first step behind the push before: the one that came along with
        # that push, or else the last one in front of it.
        pushed = _last(_shifted(~is_pull, same, fill=False), start)
        first = np.where(pushed >= 0, pushed, start)
        step = np.where(pushed > 0, steps[pushed - 1], 0)
        came_along = is_pull[first] & (steps[first] == step)
        before = np.where(pushed > 0, last[pushed - 1], -1)
        return np.where(came_along & (first < place), first, before)

    def _verify_conservation(self, claimed: np.ndarray, *, always_busy: bool) -> None:
        """Check the conservation of staleness after every update."""
        pushes = np.flatnonzero(self.rows["verb"] != PULL)
        pushes = pushes[claimed[pushes] >= 0]
        opens = self._opened(claimed[pushes])
        in_flight = np.bincount(opens, minlength=len(self.rows))
        in_flight -= np.bincount(pushes, minlength=len(self.rows))
        version, read = self.rows["version"], self.rows["read"]
        reads = np.bincount(opens, read[opens], len(self.rows)).astype(np.int64)
        reads[pushes] -= read[pushes]
        before = version - np.diff(version, prepend=0)
        applied = np.zeros(len(self.rows), np.int64)
        applied[pushes] = before[pushes] - read[pushes]
        flight = np.cumsum(in_flight)
        ages = flight * version - np.cumsum(reads)
        ends = self.closing
        aged = np.cumsum(flight[ends])
        self._equal((np.cumsum(applied) + ages)[ends], aged, "staleness and ages of", ends)
        if always_busy:
            self._equal(flight[ends], np.full(len(ends), self.workers - 1), "reads in flight", ends)

    def _opened(self, claimed: np.ndarray) -> np.ndarray:
        """Return the pulls that begin a read in flight: those claimed, and each worker's last."""
        is_pull = np.flatnonzero(self.rows["verb"] == PULL)
        latest = np.full(self.workers, -1)
        np.maximum.at(latest, self.rows["worker"][is_pull], is_pull)
        latest = latest[latest >= 0]
        is_claimed = np.zeros(len(self.rows), bool)
        is_claimed[claimed] = True
        return np.concatenate([claimed, latest[~is_claimed[latest]]])

    def _fail(self, row: int, expected: str, found: object) -> NoReturn:
        worker, verb = int(self.rows["worker"][row]), int(self.rows["verb"][row])
        name = VERBS[verb] if 0 <= verb < len(VERBS) else f"verb {verb}"
        msg = (
            f"trace row {row}: {name} of worker {worker}: expected {expected}, found {found}; "
            "the trace cannot be folded, make a new one"
        )
        raise TraceError(msg)


def _same_as_before(workers: np.ndarray) -> np.ndarray:
    """Return whether the entry in front is the same worker's, ``bool[n]``."""
    return np.concatenate([[False], workers[1:] == workers[:-1]])[: len(workers)]


def _shifted(values: np.ndarray, keep: np.ndarray, fill: float) -> np.ndarray:
    """Return the value in front of each one where `keep` holds, else `fill`."""
    return np.where(keep, np.concatenate([values[:1], values[:-1]]), fill)


def _last(chosen: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return the place of the last chosen entry up to each one, -1 if none since its `start`."""
    place = np.maximum.accumulate(np.where(chosen, np.arange(len(chosen)), -1))
    return np.where(place >= start, place, -1)
