"""Algorithms against each other, and more workers against fewer."""

import math
from collections.abc import Sequence

import altair as alt

from distsgd.report.numbers.findings import Contrast, Quantity, Scaling
from distsgd.report.numbers.summary import Summary
from distsgd.report.pictures.charts import (
    Case,
    Picture,
    Row,
    View,
    colour,
    dashes,
    drawn,
    logarithmic,
    marks,
    per_algorithm,
    short,
    told,
    view,
)

_UNBOUNDED = 1e6
"""Where the bar of a speed-up without an upper bound ends, far outside of the picture."""
_QUANTITIES: dict[str, Quantity] = {
    "time to target": "seconds",
    "machine time to target": "machine_seconds",
    "loss at equal time": "loss_at_equal_time",
    "loss at equal budgets": "loss",
}


def ratio_picture(summary: Summary, case: Case) -> Picture | None:
    """Return how many times as much each algorithm needs as the best one in `case`.

    Parameters
    ----------
    summary : Summary
        The numbers of the comparison.
    case : tuple of str
        Problem and fleet.

    Returns
    -------
    Picture or None
        Median ratio and interval; None if no two algorithms can be compared.
    """
    own = [one for one in summary.contrasts if (one.problem, one.fleet) == case]
    views = {}
    for label, quantity in _QUANTITIES.items():
        found = [one for one in own if one.quantity == quantity and _is_drawn(one)]
        if found:
            views[label] = _ratios(list(summary.algorithms), found, label)
    note = (
        "Each algorithm against the one with the lowest median, seed by seed on the same machines "
        "and samples: the ratio and its 95 % interval, all of which hold together. An interval "
        "that touches the line at 1 does not settle the order; a bar that leaves the picture has "
        "no end: runs missed the target, or another seed of tuning could have changed it so far."
    )
    return Picture("ratios", case, "How sure is the order?", note, views) if views else None


def _is_drawn(one: Contrast) -> bool:
    """Return whether a ratio has a place, or at least an end of its interval."""
    return any(value is not None and 0 < value < math.inf for value in (one.median, one.low))


def _ratios(algorithms: Sequence[str], found: Sequence[Contrast], label: str) -> View:
    rows = [_row(one) for one in found]
    bounds = [
        value
        for row in rows
        for value in (row["low"], row["ratio"], row["high"])
        if value is not None and 0 < value < math.inf
    ]
    low, high = min(1.0, *bounds) / 1.1, max(1.0, *bounds) * 1.1
    for row in rows:
        row["from"], row["to"] = max(row["low"], low / 2), min(row["high"], high * 2)
    names = [name for name in algorithms if name in {row["algorithm"] for row in rows}]
    vertical = per_algorithm(algorithms, names)
    title = f"{label}: times that of {found[0].against}"
    unity = marks("unity").mark_rule(strokeDash=[3, 3])
    layers = [
        unity.encode(x=alt.X("one:Q"), color=alt.ColorValue("gray")),
        drawn("ratios")
        .mark_rule(strokeWidth=3, opacity=0.5, clip=True)
        .encode(
            x=logarithmic("from", title, [low, high], ".3~g"), x2=alt.X2("to:Q"), y=vertical, color=colour(algorithms)
        ),
        drawn("ratios")
        .transform_filter("isValid(datum.ratio)")
        .mark_circle(size=80, opacity=1)
        .encode(x=alt.X("ratio:Q"), y=vertical, color=colour(algorithms), tooltip=told("ratio", "low", "high")),
    ]
    tables = {"ratios": rows, "unity": [{"one": 1.0}]}
    return view(tables, *layers, height=26 * len(names))


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
        "ratio": None if median is None else short(median),
        "pairs": one.n_pairs,
    }


