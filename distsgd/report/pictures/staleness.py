"""How stale updates were, in versions and in seconds, and what it did to the loss."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import numpy.typing as npt
import polars as pl

from distsgd.report.numbers.summary import Outcome, Result, Summary
from distsgd.report.pictures.charts import (
    Case,
    Picture,
    Row,
    View,
    by_algorithm,
    colour,
    dashes,
    drawn,
    per_algorithm,
    short,
    told,
    view,
)
from distsgd.statistics.spreads import shares
from distsgd.trace import JOIN, PULL, PUSH, Trace

BINS = 40
"""Bins of a distribution, at most."""


def staleness_picture(summary: Summary, outcomes: Sequence[Outcome], case: Case) -> Picture | None:
    """Return how stale the server's updates were in `case`, None if none of them was.

    Parameters
    ----------
    summary : Summary
        The numbers of the comparison.
    outcomes : sequence of Outcome
        Its runs; the seeds are taken together.
    case : tuple of str
        Problem and fleet.

    Returns
    -------
    Picture or None
        A strip per algorithm: the darker a cell, the larger its share of the updates.
    """
    traces = {name: [run.trace for run in runs] for name, runs in by_algorithm(outcomes, case).items()}
    versions = {name: _joined([one.staleness for one in own]) for name, own in traces.items()}
    if not any(values.any() for values in versions.values()):
        return None
    ages = {name: _joined([read_ages(one) for one in own]) for name, own in traces.items()}
    algorithms = list(summary.algorithms)
    views = {
        "versions": _strips(algorithms, versions, _whole(versions), "staleness [versions]"),
        "seconds": _strips(algorithms, ages, _divided(ages), "staleness [s]"),
    }
    note = (
        "How old the parameters were behind each update of the server, from their pull on, all "
        "seeds together: the darker, the more updates; the bar is the mean."
    )
    return Picture("staleness", case, "Staleness", note, views)


def _joined(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.concatenate(parts)


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


def _whole(values: Mapping[str, npt.NDArray[np.int64]]) -> list[Row]:
    highest = max(int(own.max()) for own in values.values() if len(own))
    return [
        _cell(name, low - 0.5, high - 0.5, share) | {"bin": str(low) if high == low + 1 else f"{low} to {high - 1}"}
        for name, own in values.items()
        for low, high, share in zip(*shares(own, bins=BINS, highest=highest), strict=True)
        if share > 0
    ]


def _divided(values: Mapping[str, npt.NDArray[np.float64]]) -> list[Row]:
    highest = max(float(own.max()) for own in values.values() if len(own))
    edges = np.linspace(0.0, highest or 1.0, BINS + 1)
    return [
        _cell(name, low, high, count / max(1, len(own))) | {"bin": f"{short(low):g} to {short(high):g}"}
        for name, own in values.items()
        for low, high, count in zip(edges, edges[1:], np.histogram(own, edges)[0], strict=False)
        if count > 0
    ]


def _cell(algorithm: str, low: float, high: float, share: float) -> Row:
    return {"algorithm": algorithm, "low": short(low), "high": short(high), "share": short(share)}


def _strips(algorithms: Sequence[str], values: Mapping[str, npt.NDArray[Any]], cells: list[Row], title: str) -> View:
    means = [{"algorithm": name, "mean": short(float(own.mean()))} for name, own in values.items() if len(own)]
    vertical = per_algorithm(algorithms, values)
    opacity = alt.Opacity("share:Q", legend=None, scale=alt.Scale(type="sqrt", domain=[0, 1]))
    axis = alt.Axis(tickMinStep=1) if title.endswith("[versions]") else alt.Axis()
    ends = [min(cell["low"] for cell in cells), max(cell["high"] for cell in cells)]
    horizontal = alt.X("low:Q", title=title, axis=axis, scale=alt.Scale(domain=ends, nice=False))
    strip = (
        drawn("cells")
        .mark_rect()
        .encode(
            x=horizontal,
            x2=alt.X2("high:Q"),
            y=vertical,
            color=colour(algorithms),
            opacity=opacity,
            tooltip=[*told(), alt.Tooltip("bin:N"), alt.Tooltip("share:Q", format=".1%")],
        )
    )
    mean = (
        drawn("means").mark_tick(thickness=2, bandSize=18).encode(x=alt.X("mean:Q"), y=vertical, tooltip=told("mean"))
    )
    return view({"cells": cells, "means": means}, strip, mean, height=24 * len(values))


def suffering_picture(summary: Summary, outcomes: Sequence[Outcome]) -> Picture | None:
    """Return the final loss against staleness, None if all fleets are equally stale.

    Parameters
    ----------
    summary : Summary
        The numbers of the comparison.
    outcomes : sequence of Outcome
        Its runs, which know the loss at their start.

    Returns
    -------
    Picture or None
        A line per algorithm over the fleets, by its own mean staleness there. An algorithm that
        reads nothing stale is drawn on the freshest fleet only: others do not affect it so.
    """
    levels = stalenesses(summary)
    rows: dict[tuple[str, bool], list[Row]] = {}
    for result in summary.results:
        has_loss = result.loss is not None and np.isfinite(result.loss.median)
        if has_loss and (result.fleet, result.algorithm) in levels:
            same = rows.setdefault((result.problem, result.engine != "simulate"), [])
            same.append(_point(result, levels[result.fleet, result.algorithm]))
    if all(len({row["staleness"] for row in own}) < 2 for own in rows.values()):
        return None
    note = (
        "Median over seeds at the end of each run, and its band, at the mean staleness that the "
        "algorithm itself had on a fleet. What read nothing stale is drawn at 0 alone, as it ran "
        "on the freshest fleet. What leaves through the top has a loss above that of the start."
    )
    algorithms = list(summary.algorithms)
    views = {
        problem + ", live" * is_live: _lines(algorithms, own, _start(outcomes, problem))
        for (problem, is_live), own in rows.items()
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
            own[place] = max(own.get(place, 0.0), short(result.staleness.mean))
    highest = {fleet: max(level for (name, _), level in own.items() if name == fleet) for fleet, _ in own}
    freshest = min(highest.values(), default=0.0)
    return {place: own[place] for place in own if own[place] or highest[place[0]] == freshest}


def _point(result: Result, level: float) -> Row:
    low, median, high = result.loss or (np.nan,) * 3
    return {
        "algorithm": result.algorithm,
        "fleet": result.fleet,
        "staleness": level,
        "low": short(low),
        "median": short(median),
        "high": short(high),
    }


def _start(outcomes: Sequence[Outcome], problem: str) -> float:
    """Return the largest loss that a run of `problem` started with."""
    runs = [one.run for one in outcomes if one.run is not None and one.problem == problem]
    return max((float(run.history["loss"][0]) for run in runs), default=1.0)


def _lines(algorithms: Sequence[str], rows: list[Row], start: float) -> View:
    low = min(row["low"] for row in rows)
    high = min(start, max(row["high"] for row in rows))
    ends = [low / 1.1, high * 1.1] if low > 0 else [low, high]
    scale = alt.Scale(type="log" if low > 0 else "linear", domain=ends, nice=False)
    for row in rows:
        # A band without an end leaves through the top.
        row["top"] = min(row["high"], 2 * ends[1])
    base = drawn("points").encode(
        x=alt.X(
            "staleness:Q", title="mean staleness [versions]", scale=alt.Scale(type="symlog", nice=False, padding=12)
        ),
        color=colour(algorithms),
    )
    line = base.mark_line(strokeWidth=2, clip=True).encode(
        y=alt.Y("median:Q", title="final training loss", scale=scale), strokeDash=dashes(algorithms)
    )
    bar = base.mark_rule(opacity=0.5, clip=True).encode(y=alt.Y("low:Q", scale=scale), y2=alt.Y2("top:Q"))
    dot = base.mark_circle(size=60, opacity=1, clip=True).encode(
        y=alt.Y("median:Q", scale=scale), tooltip=[*told("staleness", "median", "low", "high"), alt.Tooltip("fleet:N")]
    )
    return view({"points": rows}, line, bar, dot, height=320)
