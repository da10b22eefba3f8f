"""The training loss on its way down: a line and a band per algorithm."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import altair as alt
import numpy as np
import numpy.typing as npt

from distsgd.report.numbers.summary import Outcome, Summary
from distsgd.report.pictures.charts import (
    UNITS,
    Case,
    Picture,
    Row,
    Unit,
    View,
    by_algorithm,
    colour,
    dashes,
    drawn,
    logarithmic,
    marks,
    measured,
    short,
    target_of,
    told,
    units_on,
    view,
)
from distsgd.run import Run
from distsgd.statistics.spreads import Band, Curve, band

COLUMNS = 200
"""Columns of a screen into which a curve is thinned."""

_HEADROOM = 1.15


def loss_picture(summary: Summary, outcomes: Sequence[Outcome], case: Case) -> Picture:
    """Return the training loss in `case` against seconds, updates, epochs and bytes.

    Parameters
    ----------
    summary : Summary
        The numbers of the comparison.
    outcomes : sequence of Outcome
        Its runs.
    case : tuple of str
        Problem and fleet.

    Returns
    -------
    Picture
        A view per unit in which any run has moved at all.
    """
    runs = by_algorithm(outcomes, case)
    algorithms, target = list(summary.algorithms), target_of(summary, case)
    views = {
        name: _view(curves, unit, algorithms, target)
        for name, unit in units_on(summary.engine_on(case[1])).items()
        if _has_moved(curves := _curves(runs, unit))
    }
    note = (
        f"{summary.band[0].upper()}{summary.band[1:]}. Axes are logarithmic; a line holds its "
        "value until the next evaluation; what leaves through the top has a loss above that of "
        "the start."
    )
    return Picture("loss", case, "Training loss", note, views)


def both_losses_picture(summary: Summary, outcomes: Sequence[Outcome], case: Case) -> Picture | None:
    """Return the losses of live and of simulated runs on the axes that they share.

    Parameters
    ----------
    summary : Summary
        The numbers of the comparison.
    outcomes : sequence of Outcome
        Its runs.
    case : tuple of str
        Problem and live fleet.

    Returns
    -------
    Picture or None
        A view for updates and one for epochs; None if the fleet was not simulated too. Virtual and
        wall seconds are not on one axis.
    """
    problem, fleet = case
    if fleet not in summary.simulated_of:
        return None
    simulated = by_algorithm(outcomes, (problem, summary.simulated_of[fleet]))
    live = by_algorithm(outcomes, case)
    common = [name for name in live if name in simulated]
    runs = {of: {name: own[name] for name in common} for of, own in (("simulated", simulated), ("live", live))}
    views = {
        name: _both({of: _curves(own, UNITS[name]) for of, own in runs.items()}, UNITS[name], list(summary.algorithms))
        for name in ("updates", "epochs")
        if common
    }
    note = (
        "Medians over seeds: the thin lines are live, the wide faint ones simulated. Only axes "
        "that both share: a virtual second is no wall second."
    )
    return Picture("both-losses", case, "Training loss, live on simulated", note, views)


def _both(curves: Mapping[str, Mapping[str, Sequence[Curve]]], unit: Unit, algorithms: Sequence[str]) -> View:
    bands = {
        (of, name): thinned(_after_start(band(own))) for of, several in curves.items() for name, own in several.items()
    }
    low, high = _limits(curve for several in curves.values() for own in several.values() for curve in own)
    rows = [row | {"of": of} for (of, name), own in bands.items() for row in _rows(name, own, 2 * high)]
    kind: Literal["log", "linear"] = "log" if low > 0 else "linear"
    scale = alt.Scale(type=kind, domain=[low, high], nice=False)
    legend = alt.Legend(title=None, orient="top", symbolType="stroke", symbolStrokeColor="gray")
    line = (
        drawn("medians")
        .mark_line(clip=True, interpolate="step-after")
        .encode(
            x=logarithmic("position", unit.title, _ends(bands.values())),
            color=colour(algorithms),
            y=alt.Y("median:Q", title="training loss", scale=scale),
            strokeWidth=alt.StrokeWidth("of:O", sort=list(curves), scale=alt.Scale(range=[6, 1.5]), legend=legend),
            opacity=alt.Opacity("of:O", sort=list(curves), scale=alt.Scale(range=[0.35, 1.0]), legend=None),
            tooltip=[*told("position", "median"), alt.Tooltip("of:N")],
        )
    )
    return view({"medians": rows}, line, height=340)


def _curves(runs: Mapping[str, Sequence[Run]], unit: Unit) -> dict[str, list[Curve]]:
    known = measured(runs, unit)
    return {name: [_loss_curve(run, unit.column) for run in own] for name, own in known.items()}


def _loss_curve(run: Run, against: str) -> Curve:
    positions, losses = (run.history[name].to_numpy().astype(np.float64) for name in (against, "loss"))
    return Curve(positions, losses, is_diverged=run.status == "diverged")


def _has_moved(curves: Mapping[str, Sequence[Curve]]) -> bool:
    return any(curve.positions[-1] > 0 for several in curves.values() for curve in several)


def _view(curves: Mapping[str, Sequence[Curve]], unit: Unit, algorithms: Sequence[str], target: float | None) -> View:
    bands = {name: thinned(_after_start(band(own))) for name, own in curves.items()}
    low, high = _limits(curve for several in curves.values() for curve in several)
    rows = [row for name, own in bands.items() for row in _rows(name, own, ceiling=2 * high)]
    kind: Literal["log", "linear"] = "log" if low > 0 else "linear"
    scale = alt.Scale(type=kind, domain=[low, high], nice=False)
    base = drawn("bands").encode(x=logarithmic("position", unit.title, _ends(bands.values())), color=colour(algorithms))
    area = base.mark_area(opacity=0.16, clip=True, interpolate="step-after").encode(
        y=alt.Y("low:Q", title="training loss", scale=scale), y2=alt.Y2("high:Q")
    )
    line = base.mark_line(strokeWidth=2, clip=True, interpolate="step-after").encode(
        y=alt.Y("median:Q", title="training loss", scale=scale),
        strokeDash=dashes(algorithms),
        tooltip=told("position", "median", "low", "high"),
    )
    # The line that a run has to cross, if there is one.
    goal = marks("target").mark_rule(strokeDash=[1, 4], clip=True)
    rule = goal.encode(y=alt.Y("target:Q", scale=scale), color=alt.ColorValue("gray"))
    tables = {"bands": rows, "target": [] if target is None else [{"target": target}]}
    return view(tables, area, line, rule, height=340)


def _after_start(own: Band) -> Band:
    """Return the band without what a logarithmic axis cannot show."""
    kept = (own.positions > 0) & np.isfinite(own.median)
    return Band(*(values[kept] for values in own))


def thinned(own: Band, columns: int = COLUMNS) -> Band:
    """Return the points of a band that can be seen on a logarithmic axis of so many columns.

    Within each column the first and the last point stay, and the lowest and the highest of each
    line: what a column covers does not change.

    Parameters
    ----------
    own : Band
        At positions > 0.
    columns : int, default 200
        Equal columns between the first position and the last.

    Returns
    -------
    Band
        At most 8 points per column.

    References
    ----------
    Jugel et al., "M4: A Visualization-Oriented Time Series Data Aggregation", VLDB 2014.
    """
    along = np.log(own.positions)
    if len(along) <= columns:
        return own
    width = max(float(along[-1] - along[0]), np.finfo(float).tiny)
    column = np.minimum((columns * (along - along[0]) / width).astype(np.int64), columns - 1)
    kept = [_ends_of(column, values) for values in own]
    chosen = np.unique(np.concatenate(kept))
    return Band(*(values[chosen] for values in own))


def _ends_of(column: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return where each column has its lowest and its highest value."""
    order = np.lexsort((values, column))
    firsts = np.flatnonzero(np.diff(column[order], prepend=-1))
    lasts = np.append(firsts[1:], len(order)) - 1
    return np.concatenate([order[firsts], order[lasts]])


def _ends(bands: Iterable[Band]) -> list[float]:
    reached = np.concatenate([np.empty(0), *(own.positions for own in bands)])
    return [float(reached.min()), float(reached.max())] if len(reached) else [1.0, 2.0]


def _limits(curves: Iterable[Curve]) -> tuple[float, float]:
    finite = [curve.values[np.isfinite(curve.values)] for curve in curves]
    known = [values for values in finite if len(values)]
    lowest = min((float(values.min()) for values in known), default=0.0)
    start = max((float(values[0]) for values in known), default=1.0)
    span = start - lowest
    return (lowest / _HEADROOM, start * _HEADROOM) if lowest > 0 else (lowest, start + 0.1 * span)


def _rows(algorithm: str, own: Band, ceiling: float) -> list[Row]:
    return [
        {
            "algorithm": algorithm,
            "position": short(position),
            "median": short(median),
            "low": short(low),
            "high": short(min(high, max(ceiling, median))),
        }
        for position, low, median, high in zip(*own, strict=True)
        if math.isfinite(low)
    ]
