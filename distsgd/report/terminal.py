"""Tables in the terminal: the same numbers as the page."""

from collections.abc import Iterable, Sequence

import polars as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from distsgd.experiment.trials import Tuned
from distsgd.report.formatting import COLUMNS, MISSING, cells, number, values_text
from distsgd.report.numbers.groups import grouped
from distsgd.report.numbers.summary import Summary

WIDE = 132
"""Columns of a table that is written into a file or a pipe."""

_SHOWN = ("algorithm", "time to target", "training loss", "accuracy", "mean staleness", "runs")


def console() -> Console:
    """Return the terminal, as wide as it is, or `WIDE` if the output is no terminal."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=WIDE)


def say(text: str, to: Console | None = None) -> None:
    """Print `text` as it is, by default on the terminal, which breaks its lines."""
    (to or console()).print(text, markup=False, highlight=False, soft_wrap=True)


def print_summary(summary: Summary, to: Console) -> None:
    """Print one table per problem and fleet, and what tuning chose."""
    for problem, fleet in summary.cases:
        rows = [dict(zip(COLUMNS, cells(result), strict=True)) for result in summary.of_fleet(fleet, problem)]
        title = fleet if len(summary.problems) < 2 else f"{fleet}, {problem}"
        print_table(title, _SHOWN, [[row[name] for name in _SHOWN] for row in rows], to)
    _print_tuned(summary.tuned, to)
    to.print(Text(f"Final values: {summary.band}."), style="dim")


def _print_tuned(tuned: Sequence[Tuned], to: Console) -> None:
    """Print a table per problem: what was chosen for each algorithm on each fleet."""
    for problem, own in grouped(tuned, lambda one: one.problem).items():
        fleets = list(dict.fromkeys(one.fleet for one in own))
        rows = []
        for name, several in grouped(own, lambda one: one.algorithm).items():
            found = {one.fleet: _values(one) for one in several}
            rows.append([name, *(found.get(fleet, MISSING) for fleet in fleets)])
        title = f"{problem}: the best of {max(one.n_trials for one in own)} trials"
        print_table(title, ["algorithm", *fleets], rows, to)


def _values(tuned: Tuned) -> str:
    values = values_text(tuned.parameters)
    return f"{values} (edge)" if tuned.at_edge else values


def print_history(history: pl.DataFrame, to: Console) -> None:
    """Print the history of a run, a line per evaluation."""
    rows = [[number(value) for value in row] for row in history.iter_rows()]
    print_table("history", history.columns, rows, to)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], to: Console) -> None:
    """Print `rows` of text under `columns`; nothing in them is taken for markup."""
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    for place, name in enumerate(columns):
        table.add_column(name, overflow="fold", no_wrap=place == 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    to.print(table)
