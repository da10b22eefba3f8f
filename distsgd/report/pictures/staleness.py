"""How stale updates were, in versions and in seconds, and what it did to the loss."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import altair as alt
import numpy as np
import numpy.typing as npt
import polars as pl

from distsgd.experiment.outcome import Outcome
from distsgd.report.numbers.groups import finished, grouped
from distsgd.report.numbers.summary import Result, Summary
from distsgd.report.pictures import charts
from distsgd.report.pictures.charts import Picture, Row, Subject, View
from distsgd.statistics.spreads import shares
from distsgd.trace import JOIN, PULL, PUSH, Trace

BINS = 40
"""Bins of a distribution, at most."""

Share: TypeAlias = Callable[[npt.NDArray[Any], Any], list[Row]]
"""From numbers, and the highest that the bins must hold, to a row per bin that holds any."""


def staleness_picture(subject: Subject) -> Picture | None:
    """Return how stale the server's updates were, None if none of them was.

    A strip per algorithm, all seeds together: the darker a cell, the larger its share of the
    updates.
    """
    traces = {name: [run.trace for run in runs] for name, runs in subject.runs.items()}
    versions = {name: np.concatenate([one.staleness for one in own]) for name, own in traces.items()}
    if not any(values.any() for values in versions.values()):
        return None
    ages = {name: np.concatenate([read_ages(one) for one in own]) for name, own in traces.items()}
    views = {
        "versions": strips(subject.algorithms, versions, share_of_versions, "staleness [versions]"),
        "seconds": strips(subject.algorithms, ages, _share_of_seconds, "staleness [s]"),
    }
    note = (
        "How old the parameters were behind each update of the server, from their pull on, all seeds together: "
        "the darker, the more updates; the bar is the mean."
    )
    return Picture("staleness", subject.case, "Staleness", note, views)


def read_ages(trace: Trace) -> npt.NDArray[np.float64]:
    """Return how long before each update its oldest gradient was read [s].

    Parameters
    ----------
    trace : Trace
        An order.

    Returns
    -------
    float64[updates]
        From the service of the pull to the update; from time 0 where a worker started without one.
    """
    rows = trace.rows
    number = pl.Series("row", np.arange(len(rows)))
    table = pl.from_numpy(rows).with_columns(number)
    pulls = table.filter(pl.col("verb").is_in([PULL, JOIN])).select("worker", "read", "row", pulled="time")
    pushes = table.filter(verb=PUSH).select("worker", "read", "row")
    # A worker may pull a version twice: the later pull is the one in force.
    matched = pushes.join_asof(pulls, on="row", by=["worker", "read"], check_sortedness=False)
    rounds = np.searchsorted(trace.closing, matched["row"].to_numpy())
    is_applied = rounds < trace.n_updates
    earliest = np.full(trace.n_updates, np.inf)
    pulled = matched["pulled"].fill_null(0.0).to_numpy()
    np.minimum.at(earliest, rounds[is_applied], pulled[is_applied])
    ages: npt.NDArray[np.float64] = trace.seconds - earliest
    return ages


def share_of_versions(staleness: npt.NDArray[np.int64], highest: int) -> list[Row]:
    """Return which share of some staleness falls into each bin of whole versions, as rows."""
    return [
        {
            "low": low - 0.5,
            "high": high - 0.5,
            "share": charts.short(share),
            "bin": str(low) if high == low + 1 else f"{low} to {high - 1}",
        }
        for low, high, share in zip(*shares(staleness, bins=BINS, highest=int(highest)), strict=True)
        if share > 0
    ]


def _share_of_seconds(ages: npt.NDArray[np.float64], highest: float) -> list[Row]:
    counts, edges = np.histogram(ages, BINS, (0.0, highest or 1.0))
    ends = [charts.short(edge) for edge in edges]
    return [
        {"low": low, "high": high, "share": charts.short(count / len(ages)), "bin": f"{low:g} to {high:g}"}
        for low, high, count in zip(ends, ends[1:], counts, strict=False)
        if count > 0
    ]


def strips(algorithms: Sequence[str], values: Mapping[str, npt.NDArray[Any]], share: Share, title: str) -> View:
    """Return a view of how the `values` of each algorithm are distributed, a strip for each."""
    known = {name: own for name, own in values.items() if len(own)}
    highest = max(own.max() for own in known.values())
    cells = [{"algorithm": name} | row for name, own in known.items() for row in share(own, highest)]
    means = [{"algorithm": name, "mean": charts.short(float(own.mean()))} for name, own in known.items()]
    vertical = charts.per_algorithm(algorithms, values)
    axis = alt.Axis(tickMinStep=1) if title.endswith("[versions]") else alt.Axis()
    ends = [min(cell["low"] for cell in cells), max(cell["high"] for cell in cells)]
    strip = (
        charts.drawn("cells")
        .mark_rect()
        .encode(
            x=alt.X("low:Q", title=title, axis=axis, scale=alt.Scale(domain=ends, nice=False)),
            x2=alt.X2("high:Q"),
            y=vertical,
            color=charts.colour(algorithms),
            opacity=alt.Opacity("share:Q", legend=None, scale=alt.Scale(type="sqrt", domain=[0, 1])),
            tooltip=[*charts.told(words=["bin"]), alt.Tooltip("share:Q", format=".1%")],
        )
    )
    tick = charts.drawn("means").mark_tick(thickness=2, bandSize=18)
    mean = tick.encode(x=alt.X("mean:Q"), y=vertical, tooltip=charts.told("mean"))
    return charts.view({"cells": cells, "means": means}, strip, mean, height=24 * len(values))


def loss_against_staleness_picture(summary: Summary, outcomes: Sequence[Outcome]) -> Picture | None:
    """Return the final loss against staleness, None if all fleets are equally stale.

    A line per algorithm over the fleets, by its own mean staleness there. An algorithm that reads
    nothing stale is drawn on the freshest fleet only: others do not affect it so.
    """
    levels = stalenesses(summary)
    own = [
        one
        for one in summary.results
        if one.loss is not None and np.isfinite(one.loss.median) and (one.fleet, one.algorithm) in levels
    ]
    groups = grouped(own, lambda one: (one.problem, one.engine != "simulate"))
    rows = {
        place: [_point(one, levels[one.fleet, one.algorithm]) for one in several] for place, several in groups.items()
    }
    if all(len({row["staleness"] for row in several}) < 2 for several in rows.values()):
        return None
    note = (
        "Median over seeds at the end of each run, and its band, at the mean staleness that the algorithm itself had"
        " on a fleet. What read nothing stale is drawn at 0 alone, as it ran on the freshest fleet. What leaves"
        " through the top has a loss above that of the start."
    )
    views = {
        problem + ", live" * is_live: _lines(list(summary.algorithms), several, _start(outcomes, problem))
        for (problem, is_live), several in rows.items()
    }
    return Picture("loss-against-staleness", None, "Final loss against staleness", note, views)


def stalenesses(summary: Summary) -> dict[tuple[str, str], float]:
    """Return the mean staleness of each algorithm on each fleet [versions].

    Where an algorithm read nothing stale although others did, the pair is left out.
    """
    own: dict[tuple[str, str], float] = {}
    for result in summary.results:
        if result.staleness is not None:
            place = result.fleet, result.algorithm
            own[place] = max(own.get(place, 0.0), charts.short(result.staleness.mean))
    highest = {fleet: max(level for (name, _), level in own.items() if name == fleet) for fleet, _ in own}
    freshest = min(highest.values(), default=0.0)
    return {place: own[place] for place in own if own[place] or highest[place[0]] == freshest}


def _point(result: Result, level: float) -> Row:
    low, median, high = map(charts.short, result.loss or (np.nan,) * 3)
    labels = {"algorithm": result.algorithm, "fleet": result.fleet, "staleness": level}
    return labels | {"low": low, "median": median, "high": high}


def _start(outcomes: Sequence[Outcome], problem: str) -> float:
    """Return the largest loss that a run of `problem` started with."""
    starts = [float(run.history["loss"][0]) for one, run in finished(outcomes) if one.problem == problem]
    return max(starts, default=1.0)


def _lines(algorithms: Sequence[str], rows: list[Row], start: float) -> View:
    low = min(row["low"] for row in rows)
    high = min(start, max(row["high"] for row in rows))
    ends = (low / 1.1, high * 1.1) if low > 0 else (low, high)
    scale = charts.scaled(*ends, nice=False)
    # A band without an end leaves through the top.
    points = [row | {"top": min(row["high"], 2 * ends[1])} for row in rows]
    across = alt.Scale(type="symlog", nice=False, padding=12)
    base = charts.drawn("points").encode(
        x=alt.X("staleness:Q", title="mean staleness [versions]", scale=across), color=charts.colour(algorithms)
    )
    line = base.mark_line(strokeWidth=2, clip=True).encode(
        y=alt.Y("median:Q", title="final training loss", scale=scale), strokeDash=charts.dashes(algorithms)
    )
    bar = base.mark_rule(opacity=0.5, clip=True).encode(y=alt.Y("low:Q", scale=scale), y2=alt.Y2("top:Q"))
    dot = base.mark_circle(size=60, opacity=1, clip=True).encode(
        y=alt.Y("median:Q", scale=scale), tooltip=charts.told("staleness", "median", "low", "high", words=["fleet"])
    )
    return charts.view({"points": points}, line, bar, dot, height=320)
