"""What all pictures have in common: colours, dashes, axes and tables, for Vega-Lite through Altair.

An algorithm has one colour and one dash pattern, the same in every picture; neighbours in the list
differ in both, so that a picture can be read without seeing colours.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import altair as alt

from distsgd.experiment.outcome import Outcome
from distsgd.report.numbers.groups import finished, grouped
from distsgd.report.numbers.summary import Summary
from distsgd.run import Run

Row: TypeAlias = dict[str, Any]
Case: TypeAlias = tuple[str, str]
"""A problem and a fleet, by their names."""

COLOURS = ("#5f6368", "#0072b2", "#e69f00", "#d55e00", "#cc79a7", "#009e73", "#56b4e9", "#882255", "#999933")
"""Okabe and Ito's palette on white, with a neutral grey first and two of Tol's colours behind."""
COLOURS_ON_DARK = ("#b4b8bd", "#4c9be8", "#f0b429", "#ff7f50", "#e79ac8", "#2fc79a", "#8fd3ff", "#d06a9c", "#c5c552")
"""The same hues, light enough to be read on black."""
DASHES = ((1, 0), (7, 3), (2, 2))
GRAY = alt.ColorValue("gray")
"""Of what is no algorithm's."""

BOTH = "both-"
"""With this the names of pictures begin that show live and simulated runs together."""


class Unit(NamedTuple):
    """What progress is measured in: a column of a run's history, and the title of its axis."""

    column: str
    title: str


UNITS = {
    "seconds": Unit("seconds", "virtual time [s]"),
    "updates": Unit("update", "server updates"),
    "epochs": Unit("epoch", "epochs, of all workers together"),
    "bytes": Unit("bytes", "traffic [bytes]"),
}
"""By the name that a reader can choose, for simulated runs."""
WALL = Unit("wall_seconds", "wall time [s]")
"""Of live runs, instead of virtual seconds."""


class View(NamedTuple):
    """One way to show a picture: its chart, and the tables that the chart names.

    The first table is what the picture shows; others hold its marks, such as a target.
    """

    chart: dict[str, Any]
    tables: dict[str, list[Row]]


class Picture(NamedTuple):
    """A picture of the report.

    `case` is the problem and the fleet that it is about, or None if it is about several. A reader
    chooses one of the `views`.
    """

    name: str
    case: Case | None
    title: str
    note: str
    views: Mapping[str, View]


class Subject(NamedTuple):
    """What a picture of one problem on one fleet is drawn from: the comparison, and which of it."""

    summary: Summary
    outcomes: Sequence[Outcome]
    case: Case

    @property
    def algorithms(self) -> list[str]:
        """All algorithms of the comparison."""
        return list(self.summary.algorithms)

    @property
    def runs(self) -> dict[str, list[Run]]:
        """The finished runs of each algorithm."""
        own = [pair for pair in finished(self.outcomes) if (pair[0].problem, pair[0].fleet) == self.case]
        found = grouped(own, lambda pair: pair[0].algorithm)
        return {name: [run for _, run in pairs] for name, pairs in found.items()}

    @property
    def simulated(self) -> "Subject | None":
        """The same on the simulated fleet that a live one takes after, None if there is none."""
        problem, fleet = self.case
        simulated = self.summary.simulated_of.get(fleet)
        return None if simulated is None else self._replace(case=(problem, simulated))

    @property
    def target(self) -> float | None:
        """The training loss to reach, None if there is no target."""
        target = self.summary.targets.get(self.case[0])
        return None if target is None else target.loss

    def by_unit(self) -> Iterator[tuple[str, Unit, dict[str, list[Run]]]]:
        """Yield each unit in which a run has moved: its name, itself, and the runs that have it.

        Shared memory counts no bytes.
        """
        is_live = self.summary.engine_on(self.case[1]) != "simulate"
        for name, unit in (UNITS | {"seconds": WALL} if is_live else UNITS).items():
            runs = {
                label: own
                for label, several in self.runs.items()
                if (own := [run for run in several if math.isfinite(run.history[unit.column][-1])])
            }
            if any(run.history[unit.column][-1] > 0 for own in runs.values() for run in own):
                yield name, unit, runs


