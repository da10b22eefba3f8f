import html
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any, TypeAlias

import pytest
from small_comparison import small

from distsgd.report.conclusions import conclusions
from distsgd.report.formatting import COLUMNS, cells, number, pairs
from distsgd.report.numbers.summary import Outcome, Summary, summarise
from distsgd.report.page import checks, columns, render
from distsgd.report.terminal import console, print_summary
from distsgd.run import Run
from distsgd.trace import Trace

MakeRun: TypeAlias = Callable[..., Run]
INF, NAN = math.inf, math.nan
SETTINGS = {
    "problem": {"name": "softmax", "data": "digits"},
    "budget": {"epochs": 2.0},
    "batch": 32,
    "seeds": [0, 1, 2],
    "evaluations": 2,
    "target": 0.5,
}


@pytest.fixture
def outcomes(make_run: MakeRun) -> list[Outcome]:
    """Return two algorithms on one fleet, three seeds: one falls, one diverges twice."""
    name = "<b>bold</b> & co"
    problem = SETTINGS["problem"]
    lost = make_run([2.0, 9.0, NAN], status="diverged", problem=problem)
    return [
        Outcome("steady", "machines", 0, make_run([2.0, 0.6, 0.3], problem=problem)),
        Outcome("steady", "machines", 1, make_run([2.0, 0.4, 0.2], seed=1, problem=problem)),
        Outcome("steady", "machines", 2, make_run([2.0, 0.9, 0.8], seed=2, problem=problem)),
        Outcome(name, "machines", 0, lost),
        Outcome(name, "machines", 1, lost),
        Outcome(name, "machines", 2, error="ValueError: </script><script>alert(1)</script>"),
    ]


@pytest.fixture
def summary(outcomes: list[Outcome]) -> Summary:
    """Return the numbers of `outcomes`."""
    return summarise(outcomes, SETTINGS, is_complete=True)


def test_a_summary_by_hand(summary: Summary) -> None:
    """Final values, times to target, statuses and failures are those counted by hand."""
    steady, lost = summary.results
    assert steady.loss == (0.2, 0.3, 0.8)
    assert steady.test_loss == pytest.approx((1.2, 1.3, 1.8))
    assert steady.accuracy == (0.5, 0.5, 0.5)
    assert steady.status == {"done": 3}
    assert steady.time_to_target is not None
    assert (steady.time_to_target.reached, steady.time_to_target.median_s) == (2, 2.0)
    assert lost.loss == (INF, INF, INF)
    assert lost.accuracy == (-INF, -INF, -INF)
    assert (lost.finished, lost.failed, lost.status) == (2, 1, {"diverged": 2})
    assert [line.status for line in summary.runs] == ["done"] * 3 + ["diverged"] * 2 + ["failed"]
    assert summary.runs[3].diverged_at == 2


def test_the_answer_names_what_the_numbers_say(summary: Summary) -> None:
    """The sentences give the lowest loss with its band, the first to the target, and the losses."""
    text = " ".join(conclusions(summary))
    assert "steady has the least median time to the target loss of 0.500, 2 virtual seconds" in text
    assert "after equal budgets (2 epochs) steady with 0.300 [0.200, 0.800]" in text
    assert "Most runs of <b>bold</b> & co diverged." in text
    assert "2 of 6 runs diverged" in text
    assert "1 of 6 runs failed" in text


def test_an_incomplete_comparison_says_so(outcomes: list[Outcome]) -> None:
    """A comparison that was stopped says so where its answer stands."""
    assert "stopped" in conclusions(summarise(outcomes, SETTINGS, is_complete=False))[-1]


class Links(HTMLParser):
    """Collects what a page would load, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.n_scripts = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Count the scripts, and note each element that could load something."""
        self.n_scripts += tag == "script"
        links = [value or "" for name, value in attrs if name in {"src", "href"}]
        self.loaded += [link for link in links if not link.startswith("#")]
        self.loaded += [tag] * (tag in {"link", "iframe", "img", "object", "b"})


@pytest.fixture
def page(summary: Summary, outcomes: list[Outcome]) -> str:
    """Return the page of `outcomes`."""
    return render(summary, outcomes)


@pytest.mark.quick
def test_the_page_loads_nothing(page: str) -> None:
    """The page is one file below 2.5 MB that refers to no other."""
    found = Links(page)
    assert found.loaded == []
    assert len(page.encode()) < 2.5e6


@pytest.mark.quick
def test_the_page_escapes_names(page: str) -> None:
    """A name or an error with markup in it shows as text, in the page and in its data."""
    assert Links(page).n_scripts == 2
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; co" in page
    assert "<script>alert" not in page


def pictures_of(page: str) -> dict[str, dict[str, Any]]:
    """Return what the page draws, which is strict JSON without NaN or infinity."""
    (text,) = re.findall(r"^const pictures = (.*);$", page, flags=re.MULTILINE)
    content: dict[str, dict[str, Any]] = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in a chart"))
    return content


def test_the_page_has_a_picture_for_each_place(page: str) -> None:
    """Every place of a picture has its charts, and every chart has the tables that it names."""
    pictures = pictures_of(page)
    assert re.findall(r'data-picture="([^"]+)"', page) == list(pictures)
    for views in pictures.values():
        for view in views.values():
            named = set(re.findall(r'"data": \{"name": "([^"]+)"\}', json.dumps(view["chart"])))
            assert named <= view["tables"].keys()


