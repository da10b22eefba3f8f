"""Staleness of live runs on top of that of the simulated ones that they take after."""

from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np
import numpy.typing as npt

from distsgd.report.numbers.engines import stalenesses_of
from distsgd.report.numbers.summary import Outcome, Summary
from distsgd.report.pictures.charts import Case, Picture, Row, View, by_algorithm, marks, short, view
from distsgd.statistics.spreads import shares

BINS = 40
"""Bins of a distribution, at most."""

_Staleness = Mapping[str, npt.NDArray[np.int64]]


def both_staleness_picture(summary: Summary, outcomes: Sequence[Outcome], case: Case) -> Picture | None:
    """Return the distributions of staleness of live and of simulated runs, one on the other.

    Parameters
    ----------
    summary : Summary
        The numbers of the comparison.
    outcomes : sequence of Outcome
        Its runs; the seeds are taken together.
    case : tuple of str
        Problem and live fleet.

    Returns
    -------
    Picture or None
        A view per algorithm that is stale in either; None if there is none, or the fleet was not
        simulated too.
    """
    problem, fleet = case
    if fleet not in summary.simulated_of:
        return None
    live = by_algorithm(outcomes, case)
    simulated = by_algorithm(outcomes, (problem, summary.simulated_of[fleet]))
    both = {
        name: {"simulated": stalenesses_of(simulated[name]), "live": stalenesses_of(own)}
        for name, own in live.items()
        if name in simulated
    }
    views = {name: _distributions(name, own) for name, own in both.items() if _is_stale(own)}
    note = "Share of the server's updates that were so many versions old, all seeds together; the rules are the means."
    if not views:
        return None
    return Picture("both-staleness", case, "Staleness, live on simulated", note, views)


def _is_stale(both: _Staleness) -> bool:
    return all(map(len, both.values())) and any(own.any() for own in both.values())


def _distributions(algorithm: str, both: _Staleness) -> View:
    highest = max(int(own.max()) for own in both.values())
    cells: list[Row] = [
        {
            "algorithm": algorithm,
            "of": of,
            "low": low - 0.5,
            "high": high - 0.5,
            "share": short(share),
            "bin": str(low) if high == low + 1 else f"{low} to {high - 1}",
        }
        for of, own in both.items()
        for low, high, share in zip(*shares(own, bins=BINS, highest=highest), strict=True)
        if share > 0
    ]
    means = [{"of": of, "mean": short(float(own.mean()))} for of, own in both.items()]
    ends = [-0.5, max(cell["high"] for cell in cells)]
    scale = alt.Scale(domain=ends, nice=False)
    title = f"staleness of {algorithm} [versions]"
    across = alt.X("low:Q", title=title, scale=scale, axis=alt.Axis(tickMinStep=1))
    legend = alt.Legend(title=None, orient="top", symbolType="square", symbolOpacity=0.7)
    shade = alt.Color("of:N", scale=alt.Scale(domain=list(both)), legend=legend)
    bar = (
        marks("cells")
        .mark_rect(opacity=0.45, clip=True)
        .encode(
            x=across,
            x2=alt.X2("high:Q"),
            y=alt.Y("share:Q", title="share of updates"),
            y2=alt.Y2(datum=0),
            color=shade,
            tooltip=[
                alt.Tooltip("algorithm:N"),
                alt.Tooltip("of:N"),
                alt.Tooltip("bin:N"),
                alt.Tooltip("share:Q", format=".1%"),
            ],
        )
    )
    mean = (
        marks("means")
        .mark_rule(strokeWidth=2.5)
        .encode(x=alt.X("mean:Q"), color=shade, tooltip=[alt.Tooltip("of:N"), alt.Tooltip("mean:Q", format=".4~g")])
    )
    return view({"cells": cells, "means": means}, bar, mean, height=260)
