"""The rows of a plan, folded in compiled code: kernels for each way to hold what workers know.

1. `shared_kernels`: a worker remembers nothing but the version that it pulled, and shares it with
   workers that pulled it too. `private_kernels`: a worker has a state of its own.
2. Both look ahead: `points` writes where the gradients of a wave are needed, `steps` takes the
   steps, `serve` folds the rows. Nothing that a wave's points depend on changes within the wave.
3. The plan is trusted: a slot, a worker or a number is an index without question.
4. The pushes of a round stand one behind the other in a plan, so one sum is enough, and between
   two rounds it may hold anything.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.algorithm import At
from distsgd.kernels import specialised
from distsgd.kernels.fold.rules import Loop, Names, RuleSet, applied, loops, received, stores, values
from distsgd.trace import PULL, PUSH


class Shared(NamedTuple):
    """The numbers of a fold whose workers share the versions that they pulled."""

    h: Any
    factors: NDArray[np.float64] | None
    """Factor of each coordinate's layer on the learning rate, float64[d], None if all are 1."""
    server: Any
    """Its versions: float[slots, d] per column that pulls return, float[1, d] per other column."""
    round: Any
    """Sum of the messages of the open round: float[d] per column."""
    slot: NDArray[np.int32]
    """Slot of the version that a row's worker holds, int32[n]."""
    place: NDArray[np.int32]
    """Slot of each version, int32[updates + 1]."""
    number: NDArray[np.int64]
    """Place of a row's gradient among those of its wave, int64[n]."""


class Private(NamedTuple):
    """The numbers of a fold whose workers have states of their own."""

    h: Any
    factors: NDArray[np.float64] | None
    """Factor of each coordinate's layer on the learning rate, float64[d], None if all are 1."""
    server: Any
    """float[d] per column."""
    replicas: Any
    """The workers' states: float[workers, d] per column."""
    round: Any
    """Sum of the messages of the open round: float[d] per column."""


class Kernels(NamedTuple):
    """What a driver calls for a wave: its points, the steps along its gradients, its rows."""

    points: Loop
    steps: Loop
    serve: Loop


@specialised
def stepping(row, level, plan):
    """Return what a worker knows before a step; `level` counts the steps since its last row."""
    n_taken = row.step - row.steps + level  # `row.step` counts those that are still to be taken
    return At(row.read, 0, plan.workers, n_taken, plan.worker_factors[n_taken])


@specialised
def receiving(row, plan):
    """Return what a worker knows when its pull returns."""
    return At(row.version, 0, plan.workers, row.step, plan.worker_factors[row.step])


@specialised
def sending(row, plan):
    """Return what a worker knows when it sends."""
    return At(row.read, 0, plan.workers, row.step, plan.worker_factors[row.step])


@specialised
def sending_next(row, plan):
    """Return what a worker knows when it sends, one step behind the pull `row`."""
    return At(row.version, 0, plan.workers, row.step + 1, plan.worker_factors[row.step + 1])


@specialised
def applying(row, plan):
    """Return what the server knows when it applies a round."""
    return At(row.version, row.staleness, plan.workers, row.step, row.factor)


def shared_source(names: Names) -> str:
    """Return the loops of workers that remember nothing but the version that they pulled."""
    read = received(names, "S.{}[slot, i]")
    sent = f"send(h, step(h, {read}, g[i], at), within(sending, factors, i))"
    return f"""
def point(h, S, slot, stepping, factors, out):
    for i in range(out.size):
        at = within(stepping, factors, i)
        out[i] = position(h, {read}, at)

def message(h, S, slot, stepping, sending, factors, g, first, M):
    for i in range(g.size):
        at = within(stepping, factors, i)
        w, m = {sent}
        {stores(names.message, "M.{0}[i] = m.{0} if first else M.{0}[i] + m.{0}")}

def push(h, S, slot, stepping, sending, before, after, applying, factors, g):
    for i in range(g.size):
        at = within(stepping, factors, i)
        w, m = {sent}
        at = within(applying, factors, i)
        {_next_version(names, "m")}

def close(h, S, before, after, M, members, applying, factors):
    for i in range(M[0].size):
        at = within(applying, factors, i)
        {_next_version(names, f"Message({values(names.message, 'M.{}[i] / members')})")}
"""


def _next_version(names: Names, message: str) -> str:
    """Return statements that apply a message to the version `before`, and store the one `after`."""
    places = {name: "{}" if name in names.reads else "0" for name in names.state}
    state = ", ".join(f"S.{name}[{place.format('before')}, i]" for name, place in places.items())
    stored = "; ".join(f"S.{name}[{place.format('after')}, i] = s.{name}" for name, place in places.items())
    return f"s = apply(h, State({state}), {message}, at); {stored}"


