"""A launcher without processes: it simulates, and says that its seconds are of the wall."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import polars as pl

import distsgd as ds
from distsgd.algorithm import Algorithm
from distsgd.data.partition import SHARED
from distsgd.fold.simulate import run_settings, simulate
from distsgd.live.options import OnLoss, Writes, fleet_settings
from distsgd.live.request import Progress
from distsgd.problem import Problem
from distsgd.run import Run
from distsgd.trace import Trace

TENTH_MS = ds.exponential(1e-4)


def launch(
    algorithm: Algorithm,
    problem: Problem,
    *,
    workers: int,
    on: str,
    seed: int,
    batch: int,
    evaluations: int,
    partition: ds.Partition = SHARED,
    target: float | None = None,
    staleness: int | ds.Law | None = None,
    delay: ds.Law | Sequence[ds.Law] | None = None,
    shards: int = 1,
    on_loss: OnLoss = "replace",
    heartbeat: float = 1.0,
    checkpoint_every: float = 5.0,
    writes: Writes | None = None,
    stop: Callable[[], bool] = lambda: False,
    watch: Callable[[Progress], None] | None = None,
    **budget: float,
) -> Run:
    """Simulate on a fleet of fast machines, and call its time wall time."""
    assert min(heartbeat, checkpoint_every) > 0
    if watch is not None:
        watch(Progress(1, 1, 0.1, 0.5, 1.5, workers, 0))
    is_law = isinstance(staleness, ds.Law)
    fleet = ds.stale_reads(staleness) if is_law else ds.Fleet(workers, TENTH_MS)
    given = {"batch": batch, "evaluations": evaluations, "partition": partition, "seed": seed, "target": target}
    run = simulate(algorithm, problem, fleet, stop=stop, **given, **budget)
    own = fleet_settings(
        "shared_memory" if algorithm.lock_free else on,
        workers,
        shards=shards,
        staleness=staleness,
        delay=delay,
        on_loss=on_loss,
        writes=writes,
    )
    known = run_settings(algorithm, problem, ds.Fleet(1), budget, **given) | {"fleet": own}
    live = replace(run, history=_on_the_wall(run.history), settings=known)
    return _without_order(live) if algorithm.lock_free else live


def _without_order(run: Run) -> Run:
    """Nobody serves shared memory: there is no order, and no message that has a size."""
    unknown = pl.lit(float("nan")).alias("bytes")
    trace = Trace(run.trace.rows[:0], run.trace.workers)
    return replace(run, history=run.history.with_columns(unknown), trace=trace)


def _on_the_wall(history: pl.DataFrame) -> pl.DataFrame:
    wall = pl.col("seconds").alias("wall_seconds"), pl.lit(float("nan")).alias("seconds")
    return history.with_columns(wall)
