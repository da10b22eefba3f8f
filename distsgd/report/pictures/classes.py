"""Which worker has which classes, where the data are skewed."""

import altair as alt

from distsgd.report.pictures import charts
from distsgd.report.pictures.charts import Picture, Row, Subject

WORKERS = 40
"""Workers shown, at most."""


def class_picture(subject: Subject) -> Picture | None:
    """Return how many samples of each class each worker has, None where the data are not skewed."""
    known = subject.summary.settings.get("histograms", ())
    own = next((one for one in known if (one["problem"], one["fleet"]) == subject.case), None)
    if own is None:
        return None
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
        charts.marks("cells")
        .mark_rect()
        .encode(
            x=alt.X("class:O", title="class", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("worker:O", title="worker"),
            color=shade,
            tooltip=[alt.Tooltip(f"{name}:Q") for name in ("worker", "class", "samples")],
        )
    )
    n_workers = len(own["counts"])
    n_shown = min(WORKERS, n_workers)
    note = (
        f"Samples of each class in each worker's part of the data, with seed {own['seed']}; "
        f"{n_shown} of {n_workers} workers."
    )
    views = {"": charts.view({"cells": rows}, cell, height=16 * n_shown)}
    return Picture("classes", subject.case, "Classes per worker", note, views)
