"""The report as one HTML file: offline, in light and dark, on a wide and a narrow screen."""

import math
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import jinja2
import vl_convert
from markupsafe import Markup

from distsgd.report.answer import answer
from distsgd.report.charts import (
    COLOURS,
    COLOURS_ON_DARK,
    Style,
    loss_chart,
    staleness_chart,
    styles,
)  # fmt: skip
from distsgd.report.summary import Outcome, Result, Summary
from distsgd.report.text import COLUMNS, MISSING, cells, number, pairs, troubles


class _Row(NamedTuple):
    style: Style
    cells: list[str]


class _Cell(NamedTuple):
    text: str
    is_lowest: bool


def render(summary: Summary, outcomes: Sequence[Outcome]) -> str:
    """Return the page of a comparison.

    Parameters
    ----------
    summary : Summary
        Its numbers.
    outcomes : sequence of Outcome
        Its runs, from which the charts are drawn.

    Returns
    -------
    str
        HTML. Every name that a user chose is escaped.
    """
    drawn = styles(list(summary.algorithms))
    fleets = list(summary.fleets)
    return _template().render(
        title=_title(summary),
        facts=_facts(summary),
        sentences=answer(summary),
        legend=drawn,
        overview=[_overview_row(summary, name, style) for name, style in drawn.items()],
        fleets=[_section(summary, fleet, place, drawn) for place, fleet in enumerate(fleets)],
        band=summary.band[0].upper() + summary.band[1:],
        columns=COLUMNS,
        note=summary.settings.get("note", ""),
        troubles=troubles(summary.runs),
        settings=_settings(summary),
        runs=summary.runs,
        charts=_charts(summary, outcomes),
        colours=COLOURS,
        colours_on_dark=COLOURS_ON_DARK,
        css=Markup(_resource("page.css")),
        vega=Markup(_vega()),
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_resource("page.html"))


@cache
def _vega() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script that cannot close its own element."""
    script = vl_convert.javascript_bundle()  # type: ignore[call-arg] # its stub forgets a default
    return script.replace("</script", "<\\/script")


def _resource(name: str) -> str:
    return resources.files("distsgd.report").joinpath(name).read_text(encoding="utf-8")


def _title(summary: Summary) -> str:
    problem = summary.settings["problem"]
    data = problem.get("data")
    name = data.get("name") if isinstance(data, dict) else data
    return f"{problem['name']} on {name}" if name else str(problem["name"])


def _facts(summary: Summary) -> str:
    settings = summary.settings
    (kind, amount), = settings["budget"].items()  # fmt: skip
    n_runs = f"{len(summary.runs)} runs of {amount:g} {kind}"
    return (
        f"{n_runs} each, batch {settings['batch']}, seeds {', '.join(map(str, settings['seeds']))}"
    )


def _overview_row(summary: Summary, algorithm: str, style: Style) -> dict[str, Any]:
    found = {one.fleet: one for one in summary.results if one.algorithm == algorithm}
    row = [_overview_cell(summary.of_fleet(fleet), found.get(fleet)) for fleet in summary.fleets]
    return {"algorithm": algorithm, "style": style, "cells": row}


def _overview_cell(results: Sequence[Result], own: Result | None) -> _Cell:
    losses = [result.loss.median for result in results if result.loss is not None]
    if own is None or own.loss is None:
        return _Cell(MISSING, is_lowest=False)
    lowest = own.loss.median == min(losses) and math.isfinite(own.loss.median)
    return _Cell(number(own.loss.median), is_lowest=lowest)


def _section(summary: Summary, fleet: str, place: int, drawn: dict[str, Style]) -> dict[str, Any]:
    found = [result for result in summary.of_fleet(fleet) if result.algorithm in drawn]
    return {
        "name": fleet,
        "description": _joined(summary.fleets[fleet]),
        "charts": {kind: _chart_name(place, kind) for kind in ("seconds", "updates", "staleness")},
        "rows": [_Row(drawn[result.algorithm], cells(result)) for result in found],
    }


def _chart_name(place: int, kind: str) -> str:
    return f"{kind}-{place}"


def _charts(summary: Summary, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    algorithms = list(summary.algorithms)
    charts = {}
    for place, fleet in enumerate(summary.fleets):
        own = [
            outcome for outcome in outcomes if outcome.fleet == fleet and outcome.run is not None
        ]
        charts[_chart_name(place, "seconds")] = loss_chart(own, algorithms, "seconds")
        charts[_chart_name(place, "updates")] = loss_chart(own, algorithms, "update")
        charts[_chart_name(place, "staleness")] = staleness_chart(own, algorithms)
    return {name: _spec(chart.to_dict()) for name, chart in charts.items()}


def _spec(chart: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in chart.items() if key != "config"}


def _settings(summary: Summary) -> dict[str, dict[str, str]]:
    return {
        "Comparison": pairs(summary.settings),
        "Algorithms": {name: _joined(own) for name, own in summary.algorithms.items()},
        "Fleets": {name: _joined(own) for name, own in summary.fleets.items()},
        "Versions": summary.versions,
    }


def _joined(settings: dict[str, Any]) -> str:
    shown = {key: text for key, text in pairs(settings).items() if key not in {"kind", "rules"}}
    return ", ".join(f"{key} {text}" for key, text in shown.items())
