"""What a notebook shows of a result: charts, and short pages of answer, table and main picture.

All of it is what the report is made of. A page needs neither network nor script, and its picture
is an image of its own: whatever a user's names hold is text there.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

import altair as alt

from distsgd.errors import ConfigError, check_name
from distsgd.experiment.outcome import Outcome
from distsgd.report.conclusions import conclusions
from distsgd.report.figure_files import content, specification, title_of
from distsgd.report.formatting import few, number
from distsgd.report.numbers.engines import engine_of
from distsgd.report.numbers.summary import Summary, summarise
from distsgd.report.page import overview, template
from distsgd.report.pictures.charts import Picture, View, case_name
from distsgd.report.pictures.registry import pictures
from distsgd.report.pictures.staleness import share_of_versions, strips
from distsgd.run import HISTORY, Run
from distsgd.trace import Trace


class _Figure(NamedTuple):
    """A picture on a short page: its title, and the image itself as an address."""

    title: str
    address: str


def chart(
    summary: Summary,
    drawn: Sequence[Picture],
    name: str,
    view: str | None = None,
    *,
    problem: str | None = None,
    fleet: str | None = None,
) -> alt.LayerChart:
    """Return the picture `name` among those that are `drawn`, with a title and a legend.

    It is that of the first problem and fleet that have it, unless they are given, and in the first
    of its views. An unknown name is a `ConfigError`.
    """
    if not drawn:
        raise ConfigError("there is no picture: no run has come further than its start")
    check_name("picture", name, {one.name for one in drawn})
    named = [one for one in drawn if one.name == name]
    picture = _chosen(summary, named, problem, fleet)
    shown = next(iter(picture.views)) if view is None else view
    check_name("view", shown, picture.views)
    return alt.LayerChart.from_dict(specification(picture.views[shown], title_of(summary, picture)), validate=False)


def _chosen(summary: Summary, named: Sequence[Picture], problem: str | None, fleet: str | None) -> Picture:
    """Return the first of some pictures of one name that is about a problem and a fleet."""
    asked = {place: name for place, name in enumerate((problem, fleet)) if name is not None}
    for place, name in asked.items():
        check_name(("problem", "fleet")[place], name, {case[place] for case in summary.cases})
    for one in named:
        if all(one.case is not None and one.case[place] == name for place, name in asked.items()):
            return one
    own = ["all fleets together" if one.case is None else case_name(summary, one.case) for one in named]
    given = " and ".join(map(repr, asked.values()))
    raise ConfigError(f"the picture {named[0].name!r} is there for {few(own, 'fleets')}, not for {given}")


def comparison_html(summary: Summary, drawn: Sequence[Picture]) -> str:
    """Return a comparison as HTML: its answer, the overview, and the loss on its first fleet."""
    columns = ["algorithm", *(case_name(summary, case) for case in summary.cases)]
    rows = [
        [name, *(", ".join(filter(None, (cell.text, cell.below))) for cell in cells)]
        for name, cells in overview(summary).items()
    ]
    return _page(conclusions(summary), columns, rows, _loss(summary, drawn))


def run_chart(run: Run, picture: str, view: str | None) -> alt.LayerChart:
    """Return a picture of a run: that of a comparison of this run alone."""
    return chart(*_alone(run), picture, view)


def run_html(run: Run) -> str:
    """Return a run as HTML: how it ended, where it came to, and its loss."""
    rows = run.history.select(HISTORY.keys()).tail(1).to_dicts()
    last = {name: value for row in rows for name, value in row.items() if math.isfinite(value)}
    facts = last | _order(run.trace)
    return _page([repr(run)], list(facts), [_texts(facts)], _loss(*_alone(run)))


def trace_html(trace: Trace) -> str:
    """Return a trace as HTML: its counts, and how stale its updates were."""
    facts = {"messages": len(trace.rows), "updates": trace.n_updates, "workers": trace.workers} | _order(trace)
    figure = None
    if trace.n_updates:
        stale = strips(["updates"], {"updates": trace.staleness}, share_of_versions, "staleness [versions]")
        figure = _figure(stale, "Staleness")
    return _page([repr(trace)], list(facts), [_texts(facts)], figure)


def _alone(run: Run) -> tuple[Summary, list[Picture]]:
    """Return the numbers and the pictures of a comparison of this run alone."""
    engine, workers = engine_of(run), run.trace.workers
    fleet = f"{workers} worker{'s' * (workers != 1)}"
    problem = run.settings.get("problem", {}).get("name", "")
    one = Outcome(run.settings["algorithm"]["name"], fleet, run.settings["seed"], run, problem=problem)
    live = {fleet: {"fleet": "", "engine": engine, "machines": run.settings["fleet"]}}
    outcomes = [] if run.history.is_empty() else [one]
    summary = summarise(outcomes, {} if engine == "simulate" else {"live": live}, is_complete=True)
    return summary, pictures(summary, outcomes)


def _order(trace: Trace) -> dict[str, float]:
    largest = {"largest staleness": trace.staleness.max()} if trace.n_updates else {}
    return {"mean staleness": trace.mean_staleness} | largest | {"dropped": trace.n_dropped, "lost": trace.n_lost}


def _texts(facts: Mapping[str, float]) -> list[str]:
    return [number(value) for value in facts.values()]


def _loss(summary: Summary, drawn: Sequence[Picture]) -> _Figure | None:
    """Return the first picture of the loss, in its first view, None if there is none."""
    for one in drawn:
        if one.name == "loss":
            return _figure(next(iter(one.views.values())), title_of(summary, one))
    return None


def _figure(view: View, title: str) -> _Figure:
    # An SVG that stood in the page itself would share the names of its parts with its neighbours.
    return _Figure(title, "data:image/svg+xml," + quote(content(view, title, "svg"), safe=" ,:;=/()"))


def _page(
    sentences: Sequence[str], columns: Sequence[str], rows: Sequence[Sequence[str]], figure: _Figure | None
) -> str:
    return template("notebook.html").render(sentences=sentences, columns=columns, rows=rows, figure=figure)
