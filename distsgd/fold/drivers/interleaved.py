"""Interleaved reads: Hogwild! as its paper means it, coordinate by coordinate in virtual time.

1. A fleet's workers are virtual cores that share one memory. A step begins when its pull has
   returned and ends when its push is sent; what the network and the server add is waiting.
2. A core reads the support of its batch, one coordinate after the other, evenly over the first half
   of the step, and changes it evenly over the second half. Other cores do so in between. So a
   gradient is taken where no version ever was, and a change is seen before its step has ended.
3. A change loads a coordinate, applies the server's rule and stores the result. If it is atomic,
   no other core comes between. If not, what others store meanwhile is overwritten: lost.
4. Accesses at the same instant follow the workers' numbers.
5. A step whose push lies behind the end of the trace changes nothing.

Accesses that do not overlap give the bits of the plain fold.

References
----------
Niu, Recht, Re and Wright, "Hogwild!: A Lock-Free Approach to Parallelizing Stochastic Gradient
Descent", NIPS 2011, Algorithm 1, which assumes that changes are atomic.
"""

from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.algorithm import Algorithm, Pull, Push, before_step, is_memoryless, verb
from distsgd.errors import ConfigError
from distsgd.fold.drivers.case import FoldCase
from distsgd.fold.drivers.compiled import server_columns
from distsgd.kernels.fold import interleave as kernels
from distsgd.kernels.fold.rules import RuleSet, columns, empty_columns
from distsgd.kernels.fold.sparse import workspace
from distsgd.kernels.gradients.linear import compiled_support
from distsgd.kernels.order.heap import ENTRY
from distsgd.problem import Problem
from distsgd.sparse import Support
from distsgd.trace import PUSH, Trace


class Counts(NamedTuple):
    """Changes of single coordinates until some time."""

    writes: int
    """Changes that were stored."""
    lost: int
    """Those of them that are in no coordinate's value: others have overwritten them."""


class Interleaved:
    """Folds the steps of a trace access by access."""

    def __init__(self, case: FoldCase, trace: Trace, *, is_atomic: bool) -> None:
        support = check_interleavable(case.algorithm, case.problem)
        space, sampling = workspace(case.workers, support.rows, case.stream.batch_size), case.stream.sampling
        self._memory = _memory(case, space.most)
        self._progress = kernels.progress(case.workers, case.start.size, np.zeros(case.workers, ENTRY))
        steps = steps_of(trace, len(case.plan.rows))
        kernels.start(case.plan, steps, support.rows, space, sampling, self._progress, is_atomic)
        self._known = case.plan, steps, compiled_support(support), space, sampling, self._progress, is_atomic
        self._run = kernels.interleaved_kernel(RuleSet.of(case.algorithm))
        self._times = trace.rows["time"]

    @property
    def x(self) -> NDArray[np.float64]:
        """The shared parameters, float64[d]: a copy."""
        return np.array(self._memory.server.x)

    @property
    def counts(self) -> Counts:
        """What has been written, and lost."""
        writes = int(self._progress.n_stores[0])
        # Rule 3: what a coordinate's value does not contain was overwritten.
        return Counts(writes, writes - int(self._progress.kept.sum()))

    def advance(self, stop: int) -> None:
        """Have all accesses up to the time of the row in front of `stop`."""
        # A row's time, and not its place: accesses have times of their own, and no rows.
        until = float(self._times[stop - 1]) if stop else -inf
        self._run(self._memory, *self._known, until)


def needs_no_server(algorithm: Algorithm) -> bool:
    """Return whether workers can share memory: they never wait, and touch a batch's support only.

    They wait for others in rounds and under a bound. What they remember would be whole vectors.
    """
    pull, push = verb(algorithm.cycle, Pull), verb(algorithm.cycle, Push)
    is_alone = before_step(algorithm.cycle, Pull) and pull.bound is None and push.quorum == 1
    return is_alone and algorithm.sparse and is_memoryless(algorithm)


def check_interleavable(algorithm: Algorithm, problem: Problem) -> Support:
    """Return the supports that cores touch, or raise a `ConfigError` that says what to use."""
    if not needs_no_server(algorithm):
        raise ConfigError(
            f"interleaved reads need workers that read, step and write again and again, and never "
            f"wait; use hogwild, or downpour with n_fetch = n_push = 1, not {algorithm.name}"
        )
    if problem.support is None:
        raise ConfigError(
            f"interleaved reads need sparse data, but every gradient of {problem.name} touches all "
            f"parameters; use a linear problem on sparse data, or reads='consistent'"
        )
    return problem.support


def steps_of(trace: Trace, n_rows: int) -> kernels.Steps:
    """Return the steps whose pushes are among the first `n_rows` rows; a worker's alternate."""
    rows = trace.rows[:n_rows]
    # Rule 5: a push behind these rows ends no step. Each has its pull in the row before it.
    order = np.argsort(rows["worker"], kind="stable")
    pushes = np.flatnonzero(rows["verb"][order] == PUSH)
    pull, push = order[pushes - 1], order[pushes]
    first = np.searchsorted(rows["worker"][push], np.arange(trace.workers + 1))
    # Rule 1: between a pull's return and the push that is sent its worker computes.
    start, end = rows["done"][pull].copy(), rows["sent"][push].copy()
    return kernels.Steps(pull, push, start, end, first)


def _memory(case: FoldCase, most: int) -> kernels.InterleavedMemory:
    kinds = columns(RuleSet.of(case.algorithm))
    return kernels.InterleavedMemory(
        h=kinds.hyper(*case.hyper),
        server=server_columns(case, kinds),
        loaded=empty_columns(kinds.state, case.workers),
        read=empty_columns(kinds.reads, (case.workers, most)),
        messages=empty_columns(kinds.message, (case.workers, most)),
        point=np.empty(most),
        gradient=np.empty(most),
    )
