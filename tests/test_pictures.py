import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any, TypeAlias

import altair as alt
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_comparison import RATES, small, small_pictures

from distsgd.algorithm import Pull, Push, Step
from distsgd.order.fleet import Fleet
from distsgd.order.laws import exponential
from distsgd.order.schedule import schedule
from distsgd.report.figure_files import specification
from distsgd.report.numbers.summary import Outcome, Summary, summarise
from distsgd.report.pictures.charts import COLOURS, DASHES, UNITS, Picture, Subject, View, styles
from distsgd.report.pictures.classes import class_picture
from distsgd.report.pictures.learning_rate import largest_rate, sensitivity_picture
from distsgd.report.pictures.loss import loss_picture, thinned
from distsgd.report.pictures.registry import pictures
from distsgd.report.pictures.staleness import read_ages
from distsgd.report.pictures.time_to_target import target_picture
from distsgd.run import Run
from distsgd.statistics.spreads import Band
from distsgd.trace import Trace

MakeRun: TypeAlias = Callable[..., Run]
CASE = ("", "machines")
NAN = math.nan


@cache
def found() -> dict[tuple[str, str], Picture]:
    """Return the pictures of the small comparison by name and fleet."""
    return {(one.name, one.case[1] if one.case else ""): one for one in small_pictures()}


def views() -> Iterator[View]:
    """Yield every view of the small comparison."""
    for picture in found().values():
        yield from picture.views.values()


@pytest.fixture
def outcomes(make_run: MakeRun) -> list[Outcome]:
    """Return an algorithm that meets 0.5 in two of three runs, and one that diverges."""
    lost = make_run([2.0, 9.0, NAN], status="diverged")
    return [
        Outcome("steady", "machines", 0, make_run([2.0, 0.6, 0.3])),
        Outcome("steady", "machines", 1, make_run([2.0, 0.4, 0.2], seed=1)),
        Outcome("steady", "machines", 2, make_run([2.0, 0.9, 0.8], seed=2)),
        Outcome("lost", "machines", 0, lost),
        Outcome("lost", "machines", 1, lost),
    ]


def summary_of(outcomes: list[Outcome], target: float | None = 0.5) -> Summary:
    """Return the numbers of `outcomes`."""
    return summarise(outcomes, {"target": target}, is_complete=True)


def test_an_algorithm_has_one_style() -> None:
    """Up to 27 algorithms differ in colour or dash, and neighbours differ in both."""
    drawn = list(styles([str(place) for place in range(len(COLOURS) * len(DASHES))]).values())
    assert len(set(drawn)) == len(drawn)
    assert all(one.colour != next_.colour and one.dash != next_.dash for one, next_ in pairwise(drawn))


