"""Hogwild!: processes that share one block of parameters, without locks and without a server.

1. In an epoch every sample is visited once, in a fresh order. Each worker gets a contiguous chunk
   of it. All wait for the last one; then the step size backs off.
2. The order is not the paper's permutation of single samples: blocks of samples are permuted, and a
   block is visited in the order of storage (`distsgd.kernels.lock_free.steps.EpochOrder`).
3. A worker reads the support of its batch and changes it, coordinate by coordinate, while others do
   so too. How a coordinate is changed is the caller's choice: `distsgd.launch`, `writes`.
4. The objective is evaluated between epochs, outside of the clock.
5. A worker that is killed is replaced: another process goes on from the count that it last told,
   which it does after every block, or every exchange of gathered changes, so that as many steps may
   be taken twice.
6. The paper's gradient is taken at what was read. Here the term of `l2`, which lets a coordinate
   shrink, is taken at the number that is there when the coordinate is changed, unless a batch has
   several samples: so a sample needs no copy of what was read.

One worker has the bits of a serial loop over the same order, and gathers nothing. Several have no
order at all. Where they gather (`distsgd.kernels.lock_free.gather`), exchanges are racy too: two at
the same instant may lose a worker's changes of a coordinate since its last exchange.

References
----------
Niu, Recht, Re and Wright, "Hogwild!: A Lock-Free Approach to Parallelizing Stochastic Gradient
Descent", NIPS 2011: Algorithm 1; of its comparators RR is "round_robin" and AIG "locked".
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from distsgd.algorithm import Contract
from distsgd.data.partition import SHARED
from distsgd.errors import ConfigError
from distsgd.fold.drivers.interleaved import needs_no_server
from distsgd.fold.layers import norm_names, with_factors
from distsgd.fold.request import EVALUATIONS, Hooks
from distsgd.live.lock_free.workers import Epoch, LockFreeJob, LockFreeOutcome, Point, is_gathered, keep
from distsgd.live.machine.forking import check_memory, follow, launcher
from distsgd.live.options import LiveFleet, LiveRequest
from distsgd.run import HISTORY, Run
from distsgd.sparse import Support
from distsgd.status import Status
from distsgd.trace import ROW, Trace

BLOCK = 64
"""Samples that are visited in the order of storage. Processors fetch ahead in storage, so that some
tens of samples cost a third to a quarter of as many at random places."""
_FEWEST_BLOCKS = 1024
"""Blocks of an epoch, so that the order is random enough: smaller data have smaller blocks."""
_MEANINGLESS = ("staleness", "delay", "shards", "on_loss", "address")
"""Arguments of `launch` that only a run with a server has."""


def launch_lock_free(request: LiveRequest, hooks: Hooks, *, block: int | None = None) -> Run:
    """Run a lock-free algorithm on memory that processes of this machine share.

    `block` samples, >= 1, are visited in the order of storage; 1 is the paper's permutation. The
    run's trace is empty; its ``counts`` have the updates and the workers lost. A run that is none
    for shared memory, or needs too much of it, is a `ConfigError`; a worker that has failed, or
    workers that are lost again and again, a `WorkerLost`.
    """
    support = check_lock_free(request)
    job = LockFreeJob(request, epochs_of(request), block or block_of(request.problem.samples))
    check_memory(
        needed_bytes(request, support),
        f"{request.algorithm.name} on {request.problem.name}",
        "use fewer samples or features, or another machine",
    )
    with launcher(keep, job) as pipe:
        outcome: LockFreeOutcome = follow(pipe, hooks.stop, hooks.watch)
    return _run(request, outcome)


def check_lock_free(request: LiveRequest) -> Support:
    """Return the supports that workers touch, or raise a `ConfigError` that says what to use."""
    algorithm, problem = request.algorithm, request.problem
    usual = LiveFleet("shared_memory", request.fleet.workers)
    given = [name for name in _MEANINGLESS if getattr(request.fleet, name) != getattr(usual, name)]
    given += ["partition"] * (request.config.partition != SHARED)
    batch = request.config.batch
    if given:
        msg = (
            f"{given[0]} has no meaning for {algorithm.name} on shared memory, where there is "
            f"no server and each epoch gives every sample to one worker; leave it out"
        )
    elif request.config.budget.unit == "seconds":
        msg = f"{algorithm.name} on shared memory ends with an epoch; give epochs, not seconds"
    elif not needs_no_server(algorithm):
        msg = (
            f"lock-free workers read, step and write again and again, leave alone what has no "
            f"gradient, and never wait; use hogwild, not {algorithm.name}"
        )
    elif problem.support is None:
        msg = (
            f"lock-free workers need sparse data, but every gradient of {problem.name} touches all "
            f"parameters; use a linear problem on sparse data, or downpour"
        )
    elif request.fleet.workers > steps_of(request):
        msg = (
            f"workers must be <= {steps_of(request)}, the batches of {batch} in "
            f"{problem.samples} samples, not {request.fleet.workers}"
        )
    elif request.fleet.writes == "gathered" and batch > 1:
        msg = f"writes='gathered' has a meaning for batches of 1 only, not {batch}; use 'racy'"
    elif with_factors(algorithm, request.layer_factors)[1] is not None:
        msg = f"lock-free workers know one learning rate for all layers of {problem.name}; give each the same factor"
    else:
        return problem.support
    raise ConfigError(msg)


def steps_of(request: LiveRequest) -> int:
    """Return the steps of all workers in an epoch; the last batch may be a smaller one."""
    return math.ceil(request.problem.samples / request.config.batch)


def block_of(samples: int) -> int:
    """Return the samples of a block where the caller says nothing else."""
    return min(max(samples // _FEWEST_BLOCKS, 1), BLOCK)


def epochs_of(request: LiveRequest) -> list[Epoch]:
    """Return the epochs of the budget, of which the last one may be cut short.

    Whatever the caller asks for, the objective is evaluated at ends of epochs: at the first one
    behind each wanted point, and at the last.
    """
    n_updates, steps = _updates(request), steps_of(request)
    ends = np.append(np.arange(steps, n_updates, steps), n_updates)
    evaluated = set(np.searchsorted(ends, _wanted(request, n_updates)).tolist()) | {ends.size - 1}
    starts = np.append(0, ends[:-1])
    return [
        Epoch(number, int(end - start), int(start), is_evaluated=number in evaluated)
        for number, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def _updates(request: LiveRequest) -> int:
    budget = request.config.budget
    if budget.unit != "epochs":
        return int(budget.amount)
    rest, whole = math.modf(budget.amount)
    return int(whole) * steps_of(request) + math.ceil(rest * request.problem.samples / request.config.batch)


def _wanted(request: LiveRequest, n_updates: int) -> NDArray[np.float64]:
    if request.config.evaluate_every is not None:
        return np.arange(request.config.evaluate_every, n_updates + 1, request.config.evaluate_every, dtype=float)
    return np.linspace(0, n_updates, (request.config.evaluations or EVALUATIONS) + 1)[1:]


def needed_bytes(request: LiveRequest, support: Support) -> float:
    """Return the memory of a run [bytes]: columns, locks and the samples, once for all workers.

    Gathered writes have the samples a second time, with the popular coordinates in front.
    """
    n_columns = len(Contract.of(request.algorithm).state._fields)
    arrays = (*support.rows[:3], support.labels, support.shrink)
    samples = sum(array.nbytes for array in arrays) * (2.0 if is_gathered(request) else 1.0)
    return 8.0 * request.problem.dimension * (n_columns + 1) + samples


def _run(request: LiveRequest, outcome: LockFreeOutcome) -> Run:
    points = outcome.points
    return Run(
        x=outcome.x,
        history=_history(request, points),
        trace=Trace(np.empty(0, ROW), request.fleet.workers),
        status=cast("Status", outcome.status),
        diverged_at=points[-1].update if outcome.status == "diverged" else None,
        settings=request.settings,
        counts={"updates": points[-1].update, "lost_workers": outcome.lost},
    )


def _history(request: LiveRequest, points: Sequence[Point]) -> pl.DataFrame:
    layers = norm_names(request.problem) if request.config.layer_norms else []
    rows = [_row(request, point) | dict(zip(layers, point.norms, strict=True)) for point in points]
    return pl.DataFrame(rows, schema=HISTORY | dict.fromkeys(layers, pl.Float64))


def _row(request: LiveRequest, point: Point) -> dict[str, Any]:
    """Return a row of the history; whatever has no meaning here is NaN: there are no messages."""
    whole, rest = divmod(point.update, steps_of(request))
    return dict.fromkeys(HISTORY, math.nan) | {
        "update": point.update,
        "gradients": point.update,
        "epoch": whole + min(1.0, rest * request.config.batch / request.problem.samples),
        "wall_seconds": point.wall_seconds,
        **point.evaluation._asdict(),
    }
