"""How long each run took to the target: a dot per seed, a bar at the median, a cross for a miss."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import altair as alt

from distsgd.report.formatting import number
from distsgd.report.numbers.measurements import reached
from distsgd.report.numbers.summary import Outcome, Summary
from distsgd.report.pictures.charts import (
    Case,
    Picture,
    Row,
    Unit,
    View,
    by_algorithm,
    colour,
    drawn,
    logarithmic,
    marks,
    measured,
    per_algorithm,
    short,
    target_of,
    told,
    units_on,
    view,
)
from distsgd.run import Run
from distsgd.statistics.spreads import median_time


def target_picture(summary: Summary, outcomes: Sequence[Outcome], case: Case) -> Picture | None:
    """Return when each run in `case` first met the target, None if there is no target.

    Parameters
    ----------
    summary : Summary
        The numbers of the comparison.
    outcomes : sequence of Outcome
        Its runs.
    case : tuple of str
        Problem and fleet.

    Returns
    -------
    Picture or None
        A view per unit. A run that missed is a cross behind all that did not.
    """
    target = target_of(summary, case)
    if target is None:
        return None
    runs = by_algorithm(outcomes, case)
    origin = summary.targets[case[0]].origin
    reason = "" if origin == "given" else f", {origin}"
    note = (
        f"When the training loss was first at or below {number(target)}{reason}, if it is evaluated"
        " after every update: a dot per run, a bar at the median. A cross behind the dashed line:"
        " so many runs were never seen there."
    )
    views = {
        name: view
        for name, unit in units_on(summary.engine_on(case[1])).items()
        if (view := _view(list(summary.algorithms), measured(runs, unit), unit, target)) is not None
    }
    return Picture("time-to-target", case, "Time to the target", note, views)


def _view(algorithms: Sequence[str], runs: Mapping[str, Sequence[Run]], unit: Unit, target: float) -> View | None:
    if not any(run.history[unit.column][-1] > 0 for own in runs.values() for run in own):
        return None
    found = [row for name, own in runs.items() for row in _rows(name, own, unit, target)]
    met = [row for row in found if row["reached"]]
    missed = Counter(row["algorithm"] for row in found if row["reached"] is None)
    ends = _ends([row["reached"] for row in met], has_missed=bool(missed))
    tables = {
        "runs": found,
        "met": met,
        "medians": _medians(found),
        "missed": [{"algorithm": name, "place": ends.cross, "missed": count} for name, count in missed.items()],
        "border": [{"border": ends.border}] if missed else [],
    }
    shown: dict[str, Any] = {"y": per_algorithm(algorithms, runs), "color": colour(algorithms)}
    across = logarithmic("reached", unit.title, [ends.first, ends.last])
    border = marks("border").mark_rule(strokeDash=[3, 3])
    dot = drawn("met").mark_circle(size=70, opacity=0.55)
    bar = drawn("medians").mark_tick(thickness=3, bandSize=20)
    count = drawn("missed").mark_text(align="left", dx=9, fontSize=12)
    cross = drawn("missed").mark_point(shape="cross", angle=45, filled=True, size=70)
    return view(
        tables,
        border.encode(x=alt.X("border:Q"), color=alt.ColorValue("gray")),
        dot.encode(x=across, tooltip=told("reached", "seed"), **shown),
        bar.encode(x=alt.X("median:Q"), tooltip=told("median"), **shown),
        cross.encode(x=alt.X("place:Q"), tooltip=told("missed"), **shown),
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
    beyond = [short(high * step**count) for count in (1, 2, 3)]
    return _Ends(short(low / step), beyond[0], beyond[1], beyond[2] if has_missed else beyond[0])


def _rows(algorithm: str, runs: Sequence[Run], unit: Unit, target: float) -> list[Row]:
    return [
        {
            "algorithm": algorithm,
            "seed": run.settings["seed"],
            "reached": _short(reached(run, target, unit.column).high),
        }
        for run in runs
    ]


def _short(time: float) -> float | None:
    return short(time) if math.isfinite(time) else None


def _medians(found: Sequence[Row]) -> list[Row]:
    times: dict[str, list[float | None]] = {}
    for row in found:
        times.setdefault(row["algorithm"], []).append(row["reached"])
    medians = {name: median_time(own) for name, own in times.items()}
    return [{"algorithm": name, "median": short(median)} for name, median in medians.items() if median is not None]