def encodings(part: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 # JSON
    """Yield what is encoded by the name of an algorithm, anywhere in a chart."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key == "color" and isinstance(value, dict) and value.get("field") == "algorithm":
                yield value
            yield from encodings(value)
    elif isinstance(part, list):
        for one in part:
            yield from encodings(one)


def test_an_algorithm_has_the_same_colour_everywhere() -> None:
    """Every chart that colours algorithms lists all of them in one order."""
    names = list(small().summary.algorithms)
    domains = [one["scale"]["domain"] for view in views() for one in encodings(view.chart)]
    assert len(domains) > 50
    assert all(domain == names for domain in domains)


def test_every_chart_follows_the_schema_of_vega_lite() -> None:
    """What is drawn without a check is valid Vega-Lite, alone in its file too."""
    for picture in {one.name: one for one in found().values()}.values():
        view = next(iter(picture.views.values()))
        alt.Chart.from_dict(specification(view, "A title"))


def test_every_picture_is_there() -> None:
    """A comparison that was tuned on fleets of several sizes and stalenesses has all pictures."""
    names = {name for name, _ in found()}
    assert names == {
        "loss",
        "time-to-target",
        "ratios",
        "staleness",
        "timeline",
        "loss-against-staleness",
        "speed-up",
        "profiles",
        "learning-rate-map",
        "sensitivity",
    }
    assert all(next(iter(view.tables.values())) for view in views())


def test_a_picture_without_data_is_left_out(outcomes: list[Outcome]) -> None:
    """Fresh gradients, one fleet, no tuning and no target leave the loss alone."""
    kept = pictures(summary_of(outcomes[:3], None), outcomes[:3])
    assert [picture.name for picture in kept] == ["loss"]


def test_a_view_measures_what_its_button_says(outcomes: list[Outcome]) -> None:
    """The loss is drawn against the column of the unit, up to the end of the runs."""
    picture = loss_picture(Subject(summary_of(outcomes), outcomes, CASE))
    assert list(picture.views) == list(UNITS)
    for name, view in picture.views.items():
        assert view.chart["layer"][0]["encoding"]["x"]["title"] == UNITS[name].title
        ends = {row["algorithm"]: row["position"] for row in view.tables["bands"]}
        assert ends == {"steady": 2.0, "lost": 1.0}


@settings(deadline=None)
@given(values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=400), columns=st.integers(1, 20))
def test_a_thinned_curve_looks_the_same(values: list[float], columns: int) -> None:
    """In every column a thinned band keeps first, last, lowest and highest value of each line."""
    n_points = len(values)
    median = np.array(values)
    own = Band(np.geomspace(1.0, 100.0, n_points), np.sin(median), median, np.cos(median))
    thin = thinned(own, columns)
    assert len(thin.positions) <= max(columns, 8 * columns)
    for column in range(columns):
        full, kept = (_within(column, columns, one) for one in (own, thin))
        for one, other in zip(full, kept, strict=True):
            assert len(one) == 0 or (one[0], one[-1]) == (other[0], other[-1])
            assert len(one) == 0 or (one.min(), one.max()) == (other.min(), other.max())


def _within(column: int, columns: int, own: Band) -> list[np.ndarray]:
    """Return what a band has in one of the equal columns of a logarithmic axis from 1 to 100."""
    along = np.log(own.positions)
    place = np.minimum((columns * along / max(along[-1], 1e-9)).astype(int), columns - 1)
    return [line[place == column] for line in own]


def test_a_miss_is_seen(outcomes: list[Outcome]) -> None:
    """A run that missed the target is drawn behind all that met it, and is in no average."""
    picture = target_picture(Subject(summary_of(outcomes), outcomes, CASE))
    assert picture is not None
    tables = picture.views["seconds"].tables
    assert [row["reached"] for row in tables["runs"]] == [2.0, 1.0, None, None, None]
    latest = max(row["reached"] for row in tables["met"])
    assert {row["algorithm"] for row in tables["missed"]} == {"steady", "lost"}
    assert sum(row["missed"] for row in tables["missed"]) == 3
    assert all(row["place"] > tables["border"][0]["border"] > latest for row in tables["missed"])
    assert tables["medians"] == [{"algorithm": "steady", "median": 2.0}]


def test_nobody_meets_a_target_that_is_too_low(outcomes: list[Outcome]) -> None:
    """A target that no run met shows all runs as misses."""
    picture = target_picture(Subject(summary_of(outcomes, 1e-9), outcomes, CASE))
    assert picture is not None
    tables = picture.views["updates"].tables
    assert sum(row["missed"] for row in tables["missed"]) == len(outcomes)
    assert tables["met"] == tables["medians"] == []


def test_all_runs_may_diverge(outcomes: list[Outcome]) -> None:
    """Pictures of runs that all diverged can be drawn."""
    assert pictures(summary_of(outcomes[3:]), outcomes[3:])


def test_a_band_without_an_end_can_be_drawn(make_run: MakeRun) -> None:
    """A seed that diverged or missed leaves bands and intervals open, and every table finite."""
    lost = make_run([2.0, 9.0, NAN], status="diverged")
    found = []
    for fleet, staleness in (("near", 0), ("far", 5)):
        for seed in range(3):
            run = make_run([2.0, 0.4, 0.3 + 0.1 * seed], seed=seed)
            rows = run.trace.rows.copy()
            rows["read"] -= staleness
            own = replace(run, trace=Trace(rows, 1))
            found += [Outcome("good", fleet, seed, own)]
            found += [Outcome("risky", fleet, seed, lost if seed == 2 else own)]
            found += [Outcome("doomed", fleet, seed, lost if seed else own)]
    drawn = pictures(summary_of(found), found)
    assert {"ratios", "loss-against-staleness"} <= {one.name for one in drawn}
    for picture in drawn:
        json.dumps([view.tables for view in picture.views.values()], allow_nan=False)
        if picture.name == "loss":
            bands = picture.views["seconds"].tables["bands"]
            assert all(None not in row.values() for row in bands)


def test_the_age_of_a_read_counts_from_the_pull() -> None:
    """A worker alone applies what it pulled as long ago as its step and its messages took."""
    fleet = Fleet(1, exponential(1.0), latency=0.25, service=0.5)
    trace = schedule((Pull(), Step(), Push()), fleet, updates=50)
    rows = trace.rows
    pushes = trace.closing
    np.testing.assert_allclose(read_ages(trace), rows["time"][pushes] - rows["time"][pushes - 1])


def test_the_age_of_a_round_is_that_of_its_oldest_read() -> None:
    """In a round that all workers join, the first of their pulls is the oldest read."""
    fleet = Fleet(3, exponential(1.0), latency=0.1, service=0.2)
    trace = schedule((Pull(), Step(), Push(quorum=3)), fleet, updates=20)
    pulls = trace.rows["time"][trace.rows["verb"] == 0].reshape(-1, 3)[:20]
    np.testing.assert_allclose(read_ages(trace), trace.seconds - pulls.min(axis=1))


def test_shares_of_staleness_add_up() -> None:
    """The cells of each algorithm hold all of its updates, in versions and in seconds."""
    for name, view in found()["staleness", "6 machines"].views.items():
        total: dict[str, float] = {}
        for cell in view.tables["cells"]:
            total[cell["algorithm"]] = total.get(cell["algorithm"], 0.0) + cell["share"]
        assert all(share == pytest.approx(1.0, abs=5e-3) for share in total.values()), name


def test_a_timeline_shows_a_stretch_of_each_worker() -> None:
    """Lanes of workers are filled without overlap within the stretch that is shown."""
    view = found()["timeline", "6 machines"].views["together"]
    spans = view.tables["spans"]
    lanes = {row["lane"] for row in spans}
    assert lanes >= {f"worker {worker}" for worker in range(6)} | {"queue", "server"}
    end = max(row["end"] for row in spans)
    for worker in range(6):
        own = sorted((row["start"], row["end"]) for row in spans if row["lane"] == f"worker {worker}")
        assert sum(stop - start for start, stop in own) == pytest.approx(end, rel=1e-2)
        assert all(one[1] <= other[0] + 1e-2 for one, other in pairwise(own))


def test_the_map_has_a_cell_for_every_rate_and_staleness() -> None:
    """Trials and runs of an algorithm fill its map; what diverged has no loss."""
    cells = found()["learning-rate-map", ""].views["alone"].tables["cells"]
    assert len(cells) == 3 * len(RATES)
    assert {row["learning rate"] for row in cells if row["loss"] is None} == {RATES[-1]}


def test_the_theory_line_is_where_runs_begin_to_diverge() -> None:
    """The largest stable rate of a quadratic is 2 / h when fresh, and falls with staleness."""
    assert largest_rate(0, 4.0) == pytest.approx(0.5)
    # One version late: x' = x - eta h x_late is stable up to eta h = 1.
    assert largest_rate(1, 4.0) == pytest.approx(0.25)
    (line,) = [
        view.tables["theory"] for name, view in found()["learning-rate-map", ""].views.items() if name == "alone"
    ]
    rates = [row["rate"] for row in line]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] < 2.0


def test_sensitivity_marks_what_diverged() -> None:
    """Each rate that was tried is a point, or a cross if its runs diverged."""
    tables = found()["sensitivity", ""].views["2 machines"].tables
    own = [row for row in tables["trials"] if row["algorithm"] == "alone"]
    assert [row["learning rate"] for row in own] == list(RATES)
    assert {row["learning rate"] for row in tables["lost"]} == {RATES[-1]}


def test_sensitivity_takes_the_best_of_other_parameters() -> None:
    """Where another parameter was tried beside the rate, a rate has the lowest of its losses."""
    summary = small().summary
    tried = [
        msgspec.structs.replace(trial, parameters=trial.parameters | {"period": 5.0}, losses=[loss])
        for trial in summary.trials
        for loss in (7.0, 3.0, 5.0)
    ]
    picture = sensitivity_picture(msgspec.structs.replace(summary, trials=tried))
    assert picture is not None
    rows = picture.views["2 machines"].tables["trials"]
    assert [row["cost"] for row in rows] == [3.0] * len(summary.algorithms) * len(RATES)


def test_skewed_data_are_shown(outcomes: list[Outcome]) -> None:
    """Where the settings count classes per worker, each count is a cell of a picture."""
    known = {"problem": "", "fleet": "machines", "seed": 3, "classes": [0, 7], "counts": [[5, 1]]}
    summary = summarise(outcomes, {"histograms": [known]}, is_complete=True)
    picture = class_picture(Subject(summary, outcomes, CASE))
    assert picture is not None
    assert picture.views[""].tables["cells"] == [
        {"worker": 0, "class": 0, "samples": 5},
        {"worker": 0, "class": 7, "samples": 1},
    ]
    alt.Chart.from_dict(specification(picture.views[""], "A title"))
    assert class_picture(Subject(summary, outcomes, ("", "others"))) is None


def test_the_speed_up_begins_at_one() -> None:
    """The fewest workers have a speed-up of 1, from where the ideal grows with workers."""
    (view,) = found()["speed-up", ""].views.values()
    assert {row["speed-up"] for row in view.tables["gains"] if row["workers"] == 2} == {1.0}
    assert [row["speed-up"] for row in view.tables["ideal"]] == [1.0, 3.0]


def test_ratios_are_those_of_the_summary() -> None:
    """Each ratio stands between the ends of its interval, as the summary has it."""
    contrasts = {
        one.algorithm: one
        for one in small().summary.contrasts
        if one.fleet == "6 machines" and one.quantity == "seconds"
    }
    rows = found()["ratios", "6 machines"].views["time to target"].tables["ratios"]
    assert len(rows) == len(contrasts)
    for row in rows:
        one = contrasts[row["algorithm"]]
        assert (row["ratio"] is None) == (one.median is None or one.median == math.inf)
        assert row["ratio"] is None or row["ratio"] == pytest.approx(one.median, rel=1e-3)
        assert row["low"] == one.low
        assert row["from"] <= (row["ratio"] or row["to"]) * 1.001 <= row["to"] * 1.002


def test_the_cells_of_a_map_cover_every_rate_between() -> None:
    """At each staleness the cells lie on top of each other without a gap, each around its rate."""
    cells = found()["learning-rate-map", ""].views["alone"].tables["cells"]
    for level in {cell["staleness"] for cell in cells}:
        own = sorted((one for one in cells if one["staleness"] == level), key=lambda one: one["low"])
        assert all(one["low"] < one["learning rate"] < one["high"] for one in own)
        assert [one["high"] for one in own[:-1]] == [one["low"] for one in own[1:]]
