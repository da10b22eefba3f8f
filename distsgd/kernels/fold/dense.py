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
    server: Any
    """float64[d] per column."""
    versions: Any
    """What workers have pulled: float64[slots, d] per column."""
    round: Any
    """Sum of the messages of the open round: float64[d] per column."""
    slot: NDArray[np.int32]
    """Slot of the version that a row's worker pulls or holds, int32[n]."""
    fills: NDArray[np.bool_]
    """Whether a row is the first to pull its version, bool[n]."""
    number: NDArray[np.int64]
    """Place of a row's gradient among those of its wave, int64[n]."""


class Private(NamedTuple):
    """The numbers of a fold whose workers have states of their own."""

    h: Any
    server: Any
    """float64[d] per column."""
    replicas: Any
    """The workers' states: float64[workers, d] per column."""
    round: Any
    """Sum of the messages of the open round: float64[d] per column."""


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
    read = received(names, "V.{}[slot, i]")
    return f"""
def keep(S, V, slot):
    for i in range(S.x.size):
        {stores(names.reads, "V.{0}[slot, i] = S.{0}[i]")}

def point(h, V, slot, at, out):
    for i in range(out.size):
        out[i] = position(h, {read}, at)

def message(h, V, slot, at, sent, g, first, M):
    for i in range(g.size):
        w, m = send(h, step(h, {read}, g[i], at), sent)
        {stores(names.message, "M.{0}[i] = m.{0} if first else M.{0}[i] + m.{0}")}
"""


def private_source(names: Names) -> str:
    """Return the loops of workers with a state of their own."""
    state = f"Replica({values(names.replica, 'W.{}[slot, i]')})"
    store = stores(names.replica, "W.{0}[slot, i] = w.{0}")
    return f"""
def pull(h, S, W, slot, at):
    for i in range(S.x.size):
        w = receive(h, {state}, {values(names.reads, "S.{}[i]")}, at)
        {store}

def point(h, W, slot, at, out):
    for i in range(out.size):
        out[i] = position(h, {state}, at)

def take_step(h, W, slot, at, g):
    for i in range(g.size):
        w = step(h, {state}, g[i], at)
        {store}

def message(h, W, slot, at, first, M):
    for i in range(M[0].size):
        w, m = send(h, {state}, at)
        {store}
        {stores(names.message, "M.{0}[i] = m.{0} if first else M.{0}[i] + m.{0}")}
"""


def server_source(names: Names) -> str:
    """Return the loops that apply the mean of a round's messages, or the message of a single one.

    A mean of one has the bits of the message; not dividing halves the time of a large one.
    """
    return f"""
def apply_one(h, S, M, at):
    for i in range(S.x.size):
        {applied(names, "M.{}[i]")}

def apply_mean(h, S, M, members, at):
    for i in range(S.x.size):
        {applied(names, "M.{}[i] / members")}
"""


@functools.cache
def shared_kernels(rules: RuleSet) -> Kernels:
    """Return the kernels for workers that remember nothing but the version that they pulled."""
    keep, point, message = loops(rules, shared_source).values()
    apply_mean = loops(rules, server_source)["apply_mean"]

    def points(held, plan, chosen, level, out):
        for n in range(chosen.size):
            row, slot = plan.rows[chosen[n]], held.slot[chosen[n]]
            point(held.h, held.versions, slot, stepping(row, level, plan), out[n])

    def steps(held, plan, chosen, level, gradients):
        pass  # a step is taken when its message is needed, so that it takes no memory before

    def serve(held, plan, start, stop, gradients):
        for r in range(start, stop):
            row, slot = plan.rows[r], held.slot[r]
            if row.verb == PULL:
                # Others may have pulled this version before (`plan.share_versions`).
                if held.fills[r]:
                    keep(held.server, held.versions, slot)
            elif row.verb == PUSH:
                at, sent, g = stepping(row, 0, plan), sending(row, plan), gradients[held.number[r]]
                message(held.h, held.versions, slot, at, sent, g, row.first, held.round)
                if row.members > 0:
                    at = applying(row, plan)
                    apply_mean(held.h, held.server, held.round, row.members, at)

    return Kernels(specialised(points), specialised(steps), specialised(serve))


@functools.cache
def private_kernels(rules: RuleSet) -> Kernels:
    """Return the kernels for workers with a state of their own."""
    receive, point, step, message = loops(rules, private_source).values()
    apply_mean = loops(rules, server_source)["apply_mean"]

    def points(held, plan, chosen, level, out):
        for n in range(chosen.size):
            row = plan.rows[chosen[n]]
            point(held.h, held.replicas, row.worker, stepping(row, level, plan), out[n])

    def steps(held, plan, chosen, level, gradients):
        for n in range(chosen.size):
            row = plan.rows[chosen[n]]
            step(held.h, held.replicas, row.worker, stepping(row, level, plan), gradients[n])

    def serve(held, plan, start, stop, gradients):
        for r in range(start, stop):
            row = plan.rows[r]
            if row.verb == PULL:
                at = receiving(row, plan)
                receive(held.h, held.server, held.replicas, row.worker, at)
            else:
                # A worker does not know that its push will be dropped: its state changes as if it
                # were not. By rule 4 no round is open at a `DROP`, so its message spoils no sum.
                at, is_first = sending(row, plan), row.verb != PUSH or row.first
                message(held.h, held.replicas, row.worker, at, is_first, held.round)
                if row.members > 0:
                    at = applying(row, plan)
                    apply_mean(held.h, held.server, held.round, row.members, at)

    return Kernels(specialised(points), specialised(steps), specialised(serve))
