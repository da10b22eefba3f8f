"""Speed-up: more workers against fewer, with the ideal."""

from collections.abc import Sequence

import altair as alt

from distsgd.report.numbers.findings import Scaling
from distsgd.report.numbers.groups import grouped
from distsgd.report.numbers.summary import Summary
from distsgd.report.pictures import charts
from distsgd.report.pictures.charts import Picture, Row, View

_UNBOUNDED = 1e6
"""Where the bar of a speed-up without an upper bound ends, far outside of the picture."""


def speed_up_picture(summary: Summary) -> Picture:
    """Return the speed-up against workers with the ideal, on fleets that differ in nothing else."""
    known = [one for one in summary.scaling if any(value is not None for value in one.speed_up)]
    several = grouped(known, lambda one: one.problem + ", live" * (summary.engine_on(one.fleets[0]) != "simulate"))
    views = {problem: _view(list(summary.algorithms), own) for problem, own in several.items()}
    note = (
        "Median time to the target with the fewest workers, divided by the time with more; fleets "
        "differ in nothing else. A bar is the 95 % interval, seed by seed. The dashed line is the "
        "ideal; a point that is missing: the algorithm met the target in half of its runs or fewer."
    )
    return Picture("speed-up", None, "Speed-up against workers", note, views)


def _view(algorithms: Sequence[str], several: Sequence[Scaling]) -> View:
    rows: list[Row] = [
        {
            "algorithm": one.algorithm,
            "family": f"{one.algorithm} {one.fleets[0]}",
            "workers": workers,
            "speed-up": charts.short(gain),
            "efficiency": charts.short(efficiency or 0.0),
            "low": charts.short(gain if low is None else low),
            "high": charts.short(gain if high is None else min(high, _UNBOUNDED)),
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
    line = charts.drawn("gains").encode(x=across, y=up, color=charts.colour(algorithms))
    interval = charts.drawn("gains").mark_rule(strokeWidth=3, opacity=0.4, clip=True)
    layers: list[alt.Chart] = [
        charts.marks("ideal").mark_line(strokeDash=[3, 3]).encode(x=across, y=up, color=charts.GRAY),
        line.mark_line(strokeWidth=2).encode(detail=alt.Detail("family:N"), strokeDash=charts.dashes(algorithms)),
        interval.encode(x=across, y=alt.Y("low:Q", scale=scale), y2=alt.Y2("high:Q"), color=charts.colour(algorithms)),
        line.mark_circle(size=70, opacity=1).encode(
            tooltip=charts.told("workers", "speed-up", "low", "high", "efficiency")
        ),
    ]
    return charts.view({"gains": rows, "ideal": ideal}, *layers, height=340)
