"""Live runs on top of the simulated ones that they take after: losses, and staleness."""

from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np
import numpy.typing as npt

from distsgd.report.numbers.engines import stalenesses_of
from distsgd.report.pictures import charts
from distsgd.report.pictures.charts import Picture, Subject, Unit, View
from distsgd.report.pictures.loss import along, bands_of, loss_curves, loss_scale, rows_of
from distsgd.report.pictures.staleness import share_of_versions
from distsgd.run import Run

Both = Mapping[str, Mapping[str, list[Run]]]
"""Of each algorithm that ran on both, its simulated and its live runs."""


def both_losses_picture(subject: Subject) -> Picture:
    """Return the losses of live and of simulated runs on the axes that they share.

    Virtual and wall seconds are not on one axis.
    """
    runs = _both(subject)
    views = {name: _losses(subject.algorithms, runs, charts.UNITS[name]) for name in ("updates", "epochs") if runs}
    note = (
        "Medians over seeds: the thin lines are live, the wide faint ones simulated. Only axes that both share: "
        "a virtual second is no wall second."
    )
    return Picture(f"{charts.BOTH}losses", subject.case, "Training loss, live on simulated", note, views)


def _both(subject: Subject) -> Both:
    simulated = {} if subject.simulated is None else subject.simulated.runs
    live = subject.runs
    return {name: {"simulated": simulated[name], "live": own} for name, own in live.items() if name in simulated}


def _losses(algorithms: Sequence[str], runs: Both, unit: Unit) -> View:
    kinds = ["simulated", "live"]
    curves = {of: loss_curves({name: own[of] for name, own in runs.items()}, unit) for of in kinds}
    bands = {of: bands_of(own) for of, own in curves.items()}
    scale, top = loss_scale(curve for own in curves.values() for several in own.values() for curve in several)
    rows = [row | {"of": of} for of, own in bands.items() for row in rows_of(own, top)]
    legend = alt.Legend(title=None, orient="top", symbolType="stroke", symbolStrokeColor="gray")
    line = (
        charts.drawn("medians")
        .mark_line(clip=True, interpolate="step-after")
        .encode(
            x=along(unit, [one for own in bands.values() for one in own.values()]),
            color=charts.colour(algorithms),
            y=alt.Y("median:Q", title="training loss", scale=scale),
            strokeWidth=alt.StrokeWidth("of:O", sort=kinds, scale=alt.Scale(range=[6, 1.5]), legend=legend),
            opacity=alt.Opacity("of:O", sort=kinds, scale=alt.Scale(range=[0.35, 1.0]), legend=None),
            tooltip=charts.told("position", "median", words=["of"]),
        )
    )
    return charts.view({"medians": rows}, line, height=340)


def both_staleness_picture(subject: Subject) -> Picture:
    """Return the distributions of staleness of live and of simulated runs, one on the other.

    A view per algorithm that is stale in either, all seeds together.
    """
    found = {name: {of: stalenesses_of(runs) for of, runs in own.items()} for name, own in _both(subject).items()}
    views = {
        name: _distributions(name, own)
        for name, own in found.items()
        if all(map(len, own.values())) and any(values.any() for values in own.values())
    }
    note = "Share of the server's updates that were so many versions old, all seeds together; the rules are the means."
    return Picture(f"{charts.BOTH}staleness", subject.case, "Staleness, live on simulated", note, views)


def _distributions(algorithm: str, both: Mapping[str, npt.NDArray[np.int64]]) -> View:
    highest = max(int(own.max()) for own in both.values())
    cells = [
        {"algorithm": algorithm, "of": of} | row for of, own in both.items() for row in share_of_versions(own, highest)
    ]
    means = [{"of": of, "mean": charts.short(float(own.mean()))} for of, own in both.items()]
    scale = alt.Scale(domain=[-0.5, max(cell["high"] for cell in cells)], nice=False)
    title = f"staleness of {algorithm} [versions]"
    across = alt.X("low:Q", title=title, scale=scale, axis=alt.Axis(tickMinStep=1))
    legend = alt.Legend(title=None, orient="top", symbolType="square", symbolOpacity=0.7)
    shade = alt.Color("of:N", scale=alt.Scale(domain=list(both)), legend=legend)
    bar = (
        charts.marks("cells")
        .mark_rect(opacity=0.45, clip=True)
        .encode(
            x=across,
            x2=alt.X2("high:Q"),
            y=alt.Y("share:Q", title="share of updates"),
            y2=alt.Y2(datum=0),
            color=shade,
            tooltip=[*charts.told(words=["of", "bin"]), alt.Tooltip("share:Q", format=".1%")],
        )
    )
    mean = charts.marks("means").mark_rule(strokeWidth=2.5)
    told_mean = [alt.Tooltip("of:N"), alt.Tooltip("mean:Q", format=".4~g")]
    rule = mean.encode(x=alt.X("mean:Q"), color=shade, tooltip=told_mean)
    return charts.view({"cells": cells, "means": means}, bar, rule, height=260)
