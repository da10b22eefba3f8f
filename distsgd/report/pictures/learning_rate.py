"""How much the learning rate matters: what tuning saw, and what staleness leaves of it."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import altair as alt
import numpy as np

from distsgd.experiment.outcome import Outcome
from distsgd.experiment.trials import Judged, Trial, judged_by
from distsgd.report.numbers.groups import finished, grouped
from distsgd.report.numbers.summary import Summary
from distsgd.report.pictures import charts
from distsgd.report.pictures.charts import Picture, Row, View
from distsgd.report.pictures.staleness import stalenesses

RATE = "learning_rate"
_COSTS = {"seconds": "time to the target [s]", "loss": "final training loss"}


def sensitivity_picture(summary: Summary) -> Picture:
    """Return what tuning judged by against the learning rate, where that was tuned.

    A view per problem and fleet; a cross is a rate at which half of the trial's runs or more missed
    the target or, without one, had no finite loss.
    """
    tried = [trial for trial in summary.trials if RATE in trial.parameters]
    views = {
        name: _sensitivity(list(summary.algorithms), own)
        for name, own in grouped(tried, lambda trial: charts.case_name(summary, (trial.problem, trial.fleet))).items()
        if any(math.isfinite(trial.loss) for trial in own)
    }
    note = (
        "Every trial of tuning: the median, over seeds that the comparison does not use, of what it was judged by."
        " The wider a valley, the less the algorithm depends on its rate. A cross on the upper edge: half of the"
        " runs or more missed the target, or diverged."
    )
    return Picture("sensitivity", None, "Sensitivity to the learning rate", note, views)


def _sensitivity(algorithms: Sequence[str], trials: Sequence[Trial]) -> View:
    judged = judged_by(trials)
    rows = _best_of_rate(trials, judged)
    low, high = _extent([row["cost"] for row in rows])
    edge = high * 1.5 if low > 0 else high + 0.1 * (high - low)
    scale = charts.scaled(low / 1.1 if low > 0 else low, edge, nice=False)
    rates = [row["learning rate"] for row in rows]
    across = charts.logarithmic("learning rate", "learning rate", [min(rates) / 1.2, max(rates) * 1.2], "~g")
    base = (
        charts.drawn("trials")
        .transform_filter("isValid(datum.cost)")
        .encode(x=across, y=alt.Y("cost:Q", title=_COSTS[judged], scale=scale), color=charts.colour(algorithms))
    )
    lost = charts.drawn("lost").encode(x=across, y=alt.Y("edge:Q", scale=scale), color=charts.colour(algorithms))
    layers = [
        base.mark_line(strokeWidth=2, clip=True).encode(strokeDash=charts.dashes(algorithms)),
        base.mark_circle(size=50, opacity=1, clip=True).encode(tooltip=charts.told("learning rate", "cost")),
        lost.mark_point(shape="cross", angle=45, filled=True, size=70).encode(tooltip=charts.told("learning rate")),
    ]
    lost_rows = [row | {"edge": charts.short(edge)} for row in rows if row["cost"] == math.inf]
    return charts.view({"trials": rows, "lost": lost_rows}, *layers, height=320)


def _extent(costs: Sequence[float]) -> tuple[float, float]:
    """Return the lowest cost, and the highest that is shown: far above the best all are alike."""
    finite = [cost for cost in costs if cost < math.inf]
    low, high = min(finite), max(finite)
    return low, min(high, 100 * low) if low > 0 else high


def _best_of_rate(trials: Sequence[Trial], judged: Judged) -> list[Row]:
    """Return the lowest cost at each rate: other parameters may have been tried beside it."""
    tried = grouped(trials, lambda trial: (trial.algorithm, trial.parameters[RATE]))
    return [
        {"algorithm": algorithm, "learning rate": rate, "cost": charts.short(min(getattr(one, judged) for one in own))}
        for (algorithm, rate), own in sorted(tried.items())
    ]


def map_picture(summary: Summary, outcomes: Sequence[Outcome]) -> Picture:
    """Return the final loss over learning rate and staleness.

    A view per algorithm that is ever stale, with at least two rates and two stalenesses. On a
    quadratic a line shows where theory says that plain SGD begins to diverge.
    """
    stale = _stale(summary)
    known = [row for row in [*_tried(summary), *_ran(summary, outcomes)] if row["algorithm"] in stale]
    views = {
        f"{algorithm}, {problem}" if len(summary.problems) > 1 else algorithm: _map(
            own, steepest(summary.problems[problem])
        )
        for (problem, algorithm), own in grouped(known, lambda row: (row["problem"], row["algorithm"])).items()
        if _is_a_map(own)
    }
    note = (
        "Median final training loss, the lighter the lower; a cross: the runs diverged. Staleness is the mean that"
        " the algorithm had on a fleet."
    )
    if any(steepest(problem) for problem in summary.problems.values()):
        note += (
            " The line is the theory of plain SGD with constant staleness on this quadratic: rates above it diverge."
        )
    return Picture("learning-rate-map", None, "Learning rate and staleness", note, views)


def _stale(summary: Summary) -> set[str]:
    """Return the names of those that read stale parameters anywhere: others have no map."""
    names = _families(summary)
    return {
        names[result.algorithm]
        for result in summary.results
        if result.algorithm in names and result.staleness and result.staleness.mean > 0
    }


def _tried(summary: Summary) -> list[Row]:
    levels = stalenesses(summary)
    return [
        _cell(trial.problem, trial.algorithm, trial.parameters[RATE], levels[trial.fleet, trial.algorithm], trial.loss)
        for trial in summary.trials
        if RATE in trial.parameters and (trial.fleet, trial.algorithm) in levels and trial.problem in summary.problems
    ]


def _ran(summary: Summary, outcomes: Sequence[Outcome]) -> list[Row]:
    """Return a row per result, under the name of its algorithm or of those that differ in rate."""
    levels, names = stalenesses(summary), _families(summary)
    hypers = {
        (one.problem, one.fleet, one.algorithm): run.settings["algorithm"].get("hyper", {})
        for one, run in finished(outcomes)
    }
    rows = []
    for result in summary.results:
        hyper = hypers.get((result.problem, result.fleet, result.algorithm), {})
        place = result.fleet, result.algorithm
        if RATE in hyper and place in levels and result.engine == "simulate" and result.loss is not None:
            name, level = names[result.algorithm], levels[place]
            rows.append(_cell(result.problem, name, hyper[RATE], level, result.loss.median))
    return rows


def _families(summary: Summary) -> dict[str, str]:
    """Return for each algorithm its name, or what it shares with those of another rate only."""
    groups: dict[str, list[str]] = {}
    for name, settings in summary.algorithms.items():
        hyper = {key: value for key, value in settings.get("hyper", {}).items() if key != RATE}
        same = json.dumps(settings | {"hyper": hyper}, sort_keys=True)
        groups.setdefault(same, []).append(name)
    return {
        name: own[0] if len(own) == 1 else str(summary.algorithms[own[0]]["name"])
        for own in groups.values()
        for name in own
    }


def _cell(problem: str, algorithm: str, rate: float, level: float, loss: float) -> Row:
    rate, loss = charts.short(rate), charts.short(loss)
    return {"problem": problem, "algorithm": algorithm, "learning rate": rate, "staleness": level, "loss": loss}


def _is_a_map(rows: Sequence[Row]) -> bool:
    tried = [{row[key] for row in rows} for key in ("staleness", "learning rate")]
    return all(len(values) > 1 for values in tried) and any(0 < row["loss"] < math.inf for row in rows)


def steepest(problem: Mapping[str, Any]) -> float | None:
    """Return the largest curvature of a quadratic by its settings, None for another problem."""
    return max(problem["curvature"]) if problem.get("name") == "quadratic" else None


def largest_rate(staleness: float, curvature: float) -> float:
    r"""Return the learning rate above which plain SGD with a constant staleness diverges.

    .. math:: \eta(\tau) = \frac{2}{h} \sin\frac{\pi}{2 (2 \tau + 1)}

    Parameters
    ----------
    staleness : float
        :math:`\tau` [versions], >= 0.
    curvature : float
        The largest one, :math:`h`, > 0.

    Returns
    -------
    float
        2 / h for fresh gradients.
    """
    return 2.0 / curvature * math.sin(math.pi / (2.0 * (2.0 * staleness + 1.0)))


def _map(rows: Sequence[Row], curvature: float | None) -> View:
    cells, levels = _cells(rows), sorted({row["staleness"] for row in rows})
    across = alt.X("staleness:O", title="staleness [versions]", axis=alt.Axis(labelAngle=0))
    ends = [min(cell["low"] for cell in cells), max(cell["high"] for cell in cells)]
    scale = alt.Scale(type="log", domain=ends, nice=False)
    shade = _shade([cell["loss"] for cell in cells])
    known = charts.marks("cells").transform_filter("isValid(datum.loss)").mark_rect(clip=True)
    lost = charts.marks("cells").transform_filter("!isValid(datum.loss)")
    cross = lost.mark_point(shape="cross", angle=45, filled=True, size=60)
    layers = [
        known.encode(
            x=across,
            y=alt.Y("low:Q", title="learning rate", scale=scale),
            y2=alt.Y2("high:Q"),
            color=shade,
            tooltip=charts.told("staleness", "learning rate", "loss"),
        ),
        cross.encode(
            x=across,
            y=alt.Y("learning rate:Q", scale=scale),
            color=charts.GRAY,
            tooltip=charts.told("staleness", "learning rate"),
        ),
    ]
    tables = {"cells": cells}
    if curvature:
        tables["theory"] = [{"staleness": level, "rate": largest_rate(level, curvature)} for level in levels]
        line = charts.marks("theory").mark_line(strokeWidth=3, clip=True, point=True)
        layers.append(line.encode(x=across, y=alt.Y("rate:Q", scale=scale), color=alt.ColorValue("#d55e00")))
    return charts.view(tables, *layers, height=340)


def _shade(losses: Sequence[float]) -> alt.Color:
    scale = charts.scaled(*_extent(losses), scheme="viridis", reverse=True, clamp=True)
    legend = alt.Legend(title="final loss", orient="top", format=".2~g", gradientLength=160)
    return alt.Color("loss:Q", scale=scale, legend=legend)


def _cells(rows: Sequence[Row]) -> list[Row]:
    """Return one row per rate and staleness, the lowest loss seen there, with its ends."""
    found: dict[tuple[float, float], Row] = {}
    for row in sorted(rows, key=lambda row: float(row["loss"])):
        found.setdefault((row["learning rate"], row["staleness"]), row)
    for column in grouped(found.values(), lambda row: float(row["staleness"])).values():
        _give_edges(column)
    return list(found.values())


def _give_edges(column: Sequence[Row]) -> None:
    """Let each cell of a column reach half-way to the rates next to its own."""
    rows = sorted(column, key=lambda row: float(row["learning rate"]))
    logs = np.log([row["learning rate"] for row in rows])
    middle = (logs[1:] + logs[:-1]) / 2
    # A column of one rate reaches as far as one with a factor of 2 between its rates.
    outer = (logs[1] - logs[0], logs[-1] - logs[-2]) if len(logs) > 1 else (math.log(2),) * 2
    ends = np.exp([logs[0] - outer[0] / 2, *middle, logs[-1] + outer[1] / 2]).tolist()
    for row, (low, high) in zip(rows, pairwise(ends), strict=True):
        row["low"], row["high"] = charts.short(low), charts.short(high)
