"""The training loss on its way down: a line and a band per algorithm."""

import math
from collections.abc import Iterable, Mapping, Sequence

import altair as alt
import numpy as np
import numpy.typing as npt

from distsgd.report.pictures import charts
from distsgd.report.pictures.charts import Picture, Row, Subject, Unit, View
from distsgd.run import Run
from distsgd.statistics.spreads import Band, Curve, band

COLUMNS = 200
"""Columns of a screen into which a curve is thinned."""

_HEADROOM = 1.15


def loss_picture(subject: Subject) -> Picture:
    """Return the training loss against seconds, updates, epochs and bytes: a view for each."""
    views = {name: _view(subject, unit, loss_curves(runs, unit)) for name, unit, runs in subject.by_unit()}
    spread = subject.summary.band
    note = (
        f"{spread[0].upper()}{spread[1:]}. Axes are logarithmic; a line holds its value until the next evaluation; "
        "what leaves through the top has a loss above that of the start."
    )
    return Picture("loss", subject.case, "Training loss", note, views)


def loss_curves(runs: Mapping[str, Sequence[Run]], unit: Unit) -> dict[str, list[Curve]]:
    """Return the training losses of the runs of each algorithm against a unit."""
    return {name: [_curve(run, unit.column) for run in own] for name, own in runs.items()}


def _curve(run: Run, against: str) -> Curve:
    positions, losses = (run.history[name].to_numpy().astype(np.float64) for name in (against, "loss"))
    return Curve(positions, losses, is_diverged=run.status == "diverged")


def _view(subject: Subject, unit: Unit, curves: Mapping[str, Sequence[Curve]]) -> View:
    bands = bands_of(curves)
    scale, top = loss_scale(curve for several in curves.values() for curve in several)
    base = charts.drawn("bands").encode(x=along(unit, bands.values()), color=charts.colour(subject.algorithms))
    area = base.mark_area(opacity=0.16, clip=True, interpolate="step-after").encode(
        y=alt.Y("low:Q", title="training loss", scale=scale), y2=alt.Y2("high:Q")
    )
    line = base.mark_line(strokeWidth=2, clip=True, interpolate="step-after").encode(
        y=alt.Y("median:Q", title="training loss", scale=scale),
        strokeDash=charts.dashes(subject.algorithms),
        tooltip=charts.told("position", "median", "low", "high"),
    )
    # The line that a run has to cross, if there is one.
    goal = charts.marks("target").mark_rule(strokeDash=[1, 4], clip=True)
    rule = goal.encode(y=alt.Y("target:Q", scale=scale), color=charts.GRAY)
    target = [] if subject.target is None else [{"target": subject.target}]
    return charts.view({"bands": rows_of(bands, top), "target": target}, area, line, rule, height=340)


def bands_of(curves: Mapping[str, Sequence[Curve]]) -> dict[str, Band]:
    """Return the band of each algorithm, where a logarithmic axis can show it."""
    return {name: thinned(_after_start(band(own))) for name, own in curves.items()}


def _after_start(own: Band) -> Band:
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


def along(unit: Unit, bands: Iterable[Band]) -> alt.X:
    """Return the horizontal axis of some bands."""
    positions = np.concatenate([np.empty(0), *(own.positions for own in bands)])
    ends = [float(positions.min()), float(positions.max())] if len(positions) else [1.0, 2.0]
    return charts.logarithmic("position", unit.title, ends)


def loss_scale(curves: Iterable[Curve]) -> tuple[alt.Scale, float]:
    """Return a scale from the lowest loss to that of the start, and what is far above it."""
    known = [values for curve in curves if len(values := curve.values[np.isfinite(curve.values)])]
    low = min((float(values.min()) for values in known), default=0.0)
    start = max((float(values[0]) for values in known), default=1.0)
    ends = (low / _HEADROOM, start * _HEADROOM) if low > 0 else (low, start + 0.1 * (start - low))
    return charts.scaled(*ends, nice=False), 2 * ends[1]


def rows_of(bands: Mapping[str, Band], top: float) -> list[Row]:
    """Return the points of some bands; one that has no upper end leaves through the `top`."""
    return [
        {
            "algorithm": name,
            "position": charts.short(position),
            "median": charts.short(median),
            "low": charts.short(low),
            "high": charts.short(min(high, max(top, median))),
        }
        for name, own in bands.items()
        for position, low, median, high in zip(*own, strict=True)
        if math.isfinite(low)
    ]
