"""What a notebook shows: charts, short pages, one-line texts."""

import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote

import numpy as np
import polars as pl
import pytest
from small_comparison import NAME, small, small_pictures
from small_live import small_live

import distsgd as ds
from distsgd.report.notebook import chart, comparison_html
from distsgd.report.numbers.table import table
from distsgd.report.pictures.registry import pictures
from distsgd.run import HISTORY
from distsgd.trace import ROW, Trace

MakeRun: TypeAlias = Callable[..., ds.Run]
NAN = math.nan
FLEETS = {"machines": ds.Fleet(3, ds.exponential(1.0)), "stale": ds.fixed_staleness(2)}


@cache
def found() -> ds.Comparison:
    """Return two algorithms on two fleets, one with a name that is no text for a browser."""
    algorithms = {"serial": ds.algorithms.serial(0.1), "<script>x": ds.algorithms.downpour(0.1)}
    problem = ds.problems.quadratic([1.0, 2.0], noise=0.1)
    return ds.compare(algorithms, problem, FLEETS, updates=20, seeds=2, target=0.5)


class Page(HTMLParser):
    """What a browser makes of a page: its elements, its texts, and its images."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements, self.texts, self.images = set(), [], []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element, and the address of an image."""
        self.elements.add(tag)
        self.images += [value for name, value in attrs if name == "src"]

    def handle_data(self, data: str) -> None:
        """Note a text."""
        self.texts.append(data)


def test_a_chart_has_the_data_of_the_report() -> None:
    """Each view of each picture can be had, and holds the tables that the page has."""
    for picture in small_pictures():
        problem, fleet = picture.case or (None, None)
        for name, view in picture.views.items():
            own = chart(small().summary, small_pictures(), picture.name, name, problem=problem, fleet=fleet)
            assert own.to_dict()["datasets"] == view.tables


def test_a_comparison_plots_its_first_picture() -> None:
    """Without more words a plot is the loss on the first fleet, in the view that a page opens."""
    (first, *_) = (one for one in pictures(found().summary, found().outcomes) if one.name == "loss")
    assert found().plot().to_dict()["datasets"] == first.views["seconds"].tables
    stale = found().plot(fleet="stale", view="updates").to_dict()
    assert stale["title"] == "Training loss: stale"
    assert stale != found().plot(view="updates").to_dict()


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_chart_is_saved_without_a_network(tmp_path: Path, kind: str) -> None:
    """A chart writes itself as a picture."""
    found().plot("staleness").save(tmp_path / f"own.{kind}")
    start = {"png": b"\x89PNG", "svg": b"<svg"}
    assert (tmp_path / f"own.{kind}").read_bytes().startswith(start[kind])


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"picture": "los"}, "unknown picture 'los'; did you mean 'loss'?"),
        ({"fleet": "stail"}, "unknown fleet 'stail'; did you mean 'stale'?"),
        ({"problem": "quadratik"}, "did you mean 'quadratic'"),
        ({"view": "second"}, "unknown view 'second'; did you mean 'seconds'?"),
        (
            {"picture": "loss-against-staleness", "fleet": "stale"},
            "'loss-against-staleness' is there for all fleets together, not for 'stale'",
        ),
    ],
)
def test_a_picture_that_is_not_there(asked: dict[str, str], says: str) -> None:
    """A wrong name of a picture, fleet, problem or view is a sentence with the nearest one."""
    with pytest.raises(ds.ConfigError, match=re.escape(says)):
        found().plot(**asked)


def test_a_table_has_the_numbers_of_the_summary() -> None:
    """A row per result, with its median, the ends of its band, and its time to the target."""
    rows = found().table().to_dicts()
    assert len(rows) == len(found().summary.results) == 4
    for row, result in zip(rows, found().summary.results, strict=True):
        assert (row["problem"], row["fleet"], row["algorithm"]) == (result.problem, result.fleet, result.algorithm)
        assert (row["loss_low"], row["loss"], row["loss_high"]) == result.loss
        assert (row["updates"], row["mean_staleness"]) == (result.updates.median, result.staleness.mean)
        assert (row["seconds_to_target"], row["reached_target"]) == (
            result.time_to_target.median_s,
            result.time_to_target.reached,
        )
        assert row["accuracy"] is None  # a quadratic has none


def test_every_table_has_the_same_columns() -> None:
    """Live runs, failed ones and none at all make a table of the same columns and types."""
    schema = found().table().schema
    nothing = replace(found(), outcomes=[])
    assert nothing.table().schema == table(small().summary).schema == table(small_live().summary).schema == schema
    assert table(small_live().summary)["wall_seconds"].null_count() < table(small_live().summary).height
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    assert isinstance(found().table().to_pandas(), pandas.DataFrame)


def test_a_page_has_answer_table_and_picture() -> None:
    """The short page of a comparison says its answer, what each algorithm came to, and the loss."""
    page = Page(found()._repr_html_())
    text = " ".join(page.texts)
    for sentence in str(found()).splitlines():
        assert sentence in text
    assert {"table", "img"} <= page.elements
    (address,) = page.images
    head, _, image = address.partition(",")
    assert head == "data:image/svg+xml"
    assert "#" not in image  # an address ends there
    assert unquote(image).startswith("<svg")
    assert "Training loss: machines" in unquote(image)


