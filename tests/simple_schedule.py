"""A second simulator, written to be read: a generator per worker, a heap of messages."""

import heapq
import itertools
from collections.abc import Iterator
from math import inf
from typing import Any

import numpy as np

from distsgd.algorithm import Cycle, Pull, Push, Start, Step, before_step, verb
from distsgd.errors import ConfigError
from distsgd.order.fleet import Fleet
from distsgd.trace import DROP, PULL, PUSH, ROW, Trace

MOST_STEPS = 500


def worker_of(cycle: Cycle, durations: np.ndarray) -> Iterator[Any]:
    """Yield the messages due between two steps, a push and the pull behind it together."""
    place = [type(one) for one in cycle].index(Step)
    front = [one for one in cycle[:place] if not isinstance(one, Start)]
    now = yield None
    for step, duration in enumerate(durations):
        behind = cycle[place + 1 :] if step > 0 else ()
        due = [type(one) for one in (*behind, *front) if step % one.every == 0]
        for messages in [due] if due == [Push, Pull] else [[one] for one in due]:
            now = yield messages, now, step
        now = now + duration


class Simulation:
    """The machines: who sends, who waits, what was served."""

    def __init__(self, cycle: Cycle, fleet: Fleet, seed: int, seconds: tuple[float, float]) -> None:
        self.cycle, self.fleet = cycle, fleet
        self.pull_s, self.push_s = seconds
        n = range(fleet.workers)
        speeds = fleet.speeds or [1.0 for _ in n]
        each = fleet.laws * fleet.workers if len(fleet.laws) == 1 else fleet.laws
        times = [each[w].sample(seed, worker=w, n=MOST_STEPS) / speeds[w] for w in n]
        self.workers = [worker_of(cycle, times[w]) for w in n]
        self.heap: list[Any] = []
        self.number = itertools.count()
        self.inbound = self.busy = self.outbound = 0.0
        self.version = 0
        self.rows: list[list[float]] = []
        self.pulls = [[(0, 0)] for _ in n]  # (step, version) of each pull
        self.pushed = [0 for _ in n]
        self.joins = [0 for _ in n]
        self.members: dict[int, int] = {}  # worker -> row of its push
        self.along: dict[int, tuple[float, int]] = {}  # worker -> the pull that came with its push
        self.waiting: dict[int, tuple[float, int]] = {}  # worker -> the pull that waits

    def start(self, workers: range, now: float) -> None:
        """Let workers begin."""
        for w in workers:
            next(self.workers[w])
            self.resume(w, now)

    def resume(self, w: int, now: float) -> None:
        """Let a worker go on until it sends."""
        kinds, sent, step = self.workers[w].send(now)
        entry = (sent + self.fleet.latency, w, next(self.number), kinds, sent, step)
        heapq.heappush(self.heap, entry)

    def receive(self, sent: float, link_s: float) -> float:
        """Pass a message over the link and through the server."""
        self.inbound = max(self.inbound, sent + self.fleet.latency) + link_s
        self.busy = max(self.busy, self.inbound) + self.fleet.service
        return self.busy

    def pull(self, w: int, sent: float, step: int) -> None:
        """Answer a pull, or let it wait."""
        bound = verb(self.cycle, Pull).bound
        if bound is not None and self.pushed[w] - min(self.pushed) > bound:
            self.waiting[w] = (sent, step)
            return
        time = self.receive(sent, 0.0)
        self.outbound = max(self.outbound, time) + self.pull_s
        done = self.outbound + self.fleet.latency
        self.rows.append([time, sent, done, w, PULL, step, self.version, self.version])
        self.pulls[w].append((step, self.version))
        self.joins[w] = self.version
        self.resume(w, done)

    def read(self, w: int) -> int:
        """Return the version that the oldest gradient of a push was read at."""
        last = inf if before_step(self.cycle, Push) else self.pushed[w]
        return [version for step, version in self.pulls[w] if step <= last][-1]

    def push(self, w: int, sent: float, step: int) -> dict[int, int]:
        """Serve a push; return the workers that it releases, and the rows of their pushes."""
        push = verb(self.cycle, Push)
        time = self.receive(sent, self.push_s)
        is_late = push.quorum is None and push.backup > 0 and self.joins[w] < self.version
        released = {w: len(self.rows)}
        if not is_late:
            self.members |= released
            closes = len(self.members) == push.quorum_of(self.fleet.workers)
            released, self.members = (self.members, {}) if closes else ({}, self.members)
            self.version += closes
        kind = DROP if is_late else PUSH
        self.rows.append([time, sent, sent, w, kind, step, self.version, self.read(w)])
        self.pushed[w] = step
        return released

    def release(self, w: int, row: int, *, told: float, is_over: bool) -> None:
        """Let a worker go on behind its push."""
        self.joins[w] = self.version
        if w not in self.along:
            self.rows[row][2] = told
            self.resume(w, told)
        elif not is_over:
            self.pull(w, *self.along.pop(w))

    def visit(self, updates: int) -> None:
        """Serve the messages that arrive next."""
        _, w, _, kinds, sent, step = heapq.heappop(self.heap)
        if kinds[0] is Pull:
            self.pull(w, sent, step)
            return
        if Pull in kinds:
            self.along[w] = (sent, step)
        version, slowest = self.version, min(self.pushed)
        released = self.push(w, sent, step)
        is_over = self.version >= updates
        # A round of one push holds no worker; only a dropped one is answered.
        is_held = verb(self.cycle, Push).quorum_of(self.fleet.workers) > 1
        is_late = self.rows[-1][4] == DROP
        told = self.busy + self.fleet.latency if is_held or is_late else sent
        for member in sorted(released):
            self.release(member, released[member], told=told, is_over=is_over)
        if version < verb(self.cycle, Start).others_after <= self.version:
            self.start(range(1, self.fleet.workers), self.busy)
        if min(self.pushed) > slowest and not is_over:
            for late in sorted(self.waiting):
                self.pull(late, *self.waiting.pop(late))


def simple_schedule(
    cycle: Cycle, fleet: Fleet, seed: int, updates: int, *, pull_bytes: float, push_bytes: float
) -> Trace:
    """Return what `schedule` should; raise StopIteration where a worker takes too many steps."""
    bandwidth = fleet.bandwidth * fleet.shards
    simulation = Simulation(cycle, fleet, seed, (pull_bytes / bandwidth, push_bytes / bandwidth))
    others_after = verb(cycle, Start).others_after
    simulation.start(range(1 if others_after > 0 else fleet.workers), 0.0)
    while simulation.version < updates:
        if not simulation.heap:
            msg = "no worker can go on"
            raise ConfigError(msg)
        simulation.visit(updates)
    rows = [tuple(row) for row in simulation.rows]
    return Trace(np.array(rows, ROW), fleet.workers)
