"""The notebook that tells the story of staleness: its cells are run here, one after the other."""

import ast
import json
from functools import cache
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import pytest

import distsgd as ds

NOTEBOOK = Path(__file__).parent.parent / "scripts" / "examples" / "staleness.ipynb"

pytestmark = pytest.mark.long


@cache
def cells() -> list[dict[str, Any]]:
    """Return the cells of the notebook."""
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


@cache
def shown() -> list[Any]:
    """Return what each cell of code shows: the value of its last line."""
    names: dict[str, Any] = {}
    sources = ["".join(cell["source"]) for cell in cells() if cell["cell_type"] == "code"]
    return [_run(source, names) for source in sources]


def _run(source: str, names: dict[str, Any]) -> Any:  # noqa: ANN401 # whatever the cell shows
    *lines, last = ast.parse(source).body
    assert isinstance(last, ast.Expr)
    exec(compile(ast.Module(lines, []), NOTEBOOK, "exec"), names)
    return eval(compile(ast.Expression(last.value), NOTEBOOK, "eval"), names)


def test_the_notebook_is_ten_cells_without_outputs() -> None:
    """The story has ten cells; what they show is not stored."""
    assert len(cells()) == 10
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells())
    assert len({cell["id"] for cell in cells()}) == 10


def test_every_cell_runs_and_shows_something() -> None:
    """One after the other, cells of code show a trace, tables, a chart and an answer."""
    kinds = [ds.Trace, pl.DataFrame, pl.DataFrame, alt.LayerChart, ds.Comparison, pl.DataFrame]
    assert [type(value) for value in shown()] == kinds


def test_the_notebook_tells_the_truth() -> None:
    """What the text of the notebook claims is what its cells show."""
    trace, stability, losses, _, answer, table = shown()
    assert 13 < trace.mean_staleness < 15
    assert (stability["loss below"] < 1e-6).all()
    assert (stability["loss above"] > 1e4).all()
    assert round(stability["bound"][0] / stability["bound"][-1]) == 21
    small, middle, large = losses.drop("algorithm").rows()
    assert large[0] < middle[0] < small[0]
    assert [next(n for n, loss in enumerate(row) if loss > 2 * row[0]) for row in (middle, large)] == [3, 2]
    assert max(small) < 1.05 * min(small)
    waits, bears, corrects = table["seconds_to_target"]
    assert max(bears, corrects) < waits / 2
    assert "delay-tolerant" in str(answer)
