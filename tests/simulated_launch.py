"""A live engine without processes: it simulates, and says that its seconds are of the wall."""

from dataclasses import replace
from typing import Any

import polars as pl

import distsgd as ds
from distsgd.fold.request import NO_HOOKS, Hooks, Progress, RunRequest
from distsgd.fold.simulate import simulated
from distsgd.live.options import LiveFleet, LiveRequest
from distsgd.run import Run
from distsgd.trace import Trace

TENTH_MS = ds.exponential(1e-4)


def made_without_processes(request: RunRequest[Any], hooks: Hooks = NO_HOOKS) -> Run:
    """Make a run, a live one by `launched`."""
    return launched(request, hooks) if isinstance(request.fleet, LiveFleet) else simulated(request, hooks)


def launched(request: LiveRequest, hooks: Hooks = NO_HOOKS) -> Run:
    """Simulate on a fleet of fast machines, and call its time wall time."""
    staleness, workers = request.fleet.staleness, request.fleet.workers
    if hooks.watch is not None:
        hooks.watch(Progress(1, 1, 0.1, 0.5, 1.5, workers, 0))
    fleet = ds.stale_reads(staleness) if isinstance(staleness, ds.Law) else ds.Fleet(workers, TENTH_MS)
    run = simulated(RunRequest(request.algorithm, request.problem, fleet, request.config, request.seed), hooks)
    live = replace(run, history=_on_the_wall(run.history), settings=request.settings)
    return _without_order(live) if request.fleet.kind == "shared_memory" else live


def _without_order(run: Run) -> Run:
    """No server serves shared memory: there is no order, and no message that has a size."""
    unknown = pl.lit(float("nan")).alias("bytes")
    trace = Trace(run.trace.rows[:0], run.trace.workers)
    return replace(run, history=run.history.with_columns(unknown), trace=trace)


def _on_the_wall(history: pl.DataFrame) -> pl.DataFrame:
    wall = pl.col("seconds").alias("wall_seconds"), pl.lit(float("nan")).alias("seconds")
    return history.with_columns(wall)