def profile_picture(summary: Summary) -> Picture | None:
    """Return the performance profiles over problems and fleets, None for fewer than two of them."""
    engine = summary.engine_on(summary.cases[0][1]) if summary.cases else "simulate"
    cases = [case for case in summary.cases if summary.engine_on(case[1]) == engine]
    if len(cases) < 2 or not summary.profiles:
        return None
    last = short(1.2 * max(factor for one in summary.profiles for factor in one.factor))
    rows = [
        {"algorithm": one.algorithm, "factor": short(factor), "share": short(share)}
        for one in summary.profiles
        for factor, share in zip([*one.factor, last], [*one.share, one.share[-1]], strict=True)
    ]
    algorithms = list(summary.algorithms)
    line = (
        drawn("profiles")
        .mark_line(interpolate="step-after", strokeWidth=2, clip=True)
        .encode(
            x=logarithmic("factor", "time to target, as a multiple of the best one's", [1.0, last]),
            y=alt.Y(
                "share:Q",
                title="share of the cases",
                axis=alt.Axis(format="%"),
                scale=alt.Scale(domain=[0, 1.02], nice=False),
            ),
            color=colour(algorithms),
            strokeDash=dashes(algorithms),
            tooltip=told("factor", "share"),
        )
    )
    live = " that were simulated" if len(cases) < len(summary.cases) else ""
    note = (
        f"Over the {len(cases)} pairs of problem and fleet{live}: on how many of them an "
        "algorithm met the target within so many times the best one's time. Higher is better; at "
        "the left edge, how often it had the least median time, settled or not."
    )
    views = {"": view({"profiles": rows}, line, height=320)}
    return Picture("profiles", None, "How often each algorithm is near the best", note, views)


def speed_up_picture(summary: Summary) -> Picture | None:
    """Return the speed-up against workers with the ideal, None where no fleets differ so."""
    several: dict[str, list[Scaling]] = {}
    for one in summary.scaling:
        if any(value is not None for value in one.speed_up):
            live = ", live" * (summary.engine_on(one.fleets[0]) != "simulate")
            several.setdefault(f"{one.problem}{live}", []).append(one)
    if not several:
        return None
    views = {problem: _speed_ups(list(summary.algorithms), own) for problem, own in several.items()}
    note = (
        "Median time to the target with the fewest workers, divided by the time with more; fleets "
        "differ in nothing else. A bar is the 95 % interval, seed by seed. The dashed line is the "
        "ideal; a point that is missing: the algorithm met the target in half of its runs or fewer."
    )
    return Picture("speed-up", None, "Speed-up against workers", note, views)


def _speed_ups(algorithms: Sequence[str], several: Sequence[Scaling]) -> View:
    rows: list[Row] = [
        {
            "algorithm": one.algorithm,
            "family": f"{one.algorithm} {one.fleets[0]}",
            "workers": workers,
            "speed-up": short(gain),
            "efficiency": short(efficiency or 0.0),
            "low": short(gain if low is None else low),
            "high": short(gain if high is None else min(high, _UNBOUNDED)),
        }
        for one in several
        for workers, gain, efficiency, low, high in zip(
            one.workers, one.speed_up, one.efficiency, one.low, one.high, strict=True
        )
        if gain is not None
    ]
    few = min(row["workers"] for row in rows)
    many = max(row["workers"] for row in rows)
    ideal = [{"workers": count, "speed-up": count / few} for count in (few, many)]
    scale = alt.Scale(type="log", base=2, nice=False, padding=10)
    across = alt.X("workers:Q", title="workers", scale=scale, axis=alt.Axis(format="~s"))
    up = alt.Y("speed-up:Q", title="speed-up", scale=scale)
    line = drawn("gains").encode(x=across, y=up, color=colour(algorithms))
    interval = drawn("gains").mark_rule(strokeWidth=3, opacity=0.4, clip=True)
    layers: list[alt.Chart] = [
        marks("ideal").mark_line(strokeDash=[3, 3]).encode(x=across, y=up, color=alt.ColorValue("gray")),
        line.mark_line(strokeWidth=2).encode(detail=alt.Detail("family:N"), strokeDash=dashes(algorithms)),
        interval.encode(x=across, y=alt.Y("low:Q", scale=scale), y2=alt.Y2("high:Q"), color=colour(algorithms)),
        line.mark_circle(size=70, opacity=1).encode(tooltip=told("workers", "speed-up", "low", "high", "efficiency")),
    ]
    return view({"gains": rows, "ideal": ideal}, *layers, height=340)
