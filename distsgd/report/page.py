"""The report as one HTML file: offline, in light and dark, on wide and narrow screens, in print."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from itertools import chain
from typing import Any, NamedTuple

import jinja2
import vl_convert
from markupsafe import Markup

from distsgd.errors import TraceError
from distsgd.experiment.outcome import Outcome
from distsgd.report.conclusions import conclusions
from distsgd.report.formatting import (
    MISSING,
    TRIAL_COLUMNS,
    cells,
    headings,
    number,
    pairs,
    time_text,
    trial_cells,
    troubles,
)
from distsgd.report.numbers.groups import finished, grouped
from distsgd.report.numbers.summary import Result, Summary
from distsgd.report.pictures.charts import BOTH, COLOURS, COLOURS_ON_DARK, Case, Picture, Row, case_name, styles
from distsgd.report.pictures.registry import pictures
from distsgd.run import Run


class Cell(NamedTuple):
    """What an algorithm came to in one case: a number, and a smaller one below it."""

    text: str
    below: str
    is_lowest: bool


class _Table(NamedTuple):
    """Results of one fleet on one engine: what it is called, its headings and its rows."""

    caption: str
    columns: list[str]
    rows: list[list[str]]


class _Figure(NamedTuple):
    """A picture on the page: its key, what stands around it, and the names of its views."""

    key: str
    title: str
    note: str
    views: list[str]
    is_wide: bool


def render(summary: Summary, outcomes: Sequence[Outcome]) -> str:
    """Return the page of a comparison as HTML. Every name that a user chose is escaped."""
    keyed = {f"picture-{n}": one for n, one in enumerate(pictures(summary, outcomes))}
    return template("page.html").render(
        title=_title(summary),
        facts=_facts(summary),
        note=summary.settings.get("note", ""),
        sentences=conclusions(summary),
        legend=styles(list(summary.algorithms)),
        cases=[case_name(summary, case) for case in summary.cases],
        has_target=any(one.loss is not None for one in summary.targets.values()),
        overview=overview(summary),
        shared=_figures(summary, keyed, [None]),
        sections=[_section(summary, together, keyed) for together in _together(summary)],
        troubles=troubles(summary.runs),
        settings=_settings(summary),
        trial_columns=TRIAL_COLUMNS,
        trials=[trial_cells(trial) for trial in summary.trials],
        runs=summary.runs,
        checks=checks(outcomes),
        pictures={key: _specs(picture) for key, picture in keyed.items()},
        colours=COLOURS,
        colours_on_dark=COLOURS_ON_DARK,
        css=Markup(_resource("page.css")),
        vega=Markup(_vega()),
    )


@cache
def template(name: str) -> jinja2.Template:
    """Return a template of this room, which escapes whatever it is given."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # Views keep their order: the first one is shown first.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment.from_string(_resource(name))


