"""A stretch of a run: what each worker, the queue and the server did when, a lane for each."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import numpy.typing as npt
import polars as pl

from distsgd.report.numbers.engines import Clock, clock_of, engine_of
from distsgd.report.pictures import charts
from distsgd.report.pictures.charts import Picture, Row, Subject, View
from distsgd.report.timeline import KINDS, delays, spans
from distsgd.run import Run
from distsgd.trace import VERBS, Trace

LANES = 12
"""Workers shown, at most."""
MESSAGES = 8
"""Served messages per worker shown, on average."""

QUEUE, SERVER = "queue", "server"


def timeline_picture(subject: Subject) -> Picture | None:
    """Return what workers and server did in the middle of a run: the first one of an algorithm.

    Two algorithms are shown: the one whose workers computed most of the time, and the one whose
    workers waited most. None where the fleet has no machines, or fewer than two of them.
    """
    several = {name: own[0] for name, own in subject.runs.items() if _has_machines(own[0])}
    if not several:
        return None
    busy = {name: float(np.nanmean(run.trace.utilisation)) for name, run in several.items()}
    chosen = dict.fromkeys((min(busy, key=busy.__getitem__), max(busy, key=busy.__getitem__)))
    shares = "; ".join(f"{name} computes {busy[name]:.0%} of the time" for name in chosen)
    note = (
        "The middle of one run of the algorithm whose workers wait most, and of the one whose workers compute most. "
        f"{shares}."
    )
    views = {name: lanes(several[name]) for name in chosen}
    return Picture("timeline", subject.case, "Workers and server at work", note, views)


def _has_machines(run: Run) -> bool:
    n_seen = len(np.unique(run.trace.rows["worker"]))
    is_described = run.settings["fleet"].get("kind") == "fleet"
    return n_seen > 1 and (is_described or engine_of(run) != "simulate")


def lanes(run: Run) -> View:
    """Return a view of the middle of `run`: a lane per worker, the queue, and the server.

    It is as long as it takes the workers that are shown to send `MESSAGES` each, on average.
    """
    around, window = _middle(run.trace)
    begin, end = float(window["time"][0]), float(window["time"][-1])
    workers = np.unique(window["worker"])[:LANES].tolist()
    is_shown = pl.col("kind").is_in([QUEUE, "apply"]) | (
        pl.col("kind").is_in(["compute", "waiting"]) & pl.col("worker").is_in(workers)
    )
    found = spans(around, delays(run)).filter(is_shown, pl.col("end") >= begin, pl.col("start") <= end)
    rows: list[Row] = [
        {
            "lane": _lane(kind, worker),
            "kind": kind,
            "worker": worker,
            "start": charts.short(max(start, begin) - begin),
            "end": charts.short(min(stop, end) - begin),
            "what": VERBS[around.rows["verb"][row]] if kind == "apply" else kind,
        }
        for kind, worker, row, start, stop in found.iter_rows()
    ]
    names = [*(f"worker {worker}" for worker in workers), QUEUE, SERVER]
    layers = _layers(names, charts.short(end - begin), clock_of(engine_of(run)))
    return charts.view({"spans": rows}, *layers, height=22 * len(names))


def _middle(trace: Trace) -> tuple[Trace, npt.NDArray[np.void]]:
    """Return the rows of the stretch that is shown, and with those around that reach into it."""
    wanted = MESSAGES * min(LANES, trace.workers)
    first = max(0, (len(trace.rows) - wanted) // 2)
    last = first + wanted
    # Two messages per step, and a worker may be a step ahead of what it sends.
    reach = 4 * trace.workers
    around = trace.rows[max(0, first - reach) : last + reach]
    return Trace(around, trace.workers), trace.rows[first:last]


def _lane(kind: str, worker: int) -> str:
    return {QUEUE: QUEUE, "apply": SERVER}.get(kind, f"worker {worker}")


def _layers(names: Sequence[str], end: float, clock: Clock) -> list[alt.Chart]:
    scale = alt.Scale(domain=[0, end], nice=False)
    lane_scale = alt.Scale(domain=list(names), paddingInner=0.3)
    legend = alt.Legend(orient="top", title=None, values=list(KINDS[:4]), symbolOpacity=1)
    shared: dict[str, Any] = {
        "y": alt.Y("lane:N", sort=list(names), scale=lane_scale, title=None),
        "color": alt.Color("kind:N", scale=alt.Scale(domain=list(KINDS)), legend=legend),
        "tooltip": [
            alt.Tooltip("what:N"),
            alt.Tooltip("worker:Q"),
            *(alt.Tooltip(f"{name}:Q", format=".4~g") for name in ("start", "end")),
        ],
    }
    waits = {"test": "datum.kind == 'waiting'", "value": 0.35}
    faint = alt.OpacityValue(0.95, condition=waits)
    bars = charts.marks("spans").mark_rect(clip=True)
    # What takes no time at the server has no width: a tick shows that it was there.
    served = charts.marks("spans").transform_filter("datum.kind == 'apply'").mark_tick(clip=True)
    return [
        bars.encode(
            x=alt.X("start:Q", title=f"{clock} time [s]", scale=scale), x2=alt.X2("end:Q"), opacity=faint, **shared
        ),
        served.encode(x=alt.X("end:Q", scale=scale), **shared),
    ]
