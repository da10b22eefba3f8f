"""Fold: an algorithm's rules applied to a problem's gradients, in the order of a trace.

    run = fold(algorithm, problem, trace)

What a worker computes depends on (seed, worker, step) and on what it pulled. So the numbers are a
function of the order in which the server served its workers, and of nothing else. The order of a
schedule gives a simulation, a recorded one gives the live run again, bit for bit.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distsgd.algorithm import Algorithm, check_algorithm, is_memoryless
from distsgd.data.partition import SHARED, Partition
from distsgd.data.stream import Stream
from distsgd.errors import ConfigError, check_name
from distsgd.fold.drivers.case import Driver, FoldCase
from distsgd.fold.drivers.compiled import Dense, OnSupport, is_compiled
from distsgd.fold.drivers.interleaved import Interleaved
from distsgd.fold.drivers.interpreted import Interpreted
from distsgd.fold.drivers.plan import Plan, plan
from distsgd.fold.drivers.recorded import Recorded
from distsgd.fold.layers import LayerRates, layer_factors, with_factors
from distsgd.fold.request import ReadsName
from distsgd.kernels import NotCompilable
from distsgd.problem import Problem, Vector
from distsgd.sparse import Support
from distsgd.trace import Trace

DriverName: TypeAlias = Literal["auto", "interpreted", "compiled"]

INTERPRETED, CALL = 2**28, 2_000
"""Coordinates that rules are called on, up to which a trace is interpreted: to compile the loops of
an algorithm takes longer, unless that has been done. A call takes as long as so many more."""


class State(NamedTuple):
    """Where a fold has come to."""

    update: int
    """Updates applied."""
    x: Vector
    """The server's parameters, float[d]."""
    counts: Mapping[str, int] = MappingProxyType({})
    """What an engine counts on the way; interleaved reads count `interleave.Counts`."""


def fold(
    algorithm: Algorithm,
    problem: Problem,
    trace: Trace,
    *,
    stops: NDArray[np.int64],
    batch: int = 32,
    seed: int = 0,
    partition: Partition = SHARED,
    reads: ReadsName = "consistent",
    atomic: bool = True,
    layer_rates: LayerRates | None = None,
    driver: DriverName = "auto",
) -> Iterator[State]:
    """Apply the rules of `algorithm` along `trace`, and yield the parameters after some updates.

    These `stops`, int64[n], ascend to at most ``trace.n_updates``. The `seed` is that of the
    samples, of their division and of the starting point. Where `reads` are interleaved, a pull is
    no snapshot and a push is not applied whole: both go coordinate by coordinate between those of
    others (`distsgd.fold.drivers.interleaved`), and some changes are lost unless they are `atomic`.
    Layers may have rates of their own. All drivers have the same bits; orders in which workers
    leave or join, or pulls are stale, are interpreted.

    It is a `ConfigError` if a rule breaks the contract, the problem's slope cannot be compiled, the
    samples cannot be divided, or driver or reads are unknown or do not suit the trace.
    """
    check_algorithm(algorithm)
    algorithm, factors = with_factors(algorithm, layer_factors(problem, layer_rates))
    data = problem.data if partition.is_divided else None
    parts = partition.divide(data, trace.workers, seed)
    stream = Stream(problem.samples, batch, seed, parts=parts, sampler=partition.sampler)
    planned = plan(algorithm, trace, epochs_per_step=batch / problem.samples)
    case = FoldCase(algorithm, problem, planned, stream, problem.start(seed), trace.workers, factors)
    check_driver(driver, reads)
    if reads == "interleaved":
        if case.layer_factors is not None:
            raise ConfigError("interleaved reads know one learning rate for all layers; give each the same factor")
        _check_plain(planned, "reads='consistent'")
        folding: Driver | Interleaved = Interleaved(case, trace, is_atomic=atomic)
    else:
        check_name("driver", driver, _DRIVERS)
        folding = _DRIVERS[driver](case)
    for update in stops.tolist():
        # a run that diverges overflows, which is a result and no warning
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"), _compiling(problem.name):
            folding.advance(int(planned.ends[update - 1]) if update else 0)
        counts = folding.counts._asdict() if isinstance(folding, Interleaved) else {}
        yield State(update, folding.x, counts)


def check_driver(driver: str, reads: ReadsName) -> None:
    """Raise a `ConfigError` if these reads have no such driver."""
    if reads == "interleaved" and driver == "interpreted":
        raise ConfigError("interleaved reads are compiled; use driver='auto', not 'interpreted'")


@contextmanager
def _compiling(problem: str) -> Iterator[None]:
    try:
        yield
    except NotCompilable as error:
        raise ConfigError(
            f"the slope of {problem} must be plain scalar Python that numba compiles; rewrite it, "
            "or let the problem have no support"
        ) from error


def on_support(algorithm: Algorithm, problem: Problem) -> Support | None:
    """Return the supports that messages carry instead of whole vectors, or None."""
    return problem.support if algorithm.sparse and is_memoryless(algorithm) else None


def _check_plain(planned: Plan, instead: str) -> None:
    if not planned.is_plain:
        raise ConfigError(
            f"a trace with workers that left or joined, or with pulls of older versions, is interpreted; use {instead}"
        )


def _interpreted(case: FoldCase) -> Driver:
    return Interpreted(case) if case.plan.is_plain else Recorded(case)


def _compiled(case: FoldCase) -> Driver:
    _check_plain(case.plan, "driver='auto'")
    support = on_support(case.algorithm, case.problem) if case.layer_factors is None else None
    return Dense(case) if support is None else OnSupport(case, support)


def _fastest(case: FoldCase) -> Driver:
    if not case.plan.is_plain:
        return _interpreted(case)
    if on_support(case.algorithm, case.problem) is not None:
        return _compiled(case)
    is_long = case.plan.rows.size * (CALL + case.start.size) > INTERPRETED
    return _compiled(case) if is_long or is_compiled(case) else _interpreted(case)


_DRIVERS: dict[str, Callable[[FoldCase], Driver]] = {
    "auto": _fastest,
    "interpreted": _interpreted,
    "compiled": _compiled,
}
