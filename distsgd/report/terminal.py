"""Tables in the terminal: the same numbers as the page."""

from collections.abc import Iterable, Sequence

import polars as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from distsgd.report.summary import Summary
from distsgd.report.text import COLUMNS, MISSING, cells, number
from distsgd.report.trials import Tuned

WIDE = 132
"""Columns of a table that is written into a file or a pipe."""

_SHOWN = ("algorithm", "training loss", "accuracy", "time to target", "mean staleness", "runs")
_TUNED = ("algorithm", "problem", "fleet", "best", "loss within twice the best", "trials")


def console() -> Console:
    """Return the terminal, as wide as it is, or `WIDE` if the output is no terminal."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=WIDE)


def print_summary(summary: Summary, to: Console) -> None:
    """Print one table per problem and fleet, and what tuning chose.

    Parameters
    ----------
    summary : Summary
        The numbers of a comparison.
    to : Console
        Where to print.
    """
    for problem, fleet in summary.cases:
        results = summary.of_fleet(fleet, problem)
        rows = [dict(zip(COLUMNS, cells(result), strict=True)) for result in results]
        title = fleet if len(summary.problems) < 2 else f"{fleet}, {problem}"
        print_table(title, _SHOWN, [[row[name] for name in _SHOWN] for row in rows], to)
    if summary.tuned:
        print_table("tuned", _TUNED, [_tuned_cells(one) for one in summary.tuned], to)
    to.print(Text(f"Final values: {summary.band}."), style="dim")


def _tuned_cells(tuned: Tuned) -> list[str]:
    values = ", ".join(f"{name} {number(value)}" for name, value in tuned.parameters.items())
    near = tuned.tolerance
    return [
        tuned.algorithm, tuned.problem, tuned.fleet, values + " (edge)" * bool(tuned.at_edge),
        f"{number(near.low)} to {number(near.high)}" if near else MISSING,
        str(tuned.n_trials),
    ]  # fmt: skip


def print_history(history: pl.DataFrame, to: Console) -> None:
    """Print the history of a run, a line per evaluation."""
    rows = [[number(value) for value in row] for row in history.iter_rows()]
    print_table("history", history.columns, rows, to)


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], to: Console
) -> None:
    """Print `rows` of text under `columns`; nothing in them is taken for markup."""
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    for place, name in enumerate(columns):
        table.add_column(name, overflow="fold", no_wrap=place == 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    to.print(table)
