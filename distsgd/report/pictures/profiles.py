"""Performance profiles: on how many cases an algorithm is how near to the best one."""

import altair as alt

from distsgd.report.numbers.summary import Summary
from distsgd.report.pictures import charts
from distsgd.report.pictures.charts import Picture


def profile_picture(summary: Summary) -> Picture | None:
    """Return the performance profiles over problems and fleets, None for fewer than two of them."""
    engine = summary.engine_on(summary.cases[0][1]) if summary.cases else "simulate"
    cases = [case for case in summary.cases if summary.engine_on(case[1]) == engine]
    if len(cases) < 2 or not summary.profiles:
        return None
    last = charts.short(1.2 * max(factor for one in summary.profiles for factor in one.factor))
    rows = [
        {"algorithm": one.algorithm, "factor": charts.short(factor), "share": charts.short(share)}
        for one in summary.profiles
        for factor, share in zip([*one.factor, last], [*one.share, one.share[-1]], strict=True)
    ]
    algorithms = list(summary.algorithms)
    line = (
        charts.drawn("profiles")
        .mark_line(interpolate="step-after", strokeWidth=2, clip=True)
        .encode(
            x=charts.logarithmic("factor", "time to target, as a multiple of the best one's", [1.0, last]),
            y=alt.Y(
                "share:Q",
                title="share of the cases",
                axis=alt.Axis(format="%"),
                scale=alt.Scale(domain=[0, 1.02], nice=False),
            ),
            color=charts.colour(algorithms),
            strokeDash=charts.dashes(algorithms),
            tooltip=charts.told("factor", "share"),
        )
    )
    live = " that were simulated" if len(cases) < len(summary.cases) else ""
    note = (
        f"Over the {len(cases)} pairs of problem and fleet{live}: on how many of them an "
        "algorithm met the target within so many times the best one's time. Higher is better; at "
        "the left edge, how often it had the least median time, settled or not."
    )
    views = {"": charts.view({"profiles": rows}, line, height=320)}
    return Picture("profiles", None, "How often each algorithm is near the best", note, views)