def private_source(names: Names) -> str:
    """Return the loops of workers with a state of their own; what a rule leaves is not stored."""
    state = f"Replica({values(names.replica, 'W.{}[slot, i]')})"
    store = {rule: _stored(names, left) for rule, left in names.left._asdict().items()}
    return f"""
def pull(h, S, W, slot, receiving, factors):
    for i in range(S.x.size):
        at = within(receiving, factors, i)
        w = receive(h, {state}, {values(names.reads, "S.{}[i]")}, at)
        {store["receive"]}

def point(h, W, slot, stepping, factors, out):
    for i in range(out.size):
        at = within(stepping, factors, i)
        out[i] = position(h, {state}, at)

def take_step(h, W, slot, stepping, factors, g):
    for i in range(g.size):
        at = within(stepping, factors, i)
        w = step(h, {state}, g[i], at)
        {store["step"]}

def message(h, W, slot, sending, factors, first, M):
    for i in range(M[0].size):
        at = within(sending, factors, i)
        w, m = send(h, {state}, at)
        {store["send"]}
        {stores(names.message, "M.{0}[i] = m.{0} if first else M.{0}[i] + m.{0}")}
"""


def _stored(names: Names, left: frozenset[str]) -> str:
    """Return statements that store a worker's columns but those that are `left` as they were."""
    return stores([name for name in names.replica if name not in left], "W.{0}[slot, i] = w.{0}") or "pass"


def server_source(names: Names) -> str:
    """Return the loops that apply the mean of a round's messages, or the message of a single one.

    A mean of one has the bits of the message; not dividing halves the time of a large one.
    """
    return f"""
def apply_one(h, S, M, applying, factors):
    for i in range(S.x.size):
        at = within(applying, factors, i)
        {applied(names, "M.{}[i]")}

def apply_mean(h, S, M, members, applying, factors):
    for i in range(S.x.size):
        at = within(applying, factors, i)
        {applied(names, "M.{}[i] / members")}
"""


@functools.cache
def shared_kernels(rules: RuleSet) -> Kernels:
    """Return the kernels for workers that remember nothing but the version that they pulled."""
    point, message, push, close = loops(rules, shared_source).values()

    def points(held, plan, chosen, level, out):
        for n in range(chosen.size):
            row, slot = plan.rows[chosen[n]], held.slot[chosen[n]]
            point(held.h, held.server, slot, stepping(row, level, plan), held.factors, out[n])

    def steps(held, plan, chosen, level, gradients):
        pass  # a step is taken when its message is needed, so that it takes no memory before

    def serve(held, plan, start, stop, gradients):
        for r in range(start, stop):
            row = plan.rows[r]
            if row.verb == PUSH:  # a pull is a reference to a version, and needs nothing
                slot, g = held.slot[r], gradients[held.number[r]]
                at, sent = stepping(row, 0, plan), sending(row, plan)
                before, after = held.place[row.version], held.place[row.version + 1]
                if row.first and row.members == 1:  # its mean is itself: one pass for both rules
                    known = applying(row, plan)
                    push(held.h, held.server, slot, at, sent, before, after, known, held.factors, g)
                    continue
                message(held.h, held.server, slot, at, sent, held.factors, g, row.first, held.round)
                if row.members > 0:
                    known = applying(row, plan)
                    close(held.h, held.server, before, after, held.round, row.members, known, held.factors)

    return Kernels(specialised(points), specialised(steps), specialised(serve))


@functools.cache
def private_kernels(rules: RuleSet) -> Kernels:
    """Return the kernels for workers with a state of their own."""
    receive, point, step, message = loops(rules, private_source).values()
    apply_mean = loops(rules, server_source)["apply_mean"]

    def points(held, plan, chosen, level, out):
        for n in range(chosen.size):
            row = plan.rows[chosen[n]]
            point(held.h, held.replicas, row.worker, stepping(row, level, plan), held.factors, out[n])

    def steps(held, plan, chosen, level, gradients):
        for n in range(chosen.size):
            row = plan.rows[chosen[n]]
            at = stepping(row, level, plan)
            step(held.h, held.replicas, row.worker, at, held.factors, gradients[n])

    def serve(held, plan, start, stop, gradients):
        for r in range(start, stop):
            row = plan.rows[r]
            if row.verb == PULL:
                at = receiving(row, plan)
                receive(held.h, held.server, held.replicas, row.worker, at, held.factors)
            else:
                # A worker does not know that its push will be dropped: its state changes as if it
                # were not. By rule 4 no round is open at a `DROP`, so its message spoils no sum.
                at, is_first = sending(row, plan), row.verb != PUSH or row.first
                message(held.h, held.replicas, row.worker, at, held.factors, is_first, held.round)
                if row.members > 0:
                    known = applying(row, plan)
                    apply_mean(held.h, held.server, held.round, row.members, known, held.factors)

    return Kernels(specialised(points), specialised(steps), specialised(serve))
