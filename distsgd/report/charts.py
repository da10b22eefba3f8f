"""Charts of a comparison, as Vega-Lite through Altair: one definition for page, PNG, SVG and PDF.

An algorithm has one colour and one dash pattern, the same in every chart; neighbours in the list
differ in both, so that a chart can be read without seeing colours.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import altair as alt
import numpy as np

from distsgd.report.statistics import Band, Curve, band, shares
from distsgd.report.summary import Outcome, loss_curve
from distsgd.run import Run

Row: TypeAlias = dict[str, Any]
Chart: TypeAlias = Any
"""An altair.LayerChart; Altair's own types do not say so after `properties`."""

COLOURS = (
    "#5f6368", "#0072b2", "#e69f00", "#d55e00", "#cc79a7", "#009e73", "#56b4e9", "#882255",
    "#999933",
)  # fmt: skip
"""Okabe and Ito's palette on white, with a neutral grey first and two of Tol's colours behind."""
COLOURS_ON_DARK = (
    "#b4b8bd", "#4c9be8", "#f0b429", "#ff7f50", "#e79ac8", "#2fc79a", "#8fd3ff", "#d06a9c",
    "#c5c552",
)  # fmt: skip
"""The same hues, light enough to be read on black."""
DASHES = ((1, 0), (7, 3), (2, 2))

BINS = 40
"""Bins of a staleness distribution, at most."""

_HEADROOM = 1.15
_AXES = {
    "seconds": "virtual time [s]", "update": "server updates", "gradients": "gradients evaluated",
}  # fmt: skip


class Style(NamedTuple):
    """How an algorithm is drawn."""

    colour: str
    colour_on_dark: str
    dash: tuple[int, int]


