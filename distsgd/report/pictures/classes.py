"""Which worker has which classes, where the data are skewed."""

import altair as alt

from distsgd.report.numbers.summary import Summary
from distsgd.report.pictures.charts import Case, Picture, Row, marks, view

WORKERS = 40
"""Workers shown, at most."""


def class_picture(summary: Summary, case: Case) -> Picture | None:
    """Return how many samples of each class each worker has in `case`.

    Parameters
    ----------
    summary : Summary
        The numbers of the comparison; its settings hold the counts.
    case : tuple of str
        Problem and fleet.

    Returns
    -------
    Picture or None
        A cell per worker and class; None where the data are not skewed.
    """
    known = [one for one in summary.settings.get("histograms", ()) if (one["problem"], one["fleet"]) == case]
    if not known:
        return None
    (own,) = known
    rows: list[Row] = [
        {"worker": worker, "class": label, "samples": count}
        for worker, counts in enumerate(own["counts"][:WORKERS])
        for label, count in zip(own["classes"], counts, strict=True)
    ]
    shade = alt.Color(
        "samples:Q",
        scale=alt.Scale(scheme="viridis", reverse=True),
        legend=alt.Legend(title="samples", orient="top", gradientLength=160),
    )
    cell = (
        marks("cells")
        .mark_rect()
        .encode(
            x=alt.X("class:O", title="class", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("worker:O", title="worker"),
            color=shade,
            tooltip=[alt.Tooltip(f"{name}:Q") for name in ("worker", "class", "samples")],
        )
    )
    height = 16 * min(WORKERS, len(own["counts"]))
    note = (
        f"Samples of each class in each worker's part of the data, with seed {own['seed']}; "
        f"{min(WORKERS, len(own['counts']))} of {len(own['counts'])} workers."
    )
    views = {"": view({"cells": rows}, cell, height=height)}
    return Picture("classes", case, "Classes per worker", note, views)
