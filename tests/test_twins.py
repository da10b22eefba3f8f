"""Live runs in the report, next to the simulated runs that they take after."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import pytest
from small_live import FIVE, TWO, small_live
from stand_in import launched

import distsgd as ds
from distsgd.experiment import runs as jobs
from distsgd.report.conclusions import conclusions
from distsgd.report.formatting import headings
from distsgd.report.numbers.engines import agreements
from distsgd.report.numbers.summary import Outcome, Summary, summarise
from distsgd.report.page import render
from distsgd.report.pictures.charts import Picture
from distsgd.report.pictures.registry import pictures

MakeRun: TypeAlias = Callable[..., ds.Run]
Losses: TypeAlias = list[list[float]]
LIVE = f"{FIVE}, live"
LOCAL = {"kind": "local", "workers": 2}
SETTINGS = {"live": {"F, live": {"fleet": "F", "engine": "local", "machines": LOCAL}}}


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, str], Picture]:
    """Return the pictures of the comparison, by kind and fleet."""
    return {(one.name, one.case[1] if one.case else ""): one for one in pictures(*small_live())}


@pytest.fixture
def pair(make_run: MakeRun) -> Callable[..., Summary]:
    """Return a function from losses of simulated and of live runs to their summary."""

    def summary(simulated: Losses, live: Losses) -> Summary:
        runs = [
            Outcome("a", fleet, seed, make_run(losses, seed=seed, fleet=machines))
            for fleet, machines, several in (
                ("F", {"kind": "fleet", "workers": 2}, simulated),
                ("F, live", LOCAL, live),
            )
            for seed, losses in enumerate(several)
        ]
        return summarise(runs, SETTINGS, is_complete=True)

    return summary


def test_virtual_and_wall_seconds_are_apart() -> None:
    """A result has virtual or wall seconds and never both; so has the time to the target."""
    summary = small_live().summary
    for result in summary.results:
        is_live = result.fleet.endswith(", live")
        assert (result.engine == "local") is (result.seconds is None) is is_live
        assert (result.wall_seconds is None) is not is_live
        assert result.time_to_target.clock == ("wall" if is_live else "virtual")
    for line in summary.runs:
        is_live = line.engine == "local"
        assert line.hash
        assert line.seconds_to_target is None or not is_live
        assert line.wall_seconds_to_target is None or is_live
    assert "wall time [s]" in headings("local")
    assert "virtual time [s]" in headings("simulate")


def test_nothing_compares_seconds_across_engines() -> None:
    """Contrasts, scaling and profiles each stay on one engine."""
    summary = small_live().summary
    assert {one.fleet for one in summary.contrasts} == set(summary.fleets)
    for one in summary.scaling:
        assert len({summary.engine_on(fleet) for fleet in one.fleets}) == 1
    for one in summary.profiles:
        assert {2 * share for share in one.share} <= {0.0, 1.0, 2.0}  # of two simulated fleets


def test_axes_of_time_are_apart(found: dict[tuple[str, str], Picture]) -> None:
    """Every axis in seconds is virtual for simulated runs and wall for live ones."""
    for (name, fleet), picture in found.items():
        text = json.dumps([view.chart for view in picture.views.values()])
        if name.startswith("both-"):
            assert "time [s]" not in text
        elif fleet:
            assert ("virtual time" in text) <= (not fleet.endswith("live"))
            assert ("wall time" in text) <= fleet.endswith("live")
    assert "wall time" in json.dumps(found["timeline", LIVE].views["alone"].chart)
    assert "wall time" in json.dumps(found["loss", LIVE].views["seconds"].chart)


def test_staleness_of_both_is_in_one_chart(found: dict[tuple[str, str], Picture]) -> None:
    """Shares of live and of simulated updates each add up to 1, and the means are the table's."""
    picture = found["both-staleness", LIVE]
    assert list(picture.views) == ["alone"]
    tables = picture.views["alone"].tables
    means = {row["of"]: row["mean"] for row in tables["means"]}
    for of, fleet in (("simulated", FIVE), ("live", LIVE)):
        cells = [row for row in tables["cells"] if row["of"] == of]
        assert sum(row["share"] for row in cells) == pytest.approx(1.0, abs=1e-3)
        (result,) = (one for one in small_live().summary.of_fleet(fleet) if one.algorithm == "alone")
        assert means[of] == pytest.approx(result.staleness.mean, rel=1e-3)


def test_losses_of_both_are_on_shared_axes(found: dict[tuple[str, str], Picture]) -> None:
    """The losses of both engines are drawn against updates and epochs, and nothing else."""
    picture = found["both-losses", LIVE]
    assert list(picture.views) == ["updates", "epochs"]
    for view in picture.views.values():
        drawn = {(row["of"], row["algorithm"]) for row in view.tables["medians"]}
        assert drawn == {(of, name) for of in ("simulated", "live") for name in ("alone", "together")}
    assert ("both-losses", FIVE) not in found