def test_a_table_survives_its_columns() -> None:
    """Columns hold every value of a table, a text that is repeated only once."""
    table = [{"a": "x", "n": 1.5}, {"a": "y", "n": None}, {"a": "x", "n": 2}]
    assert columns(table) == {"a": {"of": ["x", "y"], "at": [0, 1, 0]}, "n": [1.5, None, 2]}
    assert columns([]) == {}


def test_the_page_offers_every_view_in_order() -> None:
    """The buttons of a picture are its views, in their order, and the first one is pressed."""
    page = render(*small())
    views = [name for own in pictures_of(page).values() if len(own) > 1 for name in own]
    offered = re.findall(r'data-view="([^"]*)"|<option>(.*?)</option>', page)
    assert [html.unescape(button or option) for button, option in offered] == views
    n_switches = sum(1 < len(own) <= 5 for own in pictures_of(page).values())
    assert len(re.findall(r'data-view="[^"]*" aria-pressed="true"', page)) == n_switches


def test_the_page_shows_what_is_there(summary: Summary, outcomes: list[Outcome]) -> None:
    """A heading, a link or a table stands on the page only if there is something under it."""
    bare, full = render(summary, outcomes), render(*small())
    for text in ("Sensitivity to the learning rate", "Speed-up", "What tuning tried", "#shared"):
        assert text not in bare
        assert text in full
    assert "A note." in full


def test_the_page_states_what_was_checked(outcomes: list[Outcome]) -> None:
    """The order of every run is verified for the page, and one that cannot be is named."""
    assert checks(outcomes)[0].startswith("The trace of 5 of 5 runs was verified")
    run = outcomes[0].run
    assert run is not None
    rows = run.trace.rows.copy()
    rows["read"] += 1
    wrong = [outcomes[0]._replace(run=replace(run, trace=Trace(rows, 1))), *outcomes[1:]]
    held, fault = checks(wrong)
    assert held.startswith("The trace of 4 of 5 runs")
    assert fault.startswith("steady on machines, seed 0: trace row")


def test_a_page_of_nothing_says_so() -> None:
    """Before any run has finished, or if all failed, the page says so and lists the failures."""
    settings = small().summary.settings
    for outcomes in ([], [Outcome("a", "machines", 0, error="out of luck")]):
        page = render(summarise(outcomes, settings, is_complete=False), outcomes)
        assert "No run has finished" in page
        assert ("out of luck" in page) == bool(outcomes)
        assert pictures_of(page) == {}


def test_the_page_lists_every_run_and_trial() -> None:
    """Each run stands on the page with its hash, and each trial with its rate."""
    summary, _ = small()
    page = render(*small())
    assert all(line.hash in page for line in summary.runs)
    assert page.count("learning_rate 3.20") >= len(summary.fleets) * len(summary.algorithms)


def test_the_page_lists_what_went_wrong(page: str) -> None:
    """Runs that diverged stand on the page with their update, failed ones with their error."""
    assert "seed 1: diverged, first seen at server update 2" in page
    assert "seed 2: failed ValueError" in page


def test_the_terminal_shows_names_as_they_are(outcomes: list[Outcome], capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets in a name are not taken for markup of the terminal."""
    named = [one._replace(algorithm="[red]x[/]") for one in outcomes[:1]]
    print_summary(summarise(named, SETTINGS, is_complete=True), console())
    assert "[red]x[/]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.123456, "0.123"),
        (12.345, "12.3"),
        (12345.6, "12346"),
        (1.5e-7, "1.50e-07"),
        (2e9, "2.00e+09"),
        (INF, "-"),
        (NAN, "-"),
        (None, "-"),
        (900.0, "900"),
    ],
)
def test_a_number_has_three_digits(value: float | None, text: str) -> None:
    """Numbers show three significant digits; what is not finite shows as a dash."""
    assert number(value) == text


def test_every_column_has_a_cell(summary: Summary) -> None:
    """A row of a table has as many cells as there are headings."""
    assert {len(cells(result)) for result in summary.results} == {len(COLUMNS)}


def test_nested_settings_become_flat() -> None:
    """A key within a key is named with a dot, and what was not set is left out."""
    nested = {"a": {"b": 1e6, "c": None}, "d": [1, 2]}
    assert pairs(nested) == {"a.b": "1000000", "d": "1, 2"}


def test_staleness_is_judged_on_those_that_are_stale(make_run: MakeRun) -> None:
    """Only algorithms that read stale parameters are said to suffer from staleness."""

    def stale(run: Run, by: int) -> Run:
        rows = run.trace.rows.copy()
        rows["read"] -= by
        return replace(run, trace=Trace(rows, 1))

    last = {"hurt": (0.2, 0.8), "robust": (0.2, 0.3), "fresh": (0.2, 99.0)}
    found = [
        Outcome(name, fleet, 0, stale(make_run([2.0, loss]), by if name != "fresh" else 0))
        for name, losses in last.items()
        for fleet, loss, by in zip(("near", "far"), losses, (0, 5), strict=True)
    ]
    summary = summarise(found, SETTINGS, is_complete=True)
    assert [(one.algorithm, one.fresh, one.fleet) for one in summary.growths] == [
        ("hurt", "near", "far"),
        ("robust", "near", "far"),
    ]
    assert [one.median for one in summary.growths] == pytest.approx([4.0, 1.5])
    text = conclusions(summary)[-1]
    assert text.startswith("From near to far, final training losses grew 1.50")