class Style(NamedTuple):
    """How an algorithm is drawn."""

    colour: str
    dash: tuple[int, int]


def styles(algorithms: Sequence[str]) -> dict[str, Style]:
    """Return the style of each algorithm; colours repeat with another dash pattern."""
    return {
        name: Style(COLOURS[place % len(COLOURS)], DASHES[(place + place // len(COLOURS)) % len(DASHES)])
        for place, name in enumerate(algorithms)
    }


def case_name(summary: Summary, case: Case) -> str:
    """Return what a reader calls `case`: its fleet, and its problem if there are several."""
    problem, fleet = case
    return f"{problem}, {fleet}" if len(summary.problems) > 1 else fleet


def drawn(table: str) -> alt.Chart:
    """Return a chart of a table, but for the rows of algorithms that the reader has hidden."""
    return marks(table).transform_filter("indexof(hidden, datum.algorithm) < 0")


def marks(table: str) -> alt.Chart:
    """Return a chart of a table that has no algorithms."""
    return alt.Chart(alt.NamedData(name=table))


def view(tables: dict[str, list[Row]], *layers: alt.Chart, height: int) -> View:
    """Return a view of `tables` in `layers`, as wide as its place; its schema is not checked."""
    # Altair's own way to put layers together copies each of them several times.
    chart = {
        "$schema": alt.SCHEMA_URL,
        "width": "container",
        "height": height,
        "params": [{"name": "hidden", "value": []}],
        "layer": [one.to_dict(validate=False, context={"top_level": False}) for one in layers],
    }
    return View(chart, {name: [_finite(row) for row in rows] for name, rows in tables.items()})


def _finite(row: Row) -> Row:
    """Return `row` with None for a number that is not finite, which JSON cannot hold."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }


def colour(algorithms: Sequence[str]) -> alt.Color:
    """Return the colours of all `algorithms` of a comparison, also of those that are not drawn."""
    return alt.Color("algorithm:N", legend=None, scale=alt.Scale(domain=list(algorithms)))


def dashes(algorithms: Sequence[str]) -> alt.StrokeDash:
    """Return the dash patterns of all `algorithms` of a comparison."""
    own = styles(algorithms)
    patterns = [list(own[name].dash) for name in algorithms]
    scale = alt.Scale(domain=list(algorithms), range=patterns)
    return alt.StrokeDash("algorithm:N", legend=None, scale=scale)


def per_algorithm(algorithms: Sequence[str], shown: Iterable[str]) -> alt.Y:
    """Return an axis with a line for each of `algorithms` that is `shown`, in their order."""
    names = [name for name in algorithms if name in set(shown)]
    return alt.Y("algorithm:N", sort=names, title=None, scale=alt.Scale(domain=names))


def scaled(low: float, high: float, **more: Any) -> alt.Scale:  # noqa: ANN401 # what Vega-Lite allows
    """Return a scale that ends where it is told to: logarithmic, unless it reaches down to 0."""
    kind: Literal["log", "linear"] = "log" if low > 0 else "linear"
    return alt.Scale(type=kind, domain=[low, high], **more)


def logarithmic(field: str, title: str, domain: Sequence[float], labels: str = "~s") -> alt.X:
    """Return a horizontal logarithmic axis that fits a narrow screen."""
    axis = alt.Axis(format=labels, labelOverlap=True, labelSeparation=8)
    scale = alt.Scale(type="log", domain=list(domain), nice=False)
    return alt.X(f"{field}:Q", title=title, scale=scale, axis=axis)


def told(*numbers: str, words: Sequence[str] = ()) -> list[alt.Tooltip]:
    """Return what a pointer is told: the algorithm, the numbers and the words in these fields."""
    texts, rest = ([alt.Tooltip(f"{field}:N") for field in fields] for fields in (["algorithm"], words))
    return [*texts, *(alt.Tooltip(f"{field}:Q", format=".4~g") for field in numbers), *rest]


def short(value: float) -> float:
    """Return `value` to the four digits that a picture can show."""
    return float(f"{value:.4g}")
