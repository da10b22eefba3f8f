"""The order in which a server served its workers, and what follows from the order alone.

1. A row is a served message, or a worker that the server gave up. Rows stand in the order of
   service, so the server's version before a row is that after the row in front of it.
2. A push that is held for its round leaves the version as it is; the one that closes the round
   raises it by one. A push that comes after its round has closed is a `DROP`.
3. Staleness counts from the read: a gradient read at version v and applied when the server is at
   version u has staleness u - v, and a fresh one 0.
4. A worker that has not pulled yet holds the starting point, which is version 0.
5. A push behind `Step` carries the gradients since the push before, the oldest of which was read
   from the pull in force at its first step. A push in front of `Step`, known by one at step 0, goes
   with the pull just made.
6. A pull may read an older version than the server's, ``read < version``: it returns the columns as
   update number `read` left them. All that a worker knows then is that version. ::

       worker  verb   step  version  read
            0  pull      0        0     0
            0  push      1        1     0
            0  pull      1        1     0   the server is at version 1, and returns 0
            0  push      2        2     0   so this gradient has staleness 1
            1  pull      0        2     1

7. `JOIN` begins a new life of a worker: it holds what its first state would be if the server's
   parameters at this version were the starting point, and goes on behind the `step` of its row
   before (0 if it has none). It counts as a pull of the server's version. What it had computed and
   not pushed is lost: those steps are in no push, and do not count as gradients. The first
   life of a worker begins without a row. A life may end unseen: a join needs no `LEAVE` before it.
   ::

       worker  verb   step  version  read
            0  pull      0        0     0   a read that no push ends
            1  pull      0        0     0
            1  push      1        1     0
            0  join      0        1     1   ends it, one version later: its age was 1
            0  push      2        2     1   brings the 2 steps since the join: 3 gradients in all

8. `LEAVE` ends a life: the server gave the worker up, and no row of it follows but a join. Its
   `step` is that of the worker's row before (0 if it has none). What it had pushed into an open
   round stays there. If the round waits for no other push, it closes here: the version rises by one
   at a `LEAVE` if, and only if, pushes are held and the server applied them now. ::

       worker  verb   step  version  read
            0  pull      0        0     0
            1  pull      0        0     0
            0  push      1        0     0   held for worker 1
            1  leave     0        1     1   which will not come: the round of one closes here
            0  pull      1        1     1

9. A round's pushes are averaged in worker order, two of one worker (of two lives) in the order of
   service; the round's `step` is that of the last of them in that order. ::

       worker  verb   step  version  read
            1  pull      0        0     0
            1  push      2        0     0   the second of the round
            1  join      2        0     0
            1  push      3        0     0   the third: the round's step is 3
            0  push      1        1     0   the first, and the one that closes the round
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

import numpy as np

from distsgd import display
from distsgd.errors import ConfigError, TraceError, check_count
from distsgd.lives import DROP, JOIN, LEAVE, PULL, PUSH, ROW, VERBS, Lives, is_one_of, same_as_before, shifted

__all__ = ["DROP", "JOIN", "LEAVE", "PULL", "PUSH", "ROW", "VERBS", "Trace"]


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
            raise ConfigError(f"rows must be a one-dimensional array of dtype ROW, not {self.rows.dtype}")

    def __repr__(self) -> str:
        counts = f"{len(self.rows)} rows, {self.n_updates} updates, {self.workers} workers"
        return f"Trace({counts}, mean staleness {self.mean_staleness:.3g})"

    def _repr_html_(self) -> str:
        return display.load().trace_html(self)

    @cached_property
    def _lives(self) -> Lives:
        return Lives(self.rows)

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

    @property
    def n_lost(self) -> int:
        """Times that the server gave a worker up."""
        return int(np.count_nonzero(self.rows["verb"] == LEAVE))

    @cached_property
    def is_plain(self) -> bool:
        """Whether no worker left or joined, all pulls were fresh, and held workers waited."""
        rows = self.rows
        is_old = (rows["verb"] == PULL) & (rows["read"] < rows["version"])
        return not ((is_old | (rows["verb"] > DROP)).any() or self._goes_on_while_held())

    def _goes_on_while_held(self) -> bool:
        if np.count_nonzero(self._is(PUSH)) == self.n_updates:
            return False
        before, after = self._lives.pairs
        rounds = np.searchsorted(self.closing, before)
        ends = np.append(self.closing, 0)[rounds]  # a round that never closes changes nothing
        return bool(((self.rows["verb"][before] == PUSH) & (after < ends)).any())

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

    @property
    def mean_staleness(self) -> float:
        """Mean staleness of the updates, NaN if there is none."""
        return float(self.staleness.mean()) if self.n_updates else math.nan

    @cached_property
    def steps(self) -> np.ndarray:
        """Gradient steps that each row brings, 0 for all but pushes, ``int64[n]``."""
        brought = np.zeros(len(self.rows), np.int64)
        counted = self._lives.order[self._is(PUSH, DROP, JOIN)[self._lives.order]]
        workers, steps = self.rows["worker"][counted], self.rows["step"][counted]
        brought[counted] = steps - shifted(steps, same_as_before(workers), 0)
        brought[self.rows["verb"] == JOIN] = 0
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

        Up to its last row; whatever lies between going on and sending is computing, repairs
        included. What lies in front of a join or a `LEAVE` is not. NaN for a worker that sent
        nothing after time 0.
        """
        rows = self.rows[self._lives.order]
        is_first = ~same_as_before(rows["worker"])
        went_on = shifted(rows["done"], ~is_first, 0.0)
        # A first message at step 0 was sent without computing, whenever its worker was started.
        is_idle = (is_first & (rows["step"] == 0)) | (rows["verb"] > DROP)
        computed = np.where(is_idle, 0.0, rows["sent"] - went_on)
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
            raise ConfigError(f"updates must be <= {self.n_updates}, those of the trace, not {updates}")
        end = self.closing[updates - 1] + 1 if updates else 0
        return Trace(self.rows[:end], self.workers)

    def verify(self, *, always_busy: bool = False) -> None:
        r"""Raise a `TraceError` unless a server can have served this order.

        Time never runs back, also along the rows of each worker; the version rises by one, at
        pushes and at losses that close a round only; every push has its pull; a worker that left
        comes back by a join, where its life ended; and the ages of reads are conserved: after
        update t,

        .. math:: \sum_{i \in E_t} (u_i - v_i) + \sum_{i \in F_t} (t - v_i)
                  = \sum_{s \le t} |F_s| + \sum_{i \in E_t \cup F_t} (r_i - v_i),

        where the read i returned version :math:`v_i` when the server was at :math:`r_i`, and ended
        in a push, or with its worker's life, at :math:`u_i`; :math:`E_t` are the reads that have
        ended by update t and :math:`F_t` those in flight after it. Without stale pulls and losses
        the first sum is the staleness applied, and the last one 0.

        Parameters
        ----------
        always_busy : bool, default False
            Whether every worker but the one just served owes a push, as it does where each push is
            an update, the next pull travels with it and no worker is lost: then all :math:`|F_t|`
            are W - 1.

        Raises
        ------
        TraceError
            With the first row at fault, its worker, what was expected and what was found.
        """
        self._verify_fields()
        self._verify_times()
        self._verify_lives()
        self._verify_versions()
        self._verify_reads()
        self._verify_conservation(always_busy=always_busy)

    def _is(self, *verbs: int) -> np.ndarray:
        """Return whether each row is one of `verbs`, ``bool[n]``."""
        return is_one_of(self.rows["verb"], *verbs)

    def _verify_fields(self) -> None:
        rows, most = self.rows, np.iinfo(np.int64).max
        self._require(rows["worker"], "a worker's number", 0, self.workers - 1)
        self._require(rows["verb"], "a verb's number", PULL, LEAVE)
        self._require(rows["step"], "a step", 0, most)
        self._require(rows["read"], "a version read", 0, most)
        for name in ("time", "sent", "done"):
            self._require(rows[name], f"{name} [s]", 0.0, np.finfo(np.float64).max)

    def _require(self, values: np.ndarray, what: str, least: float, most: float) -> None:
        is_right = (values >= least) & (values <= most)
        numbers = np.arange(len(values))
        self._check(is_right, numbers, lambda _: f"{what} between {least} and {most}", values)

    def _verify_times(self) -> None:
        rows, every = self.rows, np.arange(len(self.rows))
        self._at_least(rows["time"][1:], rows["time"][:-1], "time", every[1:])
        self._at_least(rows["time"], rows["sent"], "time", every)
        reading = np.flatnonzero(self._is(PULL, JOIN))
        self._at_least(rows["done"][reading], rows["time"][reading], "done", reading)
        self._at_least(rows["done"], rows["sent"], "done", every)
        before, after = self._lives.pairs
        self._at_least(rows["sent"][after], rows["done"][before], "sent", after)

    def _verify_lives(self) -> None:
        """Check that only a join follows a `LEAVE`, and that steps go on where a life ended."""
        verb, step = self.rows["verb"], self.rows["step"]
        before, after = self._lives.pairs
        is_wrong = (verb[before] == LEAVE) & (verb[after] != JOIN)
        if is_wrong.any():
            row = int(after[is_wrong].min())
            self._fail(row, "a join, since it had left", f"a {VERBS[verb[row]]}")
        last = np.zeros(len(verb), np.int64)
        last[after] = step[before]
        changing = np.flatnonzero(verb > DROP)
        self._equal(step[changing], last[changing], "step", changing)
        self._at_least(step[after], step[before], "step", after)

    def _verify_versions(self) -> None:
        version, read = self.rows["version"], self.rows["read"]
        rise = np.diff(version, prepend=0)
        before = version - rise
        may_rise = self._is(PUSH) | (self._is(LEAVE) & self._is_held(rise > 0))
        is_right = (rise >= 0) & (rise <= may_rise)
        self._check(
            is_right,
            np.arange(len(version)),
            lambda row: f"version {before[row]}" + f" or {before[row] + 1}" * bool(may_rise[row]),
            version,
        )
        pulls = np.flatnonzero(self._is(PULL))
        bounds = version[pulls]
        self._check(read[pulls] <= bounds, pulls, lambda i: f"read <= {bounds[i]}", read[pulls])
        changing = np.flatnonzero(self._is(JOIN, LEAVE))
        self._equal(read[changing], version[changing], "read", changing)

    def _is_held(self, is_closing: np.ndarray) -> np.ndarray:
        """Return whether the server holds a push in front of each row, ``bool[n]``."""
        pushed = np.cumsum(self._is(PUSH))
        applied = np.maximum.accumulate(np.where(is_closing, pushed, 0))
        held: np.ndarray = np.concatenate([[0], pushed - applied])[: len(pushed)] > 0
        return held

    def _verify_reads(self) -> None:
        """Check that every push has its pull."""
        pushes = np.flatnonzero(self._is(PUSH, DROP))
        pulls = self._lives.claims[pushes]
        read = np.where(pulls >= 0, self.rows["read"][pulls], 0)
        self._equal(self.rows["read"][pushes], read, "read", pushes)

    def _verify_conservation(self, *, always_busy: bool) -> None:
        """Check the conservation of ages after every update."""
        version, read = self.rows["version"], self.rows["read"]
        before = version - np.diff(version, prepend=0)
        opens, ends = self._lives.reads(self._lives.claims)
        ended = ends[ends >= 0]
        begun = opens[ends >= 0]
        ages = np.zeros(len(self.rows), np.int64)
        np.add.at(ages, ended, before[ended] - read[begun])
        np.add.at(ages, opens, read[opens] - version[opens])
        in_flight = np.bincount(opens, minlength=len(self.rows))
        in_flight -= np.bincount(ended, minlength=len(self.rows))
        reads = np.zeros(len(self.rows), np.int64)
        np.add.at(reads, opens, read[opens])
        np.add.at(reads, ended, -read[begun])
        flight = np.cumsum(in_flight)
        left = np.cumsum(ages) + flight * version - np.cumsum(reads)
        closing = self.closing
        aged = np.cumsum(flight[closing])
        self._equal(left[closing], aged, "ages of reads", closing)
        if always_busy:
            others = np.full(len(closing), self.workers - 1)
            self._equal(flight[closing], others, "reads in flight", closing)

    def _at_least(self, values: np.ndarray, bounds: np.ndarray, what: str, numbers: np.ndarray) -> None:
        self._check(values >= bounds, numbers, lambda i: f"{what} >= {bounds[i]}", values)

    def _equal(self, values: np.ndarray, expected: np.ndarray, what: str, numbers: np.ndarray) -> None:
        self._check(values == expected, numbers, lambda i: f"{what} {expected[i]}", values)

    def _check(self, is_right: np.ndarray, numbers: np.ndarray, say: Callable[[int], str], values: np.ndarray) -> None:
        """Raise for the first of the rows `numbers` that is not right."""
        if not is_right.all():
            wrong = np.flatnonzero(~is_right)
            first = int(wrong[numbers[wrong].argmin()])
            self._fail(int(numbers[first]), say(first), values[first])

    def _fail(self, row: int, expected: str, found: object) -> NoReturn:
        worker, verb = int(self.rows["worker"][row]), int(self.rows["verb"][row])
        name = VERBS[verb] if 0 <= verb < len(VERBS) else f"verb {verb}"
        raise TraceError(
            f"trace row {row}: {name} of worker {worker}: expected {expected}, found {found}; "
            "the trace cannot be folded, make a new one"
        )