def test_names_of_users_are_text() -> None:
    """No name makes an element of a page, and a page loads nothing."""
    for page in (found()._repr_html_(), comparison_html(small().summary, small_pictures())):
        assert {"script", "b"}.isdisjoint(Page(page).elements)
        assert "<script" not in page
        assert all(address.startswith("data:") for address in Page(page).images)
    assert "<script>x" in " ".join(Page(found()._repr_html_()).texts)
    assert NAME in " ".join(Page(comparison_html(small().summary, small_pictures())).texts)


def test_a_page_is_light() -> None:
    """Nine algorithms of forty evaluations each make a page of less than 300 kB."""
    rates = {f"rate {place}": ds.algorithms.downpour(0.02 * (1 + place)) for place in range(9)}
    many = ds.compare(rates, ds.problems.quadratic([1.0, 0.1], noise=0.1), FLEETS["machines"], updates=200, seeds=3)
    assert 20_000 < len(many._repr_html_()) < 300_000


def shown(value: ds.Run | Trace | ds.Comparison) -> tuple[str, str]:
    """Return the two texts of a value that a notebook asks for."""
    return repr(value), value._repr_html_()


@pytest.mark.parametrize(
    ("losses", "settings"),
    [
        ([1.0, 0.5, 0.25], {}),
        ([1.0, 1e9, NAN], {"status": "diverged"}),
        ([NAN], {"status": "diverged"}),
        ([math.inf, -math.inf], {"status": "diverged"}),
        ([1.0], {"status": "stopped"}),
        ([0.0, 0.0], {}),
        ([1.0, 0.5], {"fleet": {"kind": "local", "workers": 2}}),
        ([1.0, 0.5], {"fleet": {"kind": "shared_memory"}}),
        ([1.0, 0.5], {"problem": {"name": "<script>y"}}),
    ],
)
def test_every_run_can_be_shown(make_run: MakeRun, losses: list[float], settings: dict[str, str]) -> None:
    """Whatever a run came to, it has a short text and a page, and it says how it ended."""
    run = make_run(losses, **settings)
    for text in shown(run):
        assert run.status in text
        assert "<script>" not in text or text == repr(run)
    assert len(repr(run)) < 100


def test_a_run_without_a_history_can_be_shown(make_run: MakeRun) -> None:
    """A run that was never evaluated, of a server that served nobody, has no picture."""
    run = make_run([1.0])
    empty = replace(run, history=run.history.clear(), trace=Trace(np.empty(0, ROW), 1))
    assert list(empty.history.columns) == list(HISTORY)
    assert "<img" not in shown(empty)[1] + shown(empty.trace)[1]
    with pytest.raises(ds.ConfigError, match="no run has come further than its start"):
        empty.plot()


def test_a_page_is_no_wider_for_many_layers(make_run: MakeRun) -> None:
    """Columns that a history has for each layer are not in the table of its run."""
    run = make_run([1.0, 0.5])
    layered = replace(run, history=run.history.with_columns(pl.lit(1.0).alias("gradient_norm/head")))
    assert Page(layered._repr_html_()).texts == Page(run._repr_html_()).texts


def test_a_run_plots_what_the_report_has(make_run: MakeRun) -> None:
    """A run's chart shows its own losses and nothing else; a live run's time is the wall's."""
    run = make_run([1.0, 0.5, 0.25])
    bands = run.plot("loss", view="updates").to_dict()["datasets"]["bands"]
    assert [(row["position"], row["median"]) for row in bands] == [(1.0, 0.5), (2.0, 0.25)]
    assert "virtual time [s]" in str(run.plot().to_dict())
    live = make_run([1.0, 0.5], fleet={"kind": "local", "workers": 2})
    assert "wall time [s]" in str(live.plot().to_dict())
    with pytest.raises(ds.ConfigError, match="unknown picture 'los'; did you mean 'loss'"):
        run.plot("los")


def test_a_comparison_has_one_line() -> None:
    """The representation of a comparison says what it compared, how runs ended and their losses."""
    losses = sorted(one.run.history["loss"][-1] for one in found().outcomes)
    ends = f"losses {losses[0]:.4g} to {losses[-1]:.4g}"
    assert repr(found()) == f"Comparison(2 algorithms, 2 fleets, 2 seeds; 8 done; {ends})"
    nothing = replace(found(), outcomes=[])
    assert repr(nothing) == "Comparison(0 algorithms, 0 fleets, 0 seeds; no run)"
    assert "<img" not in shown(nothing)[1]
    failed = replace(found(), outcomes=[one._replace(run=None, error="<b>x") for one in found().outcomes])
    assert "8 failed" in shown(failed)[0]
    assert "<b>" not in shown(failed)[1]


def test_a_trace_shows_how_stale_it_is() -> None:
    """The page of a trace has its counts and a picture of staleness."""
    trace = found().outcomes[-1].run.trace
    text, page = shown(trace)
    assert f"mean staleness {trace.staleness.mean():.3g})" in text
    assert text in " ".join(Page(page).texts)
    assert "staleness [versions]" in unquote(Page(page).images[0])


WITHOUT_CHARTS = """
import sys
import distsgd as ds
run = ds.simulate(ds.algorithms.serial(0.1), ds.problems.quadratic([1.0, 2.0]), ds.Fleet(1), updates=5)
repr(run)
assert "altair" not in sys.modules and "distsgd.report.notebook" not in sys.modules
assert "<img" in run._repr_html_()
assert "<img" in run.trace._repr_html_()
"""


def test_charts_are_loaded_when_they_are_asked_for() -> None:
    """A run that nobody looks at loads no charts, and one that was never compared can be shown."""
    subprocess.run([sys.executable, "-c", WITHOUT_CHARTS], check=True)
