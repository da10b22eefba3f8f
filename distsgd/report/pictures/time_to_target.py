"""How long each run took to the target: a dot per seed, a bar at the median, a cross for a miss."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import altair as alt
import numpy as np

from distsgd.report.formatting import number
from distsgd.report.numbers.groups import grouped
from distsgd.report.numbers.measurements import reached
from distsgd.report.pictures import charts
from distsgd.report.pictures.charts import Picture, Row, Subject, Unit, View
from distsgd.run import Run


def target_picture(subject: Subject) -> Picture | None:
    """Return when each run first met the target, in each unit; None if there is no target."""
    target = subject.target
    if target is None:
        return None
    origin = subject.summary.targets[subject.case[0]].origin
    reason = "" if origin == "given" else f", {origin}"
    note = (
        f"When the training loss was first at or below {number(target)}{reason}, if it is evaluated after every"
        " update: a dot per run, a bar at the median. A cross behind the dashed line: so many runs were never seen"
        " there."
    )
    views = {name: _view(subject.algorithms, runs, unit, target) for name, unit, runs in subject.by_unit()}
    return Picture("time-to-target", subject.case, "Time to the target", note, views)


def _view(algorithms: Sequence[str], runs: Mapping[str, Sequence[Run]], unit: Unit, target: float) -> View:
    found: list[Row] = [
        {
            "algorithm": name,
            "seed": run.settings["seed"],
            "reached": charts.short(reached(run, target, unit.column).high),
        }
        for name, own in runs.items()
        for run in own
    ]
    met = [row for row in found if 0 < row["reached"] < math.inf]
    missed = Counter(row["algorithm"] for row in found if row["reached"] == math.inf)
    ends = _ends([row["reached"] for row in met], has_missed=bool(missed))
    tables = {
        "runs": found,
        "met": met,
        "medians": _medians(found),
        "missed": [{"algorithm": name, "place": ends.cross, "missed": count} for name, count in missed.items()],
        "border": [{"border": ends.border}] if missed else [],
    }
    shown: dict[str, Any] = {"y": charts.per_algorithm(algorithms, runs), "color": charts.colour(algorithms)}
    across = charts.logarithmic("reached", unit.title, [ends.first, ends.last])
    border = charts.marks("border").mark_rule(strokeDash=[3, 3])
    dot = charts.drawn("met").mark_circle(size=70, opacity=0.55)
    bar = charts.drawn("medians").mark_tick(thickness=3, bandSize=20)
    count = charts.drawn("missed").mark_text(align="left", dx=9, fontSize=12)
    cross = charts.drawn("missed").mark_point(shape="cross", angle=45, filled=True, size=70)
    return charts.view(
        tables,
        border.encode(x=alt.X("border:Q"), color=charts.GRAY),
        dot.encode(x=across, tooltip=charts.told("reached", "seed"), **shown),
        bar.encode(x=alt.X("median:Q"), tooltip=charts.told("median"), **shown),
        cross.encode(x=alt.X("place:Q"), tooltip=charts.told("missed"), **shown),
        count.encode(x=alt.X("place:Q"), y=shown["y"], text=alt.Text("missed:Q")),
        height=26 * len(runs),
    )


class _Ends(NamedTuple):
    first: float
    border: float
    cross: float
    last: float


def _ends(times: Sequence[float], *, has_missed: bool) -> _Ends:
    """Return where the axis begins and ends, and where in it missed runs stand."""
    low, high = min(times, default=1.0), max(times, default=1.0)
    step = max((high / low) ** 0.08, 1.1)
    beyond = [charts.short(high * step**count) for count in (1, 2, 3)]
    return _Ends(charts.short(low / step), beyond[0], beyond[1], beyond[2] if has_missed else beyond[0])


def _medians(found: Sequence[Row]) -> list[Row]:
    medians = {
        name: float(np.median([row["reached"] for row in own]))
        for name, own in grouped(found, lambda row: str(row["algorithm"])).items()
    }
    return [
        {"algorithm": name, "median": charts.short(median)} for name, median in medians.items() if median < math.inf
    ]