def test_pairs_stand_in_one_section() -> None:
    """The page has a section per fleet; pictures of one kind are next to each other in it."""
    page = render(*small_live())
    assert page.count('<h2 id="case-') == 2
    assert all(f"<caption>{name}</caption>" in page for name in (FIVE, LIVE))
    section = page[page.index('<h2 id="case-2">') : page.index('<h2 id="settings"')]
    titles = [part.split("<")[0] for part in section.split("<figcaption>")[1:]]
    assert titles[:4] == [
        "Training loss, simulated",
        "Training loss, live",
        "Training loss, live on simulated",
        "Staleness, live on simulated",
    ]
    assert "Simulated: workers 5" in section
    assert "Live: workers 5, shards 2" in section


def test_shared_memory_counts_no_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without order and messages are drawn where they are known, and miss nothing."""
    monkeypatch.setattr(jobs, "launched", launched)
    problem = ds.problems.logistic(ds.data.sparse(300, 40, 5))
    algorithms = {"racing": ds.algorithms.hogwild(0.5), "alone": ds.algorithms.downpour(0.5)}
    both = {"engine": ["simulate", "local"], "target": 0.69}
    found = ds.compare(algorithms, problem, {"F": ds.Fleet(2)}, epochs=1, batch=1, seeds=1, **both)
    drawn = {(one.name, one.case): one for one in pictures(found.summary, found.outcomes)}
    place = ("logistic", "F, live")
    for name, table in (("loss", "bands"), ("time-to-target", "runs")):
        for view, one in drawn[name, place].views.items():
            shown = {row["algorithm"] for row in one.tables[table]}
            assert shown == {"alone"} | ({"racing"} if view != "bytes" else set())
    assert list(drawn["both-staleness", place].views) == ["alone"]
    assert "F, live, losses after equally many updates" in str(found)
    assert render(found.summary, found.outcomes)


@pytest.mark.parametrize(
    ("simulated", "live", "expected"),
    [
        ([[2, 1, 0.5]], [[2, 2, 0.25]], (2.0, 2.0, 1)),
        ([[2, 1, 0.5]], [[2, 1, 0.5]], (1.0, 1.0, 1)),
        ([[2, 1, 0.5]], [[2, 1]], (1.0, 1.0, 1)),
        ([[2, 1, 1]] * 3, [[2, 1, 3], [2, 1, 4], [2, 1, 9]], (2.0, 9.0, 2)),
        ([[16, 4, 1]], [[16, 8]], (2.0, 2.0, 1)),
        ([[2, -1]], [[2, 1]], (None, None, None)),
    ],
)
def test_agreement_by_hand(
    pair: Callable[..., Summary], simulated: Losses, live: Losses, expected: tuple[float | None, ...]
) -> None:
    """The factor is that of one seed and equally many updates, where both have a loss > 0."""
    (one,) = pair(simulated, live).agreements
    assert (one.typical, one.largest, one.at) == (expected if expected[0] is None else pytest.approx(expected))
    assert (one.fleet, one.against, one.algorithm) == ("F, live", "F", "a")


def test_between_evaluations_a_logarithm_is_straight(make_run: MakeRun) -> None:
    """A simulated loss of 16 and, two updates later, of 4 agrees with a live one of 8 between."""
    simulated, live = make_run([16, 99, 4]), make_run([16, 8, 4], fleet=LOCAL)
    sparse = replace(simulated, history=simulated.history[[0, 2]])
    runs = {("p", "F", "a"): [sparse], ("p", "F, live", "a"): [live]}
    (one,) = agreements(runs, SETTINGS)
    assert one.largest == pytest.approx(1.0)


def test_the_answer_says_how_far_they_agree(pair: Callable[..., Summary]) -> None:
    """One sentence per live fleet gives the largest factor, and both mean stalenesses."""
    text = conclusions(pair([[2, 1, 0.5]], [[2, 2, 0.25]]))
    sentence = (
        "On F, live, losses after equally many updates differ, seed by seed, from the simulated"
        " ones on F by a factor of typically 2, and at most 2, for a"
        " (mean staleness 0 live, 0 simulated)."
    )
    assert sentence in text
    assert not any("differ from the simulated" in one for one in conclusions(pair([[2, 1]], [])))


def test_the_answer_tells_time_by_its_clock() -> None:
    """Seconds to a target are called virtual or wall; what did not run is told with its reason."""
    points = conclusions(small_live().summary)
    (simulated,) = (one for one in points if one.startswith(f"On {FIVE}: "))
    live = " ".join(one for one in points if one.startswith(f"On {LIVE}: "))
    assert "virtual seconds" in simulated
    assert "wall" not in simulated
    assert "wall seconds" in live
    assert "virtual" not in live
    assert any(
        one.startswith(f"racing did not run on {TWO}, live and {LIVE}: lock-free workers need")
        for one in conclusions(small_live().summary)
    )