def styles(algorithms: Sequence[str]) -> dict[str, Style]:
    """Return the style of each algorithm; colours repeat with another dash pattern."""
    return {
        name: Style(
            COLOURS[place % len(COLOURS)],
            COLOURS_ON_DARK[place % len(COLOURS)],
            DASHES[(place + place // len(COLOURS)) % len(DASHES)],
        )
        for place, name in enumerate(algorithms)
    }


def loss_chart(outcomes: Sequence[Outcome], algorithms: Sequence[str], against: str) -> Chart:
    """Return the training loss on one fleet: a median line and a band per algorithm.

    Parameters
    ----------
    outcomes : sequence of Outcome
        The finished runs on that fleet.
    algorithms : sequence of str
        Every algorithm of the comparison, in the order of its colours.
    against : {"seconds", "update", "gradients"}
        Column of the history on the horizontal axis.

    Returns
    -------
    altair.LayerChart
        Both axes are logarithmic, that of the loss if every loss is positive; so the start, at 0,
        is not shown. What leaves through the top has a loss above that of the start.
    """
    curves = _curves(outcomes, against)
    bands = {name: band(own) for name, own in curves.items()}
    low, high = _limits(own for several in curves.values() for own in several)
    rows = [row for name, own in bands.items() for row in _band_rows(name, own, ceiling=2 * high)]
    kind: Literal["log", "linear"] = "log" if low > 0 else "linear"
    base = _shown(rows).encode(
        x=_along(bands, against),
        color=_colour(algorithms),
    )
    scale = alt.Scale(type=kind, domain=[low, high], nice=False)
    vertical = alt.Y("median:Q", title="training loss", scale=scale)
    area = base.mark_area(opacity=0.16, clip=True, interpolate="step-after").encode(
        y=alt.Y("low:Q", title="training loss", scale=scale), y2="high:Q"
    )
    line = base.mark_line(strokeWidth=2, clip=True, interpolate="step-after").encode(
        y=vertical,
        strokeDash=alt.StrokeDash("algorithm:N", legend=None, scale=_dashes(algorithms)),
        tooltip=["algorithm:N", *_numbers("position", "median", "low", "high")],
    )
    return alt.layer(area, line).add_params(_hidden()).properties(width="container", height=300)


def staleness_chart(outcomes: Sequence[Outcome], algorithms: Sequence[str]) -> Chart:
    """Return how stale the server's updates were on one fleet: a strip per algorithm.

    Parameters
    ----------
    outcomes : sequence of Outcome
        The finished runs on that fleet; their seeds are taken together.
    algorithms : sequence of str
        Every algorithm of the comparison, in the order of its colours.

    Returns
    -------
    altair.LayerChart
        The darker a cell, the larger its share of the updates; a bar marks the mean.
    """
    pooled = _staleness(outcomes)
    highest = max((int(values.max()) for values in pooled.values() if len(values)), default=0)
    cells = [row for name, values in pooled.items() for row in _share_rows(name, values, highest)]
    means = [
        {"algorithm": name, "mean": float(own.mean())} for name, own in pooled.items() if len(own)
    ]
    names = [name for name in algorithms if name in pooled]
    vertical = alt.Y("algorithm:N", sort=names, title=None, scale=alt.Scale(domain=names))
    horizontal = alt.X("low:Q", title="staleness [versions]", axis=alt.Axis(tickMinStep=1))
    strip = _rows(cells).mark_rect().encode(
        x=horizontal, x2="high:Q", y=vertical, color=_colour(algorithms),
        opacity=alt.Opacity("share:Q", legend=None, scale=alt.Scale(type="sqrt", domain=[0, 1])),
        tooltip=["algorithm:N", "bin:N", alt.Tooltip("share:Q", format=".1%")],
    )  # fmt: skip
    mean = _rows(means).mark_tick(thickness=2, bandSize=18).encode(
        x="mean:Q", y=vertical, tooltip=["algorithm:N", *_numbers("mean")]
    )  # fmt: skip
    return alt.layer(strip, mean).properties(width="container", height=alt.Step(22))


def _along(bands: Mapping[str, Band], against: str) -> alt.X:
    positions = [own.positions[own.positions > 0] for own in bands.values()]
    reached = np.concatenate([np.empty(0), *positions])
    ends = [reached.min(), reached.max()] if len(reached) else [1.0, 2.0]
    scale = alt.Scale(type="log", domain=ends, nice=False)
    axis = alt.Axis(format="~s", labelOverlap=True, labelSeparation=8)
    return alt.X("position:Q", title=_AXES[against], scale=scale, axis=axis)


def _rows(rows: Iterable[Row]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=list(rows)))


def _shown(rows: Iterable[Row]) -> alt.Chart:
    return _rows(rows).transform_filter("indexof(hidden, datum.algorithm) < 0")


def _hidden() -> alt.Parameter:
    return alt.param(name="hidden", value=[])


def _colour(algorithms: Sequence[str]) -> alt.Color:
    return alt.Color("algorithm:N", legend=None, scale=alt.Scale(domain=list(algorithms)))


def _dashes(algorithms: Sequence[str]) -> alt.Scale:
    drawn = styles(algorithms)
    return alt.Scale(domain=list(algorithms), range=[list(drawn[name].dash) for name in algorithms])


def _numbers(*fields: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{field}:Q", format=".4~g") for field in fields]


def _finished(outcomes: Sequence[Outcome]) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {}
    for outcome in outcomes:
        if outcome.run is not None:
            runs.setdefault(outcome.algorithm, []).append(outcome.run)
    return runs


def _curves(outcomes: Sequence[Outcome], against: str) -> dict[str, list[Curve]]:
    finished = _finished(outcomes)
    return {name: [loss_curve(run, against) for run in runs] for name, runs in finished.items()}


def _limits(curves: Iterable[Curve]) -> tuple[float, float]:
    drawn = [curve.values[np.isfinite(curve.values)] for curve in curves]
    known = [values for values in drawn if len(values)]
    lowest = min((float(values.min()) for values in known), default=0.0)
    start = max((float(values[0]) for values in known), default=1.0)
    span = start - lowest
    return (lowest / _HEADROOM, start * _HEADROOM) if lowest > 0 else (lowest, start + 0.1 * span)


def _band_rows(algorithm: str, own: Band, ceiling: float) -> list[Row]:
    return [
        {
            "algorithm": algorithm,
            "position": _short(position),
            "median": _short(median),
            "low": _short(low),
            "high": _short(min(high, max(ceiling, median))),
        }
        for position, low, median, high in zip(*own, strict=True)
        if position > 0 and math.isfinite(median)
    ]


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _staleness(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    finished = _finished(outcomes)
    return {
        name: np.concatenate([run.trace.staleness for run in runs])
        for name, runs in finished.items()
    }


def _share_rows(algorithm: str, values: Any, highest: int) -> list[Row]:  # noqa: ANN401 # an int64[m]
    found = shares(values, bins=BINS, highest=highest)
    return [
        {
            "algorithm": algorithm,
            "low": int(low),
            "high": int(high),
            "bin": str(low) if high == low + 1 else f"{low} to {high - 1}",
            "share": _short(share),
        }
        for low, high, share in zip(*found, strict=True)
        if share > 0
    ]
