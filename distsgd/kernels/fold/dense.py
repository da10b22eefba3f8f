"""The rows of a plan, folded in compiled code: kernels for each way to hold what workers know.

`shared`: a worker remembers nothing but the version that it pulled, and shares it with workers that
pulled it too. `private`: a worker has a state of its own. Both look ahead: `points` writes where
the gradients of a wave are needed, `steps` takes the steps, `serve` folds the rows.

Kernels are built around the loops that are generated for an algorithm (`rules`). Their plan is
trusted: a slot, a worker or a number is an index without question.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.algorithm import At
from distsgd.kernels import specialised
from distsgd.kernels.fold.rules import Halves, Loop, loops
from distsgd.trace import PULL, PUSH


class Order(NamedTuple):
    """What is known before the numbers."""

    rows: NDArray[np.void]
    """`distsgd.fold.plan.PLAN` rows."""
    workers: int
    factors: NDArray[np.float64]
    """The schedule's factor for a worker at each of its steps."""


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
def stepping(row, level, order):
    """Return what a worker knows before a step; `level` counts the steps since its last row."""
    n_taken = row.step - row.steps + level
    return At(row.read, 0, order.workers, n_taken, order.factors[n_taken])


@specialised
def receiving(row, order):
    """Return what a worker knows when its pull returns."""
    return At(row.version, 0, order.workers, row.step, order.factors[row.step])


@specialised
def sending(row, order):
    """Return what a worker knows when it sends."""
    return At(row.read, 0, order.workers, row.step, order.factors[row.step])


@specialised
def applying(row, order):
    """Return what the server knows when it applies a round."""
    return At(row.version, row.staleness, order.workers, row.step, row.factor)


@functools.cache
def shared(halves: Halves) -> Kernels:
    """Return the kernels for workers that remember nothing but the version that they pulled."""
    loop = loops(halves).by_name
    keep, point = loop["keep"], loop["point_shared"]
    message, apply_mean = loop["message_shared"], loop["apply_mean"]

    def points(held, order, chosen, level, out):
        for n in range(chosen.size):
            row, slot = order.rows[chosen[n]], held.slot[chosen[n]]
            point(held.h, held.versions, slot, stepping(row, level, order), out[n])

    def steps(held, order, chosen, level, gradients):
        pass  # a step is taken when its message is needed, so that it takes no memory before

    def serve(held, order, start, stop, gradients):
        for r in range(start, stop):
            row, slot = order.rows[r], held.slot[r]
            if row.verb == PULL:
                if held.fills[r]:
                    keep(held.server, held.versions, slot)
            elif row.verb == PUSH:
                at, sent, g = (stepping(row, 0, order), sending(row, order), gradients[held.number[r]])
                message(held.h, held.versions, slot, at, sent, g, row.first, held.round)
                if row.members > 0:
                    at = applying(row, order)
                    apply_mean(held.h, held.server, held.round, row.members, at)

    return Kernels(specialised(points), specialised(steps), specialised(serve))


@functools.cache
def private(halves: Halves) -> Kernels:
    """Return the kernels for workers with a state of their own."""
    loop = loops(halves).by_name
    receive, point = loop["receive_private"], loop["point_private"]
    step, message = loop["step_private"], loop["message_private"]
    apply_mean = loop["apply_mean"]

    def points(held, order, chosen, level, out):
        for n in range(chosen.size):
            row = order.rows[chosen[n]]
            point(held.h, held.replicas, row.worker, stepping(row, level, order), out[n])

    def steps(held, order, chosen, level, gradients):
        for n in range(chosen.size):
            row = order.rows[chosen[n]]
            step(held.h, held.replicas, row.worker, stepping(row, level, order), gradients[n])

    def serve(held, order, start, stop, gradients):
        for r in range(start, stop):
            row = order.rows[r]
            if row.verb == PULL:
                at = receiving(row, order)
                receive(held.h, held.server, held.replicas, row.worker, at)
            else:  # the worker does not know that its push will be dropped
                at, is_first = sending(row, order), row.verb != PUSH or row.first
                message(held.h, held.replicas, row.worker, at, is_first, held.round)
                if row.members > 0:
                    at = applying(row, order)
                    apply_mean(held.h, held.server, held.round, row.members, at)

    return Kernels(specialised(points), specialised(steps), specialised(serve))