@cache
def _vega() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script that cannot close its own element."""
    script = vl_convert.javascript_bundle()  # type: ignore[call-arg] # its stub forgets a default
    return script.replace("</script", "<\\/script")


def _resource(name: str) -> str:
    return resources.files("distsgd.report").joinpath(name).read_text(encoding="utf-8")


def _title(summary: Summary) -> str:
    names = [_problem_name(settings) for settings in summary.problems.values()]
    return ", ".join(dict.fromkeys(names)) or "No run has finished"


def _problem_name(settings: Mapping[str, Any]) -> str:
    data = settings.get("data")
    name = data.get("name") if isinstance(data, dict) else data
    return f"{settings['name']} on {name}" if name else str(settings["name"])


def _facts(summary: Summary) -> str:
    settings = summary.settings
    ((kind, amount),) = settings["budget"].items()
    n_runs = f"{len(summary.runs)} runs of {amount:g} {kind}"
    return f"{n_runs} each, batch {settings['batch']}, seeds {', '.join(map(str, settings['seeds']))}"


def overview(summary: Summary) -> dict[str, list[Cell]]:
    """Return what each algorithm came to, a cell for each problem and fleet."""
    return {name: _overview(summary, name) for name in summary.algorithms}


def _overview(summary: Summary, algorithm: str) -> list[Cell]:
    found = {(one.problem, one.fleet): one for one in summary.results if one.algorithm == algorithm}
    return [_overview_cell(summary.of_fleet(case[1], case[0]), found.get(case)) for case in summary.cases]


def _overview_cell(results: Sequence[Result], own: Result | None) -> Cell:
    if own is None or own.loss is None:
        return Cell(MISSING, "", is_lowest=False)
    least = min(_judged(result) for result in results if result.loss is not None)
    lowest = _judged(own) == least and math.isfinite(least)
    if own.time_to_target is None:
        return Cell(number(own.loss.median), "", is_lowest=lowest)
    return Cell(time_text(own), f"loss {number(own.loss.median)}", is_lowest=lowest)


def _judged(result: Result) -> float:
    """Return the median time to the target of a result, or its final loss without a target."""
    if result.time_to_target is not None:
        time = result.time_to_target.median_s
        return math.inf if time is None else time
    return math.inf if result.loss is None else result.loss.median


def _together(summary: Summary) -> list[list[Case]]:
    """Return the cases section by section: a live fleet stands with the one it takes after."""
    return list(grouped(summary.cases, lambda case: (case[0], summary.simulated_of.get(case[1], case[1]))).values())


def _section(summary: Summary, together: Sequence[Case], keyed: Mapping[str, Picture]) -> dict[str, Any]:
    return {
        "name": case_name(summary, together[0]),
        "descriptions": [_described(summary, case, among=len(together)) for case in together],
        "figures": _figures(summary, keyed, together),
        "tables": [_table(summary, case) for case in together],
    }


def _described(summary: Summary, case: Case, among: int) -> str:
    text = _joined(summary.fleets.get(case[1], {}))
    return text if among == 1 else f"{_kind(summary, case[1]).capitalize()}: {text}"


def _kind(summary: Summary, fleet: str) -> str:
    """Return what runs on `fleet` are, and where, in a word or two."""
    words = {"simulate": "simulated", "local": "live", "ray": "live on Ray"}
    return words[summary.engine_on(fleet)]


def _table(summary: Summary, case: Case) -> _Table:
    problem, fleet = case
    rows = [cells(one) for one in summary.of_fleet(fleet, problem) if one.algorithm in summary.algorithms]
    return _Table(case_name(summary, case), headings(summary.engine_on(fleet)), rows)


def _figures(summary: Summary, keyed: Mapping[str, Picture], together: Sequence[Case | None]) -> list[_Figure]:
    """Return the pictures of some cases: those of one kind next to each other."""
    own = {key: one for key, one in keyed.items() if one.case in together}
    # The last case has a kind that the others have not: what it shares with the first.
    by_case = [[one.name for one in own.values() if one.case == case] for case in together]
    kinds = list(dict.fromkeys(chain(*reversed(by_case))))
    ordered = sorted(own.items(), key=lambda item: kinds.index(item[1].name))
    return [
        _Figure(
            key,
            _picture_title(summary, picture, among=len(together)),
            picture.note,
            list(picture.views),
            is_wide=picture.name == "timeline",
        )
        for key, picture in ordered
    ]


def _picture_title(summary: Summary, picture: Picture, among: int) -> str:
    """Return the title of a picture, which says whose it is where several cases stand together."""
    if among == 1 or picture.case is None or picture.name.startswith(BOTH):
        return picture.title
    return f"{picture.title}, {_kind(summary, picture.case[1])}"


def _specs(picture: Picture) -> dict[str, Any]:
    return {
        name: {"chart": view.chart, "tables": {table: columns(rows) for table, rows in view.tables.items()}}
        for name, view in picture.views.items()
    }


def columns(rows: Sequence[Row]) -> dict[str, Any]:
    """Return a table column by column, which takes a third of the room: a list per column.

    For a column of text, its different texts, ``of``, and which of them each row has, ``at``.
    """
    names = dict.fromkeys(chain.from_iterable(rows))
    return {name: _column([row.get(name) for row in rows]) for name in names}


def _column(values: list[Any]) -> Any:  # noqa: ANN401 # JSON
    if not all(isinstance(value, str) for value in values):
        return values
    places = {text: place for place, text in enumerate(dict.fromkeys(values))}
    return {"of": list(places), "at": [places[value] for value in values]}


def checks(outcomes: Sequence[Outcome]) -> list[str]:
    """Return what the report itself has checked: the order of service of every run.

    A sentence on the orders that hold, and one on each that does not.
    """
    runs = finished(outcomes)
    wrong = [text for outcome, run in runs if (text := _fault(outcome, run))]
    held = (
        f"The trace of {len(runs) - len(wrong)} of {len(runs)} runs was verified: times and "
        "versions never go back, every push has its pull, and staleness is conserved."
    )
    return [held, *wrong]


def _fault(outcome: Outcome, run: Run) -> str:
    try:
        run.trace.verify()
    except TraceError as error:
        return f"{outcome.algorithm} on {outcome.fleet}, seed {outcome.seed}: {error}"
    return ""


def _settings(summary: Summary) -> dict[str, dict[str, str]]:
    return {
        "Comparison": pairs({key: own for key, own in summary.settings.items() if key != "histograms"}),
        "Problems": {name or "-": _joined(own) for name, own in summary.problems.items()},
        "Targets": {name or "-": f"{number(own.loss)}, {own.origin}" for name, own in summary.targets.items()},
        "Algorithms": {name: _joined(own) for name, own in summary.algorithms.items()},
        "Fleets": {name: _joined(own) for name, own in summary.fleets.items()},
        "Versions": summary.versions,
    }


_NOT_SHOWN = {"kind", "reads", "sparse", "lock_free", "schedule.identity", "identity", "token"}


def _joined(settings: Mapping[str, Any]) -> str:
    shown = pairs(dict(settings)).items()
    kept = [f"{key} {text}" for key, text in shown if key not in _NOT_SHOWN and not key.startswith("rules.")]
    return ", ".join(kept)
