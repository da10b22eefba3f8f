"""How many times as much each algorithm needs as the best one: the ratio and its interval."""

import math
from collections.abc import Sequence

import altair as alt

from distsgd.report.numbers.findings import Contrast, Quantity
from distsgd.report.pictures import charts
from distsgd.report.pictures.charts import Picture, Row, Subject, View

_QUANTITIES: dict[str, Quantity] = {
    "time to target": "seconds",
    "machine time to target": "machine_seconds",
    "loss at equal time": "loss_at_equal_time",
    "loss at equal budgets": "loss",
}


def ratio_picture(subject: Subject) -> Picture:
    """Return how many times as much each algorithm needs as the best one, a view per quantity."""
    own = [one for one in subject.summary.contrasts if (one.problem, one.fleet) == subject.case and _is_drawn(one)]
    views = {
        label: _ratios(subject.algorithms, found, label)
        for label, quantity in _QUANTITIES.items()
        if (found := [one for one in own if one.quantity == quantity])
    }
    note = (
        "Each algorithm against the one with the lowest median, seed by seed on the same machines and samples: the"
        " ratio and its 95 % interval, all of which hold together. An interval that touches the line at 1 does not"
        " settle the order; a bar that leaves the picture has no end: runs missed the target, or another seed of"
        " tuning could have changed it so far."
    )
    return Picture("ratios", subject.case, "How sure is the order?", note, views)


def _is_drawn(one: Contrast) -> bool:
    """Return whether a ratio has a place, or at least an end of its interval."""
    return any(value is not None and 0 < value < math.inf for value in (one.median, one.low))


def _ratios(algorithms: Sequence[str], found: Sequence[Contrast], label: str) -> View:
    rows = [_row(one) for one in found]
    ends = [row[end] for row in rows for end in ("low", "ratio", "high")]
    bounds = [1.0, *(value for value in ends if value is not None and 0 < value < math.inf)]
    low, high = min(bounds) / 1.1, max(bounds) * 1.1
    for row in rows:
        row["from"], row["to"] = max(row["low"], low / 2), min(row["high"], high * 2)
    vertical = charts.per_algorithm(algorithms, [row["algorithm"] for row in rows])
    title = f"{label}: times that of {found[0].against}"
    across = charts.logarithmic("from", title, [low, high], ".3~g")
    bar = charts.drawn("ratios").mark_rule(strokeWidth=3, opacity=0.5, clip=True)
    dot = charts.drawn("ratios").transform_filter("isValid(datum.ratio)").mark_circle(size=80, opacity=1)
    layers = [
        charts.marks("unity").mark_rule(strokeDash=[3, 3]).encode(x=alt.X("one:Q"), color=charts.GRAY),
        bar.encode(x=across, x2=alt.X2("to:Q"), y=vertical, color=charts.colour(algorithms)),
        dot.encode(
            x=alt.X("ratio:Q"), y=vertical, color=charts.colour(algorithms), tooltip=charts.told("ratio", "low", "high")
        ),
    ]
    return charts.view({"ratios": rows, "unity": [{"one": 1.0}]}, *layers, height=26 * len(rows))


def _row(one: Contrast) -> Row:
    # Where runs missed the target the ratio may have no place, but its interval has an end.
    median = one.median if one.median is not None and math.isfinite(one.median) else None
    low = median if one.low is None else one.low
    high = one.high if one.high is not None else median if one.low is None else math.inf
    return {
        "algorithm": one.algorithm,
        "against": one.against,
        "low": low,
        "high": high,
        "ratio": None if median is None else charts.short(median),
        "pairs": one.n_pairs,
    }
