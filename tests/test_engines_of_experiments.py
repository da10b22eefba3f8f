from pathlib import Path
from typing import Any

import pytest
from simulated_launch import launch

import distsgd as ds
from distsgd import ConfigError
from distsgd.experiment import runs as jobs
from distsgd.experiment.file import parse
from distsgd.experiment.runs import Place, run_jobs
from distsgd.experiment.setup import Job, Setup
from distsgd.live.options import MOST_PROCESSES, Live, LiveFleet
from distsgd.run import identify

QUADRATIC = """
updates = 6
seeds = 2
evaluations = 3
engine = ["simulate", "local"]

[problem]
name = "quadratic"
curvature = [1.0, 2.0]

[algorithms.mine]
algorithm = "downpour"
learning_rate = 0.1

[algorithms.alone]
algorithm = "serial"
learning_rate = 0.1

[algorithms.racing]
algorithm = "hogwild"
learning_rate = 0.1

[fleets.machines]
workers = 3
compute = "lognormal(2.0, 0.5)"

[fleets.sampled]
stale_reads = "exponential(4.0)"

[live]
heartbeat = 0.5
"""


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let live runs be made without processes; return what each was launched with."""
    made: list[dict[str, Any]] = []

    def record(algorithm: ds.Run, *arguments: object, **options: object) -> ds.Run:
        made.append({"algorithm": algorithm.name, **options})
        return launch(algorithm, *arguments, **options)

    monkeypatch.setattr(jobs, "launch", record)
    return made


def built(*changes: str) -> Setup:
    """Return the experiment with changes."""
    return parse(QUADRATIC, "engines.toml", changes).build()


def planned(setup: Setup) -> list[Job]:
    """Return all its runs."""
    return [Job(*place, seed, setup.algorithms[place[2]]) for place in setup.places for seed in setup.cases]


def test_each_fleet_is_on_each_engine() -> None:
    """Every fleet is followed by its live twin; one engine may be given without a list."""
    assert list(built().sites) == ["machines", "machines, live", "sampled", "sampled, live"]
    assert list(built("engine=local").sites) == ["machines, live", "sampled, live"]
    assert list(built("engine=simulate").sites) == ["machines", "sampled"]
    assert "live" not in built("engine=simulate").settings


def test_a_live_run_takes_after_its_fleet(launched: list[dict[str, Any]]) -> None:
    """A live run has its fleet's workers or staleness; serial SGD one worker that is fresh."""
    list(run_jobs(built(), planned(built()), jobs.NOWHERE))
    told = {(one["algorithm"], one["workers"], str(one["staleness"])) for one in launched}
    assert told == {("downpour", 3, "None"), ("serial", 1, "None"), ("downpour", 2, "exponential(4.0)")}
    assert {one["heartbeat"] for one in launched} == {0.5}


def test_live_runs_come_last(launched: list[dict[str, Any]]) -> None:
    """Whatever their order in the report, live runs are made after all simulated ones."""
    order = [
        isinstance(built().machines_of(job.fleet), LiveFleet)
        for job, _ in run_jobs(built(), planned(built()), Place(processes=2))
    ]
    assert order == sorted(order)
    assert (sum(order), len(launched)) == (8, 6)  # serial SGD is the same on both fleets


def test_a_live_run_is_found_by_its_hash(launched: list[dict[str, Any]], tmp_path: Path) -> None:
    """The settings of a live run are known before it; it is not made again, unless asked for."""
    setup = built("live.delay=constant(0.0)", "live.shards=2")
    for job, run in run_jobs(setup, planned(setup), Place(tmp_path)):
        assert run.hash == identify(setup.run_settings(job))
    n_launched = len(launched)
    assert len(list(run_jobs(setup, planned(setup), Place(tmp_path)))) == len(planned(setup))
    assert len(launched) == n_launched == 6
    list(run_jobs(setup, planned(setup), Place(tmp_path, is_fresh=True)))
    assert len(launched) == 2 * n_launched


def test_what_the_launcher_makes_is_found_by_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of real processes, served or without locks, have the settings known before them."""
    algorithms = {"racing": ds.algorithms.hogwild(0.1), "served": ds.algorithms.downpour(0.1)}
    problem = ds.problems.logistic(ds.data.sparse(60, 30, 5))
    live = Live(shards=2, staleness=1, delay=[ds.constant(0.0)] * 2)
    setup = Setup(
        algorithms,
        problem,
        {"two": ds.Fleet(2)},
        {"epochs": 1},
        batch=4,
        seeds=1,
        evaluations=2,
        engine="local",
        live=live,
    )
    for job, run in run_jobs(setup, planned(setup), Place(tmp_path)):
        assert run.hash == identify(setup.run_settings(job))
    monkeypatch.setattr(jobs, "launch", lambda *_, **__: pytest.fail("made again"))
    assert len(list(run_jobs(setup, planned(setup), Place(tmp_path)))) == 2


def test_what_cannot_run_live_is_left_out_with_its_reason(launched: list[dict[str, Any]]) -> None:
    """Racing workers need sparse data: without, they are left out, and only they."""
    (first, second) = built().left_out
    assert (first[:3], second[1]) == (("quadratic", "machines, live", "racing"), "sampled, live")
    assert "lock-free workers need sparse data" in first.reason
    assert len(planned(built())) == built().n_runs == (2 * 3 + 2 * 2) * 2
    sparse = ds.problems.logistic(ds.data.sparse(60, 30, 5))
    racing = {"racing": ds.algorithms.hogwild(0.1)}
    found = ds.compare(
        racing, sparse, ds.Fleet(2), epochs=0.5, batch=1, seeds=1, engine="local", live=Live(writes="atomic")
    )
    assert found.outcomes[0].run.settings["fleet"]["writes"] == "atomic"
    assert [one["writes"] for one in launched] == ["atomic"]


def test_a_fleet_s_times_can_be_slept() -> None:
    """With delay "fleet" each worker sleeps its machine's compute time, divided by its speed."""
    live = Live(delay="fleet")
    fleet = ds.Fleet(2, ds.lognormal(2.0, 0.5), speeds=[1.0, 4.0])
    assert live.like(fleet, "local").delay == (ds.lognormal(2.0, 0.5), ds.lognormal(0.5, 0.5))
    assert live.like(ds.fixed_staleness(2), "local").delay == ds.constant(1.0)
    for wrong in (ds.Fleet(2, latency=0.1), ds.stale_reads(ds.constant(1.0))):
        with pytest.raises(ConfigError, match=r'live.delay = "fleet" needs a fleet of workers'):
            live.like(wrong, "local")


@pytest.mark.parametrize(
    "law",
    [
        ds.lognormal(2.0, 0.5),
        ds.uniform(1.0, 3.0),
        ds.shifted_exponential(1.0, 2.0),
        ds.pareto(2.0, 3.0),
        ds.empirical([1.0, 4.0]),
        ds.gamma(2.0, 2.0).with_stragglers(0.5, 3.0),
    ],
)
def test_a_law_divided_by_a_speed(law: ds.Law) -> None:
    """A law divided by a speed has the same draws, each divided by it."""
    assert law.divided(4.0).sample(3, n=20) == pytest.approx(law.sample(3, n=20) / 4.0)


def test_tuned_live_runs_have_the_simulated_rate(launched: list[dict[str, Any]]) -> None:
    """Tuning simulates, and what it finds for a fleet holds for the fleet's live runs."""
    tunable = ds.Tunable(ds.algorithms.downpour, {"learning_rate": ds.Range(0.1, 1.0)})
    found = ds.compare(
        {"tuned": tunable},
        ds.problems.quadratic([1.0]),
        {"two": ds.Fleet(2)},
        updates=5,
        seeds=1,
        engine=["simulate", "local"],
        tuning=ds.Tuning(trials=2, refinements=0),
    )
    rates = [one.run.settings["algorithm"]["hyper"] for one in found.outcomes]
    assert rates[0] == rates[1]
    assert len(launched) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["engine=locl"], "unknown engine 'locl'; did you mean 'local'"),
        (['engine=["simulate", "rya"]'], "unknown engine 'rya'; did you mean 'ray'"),
        (["engine=[]"], "number of engines"),
        (["live.delai=constant(1.0)"], r"key in \[live\]: 'delai'; did you mean 'delay'"),
        (["live.delay=constnat(1.0)"], r"\[live\] .*'constnat'; did you mean 'constant'"),
        (['live.delay=["constant(1.0)"]'], "fleet 'machines': live.delay must have one law per"),
        (["live.on_loss=repalce"], "live.on_loss 'repalce'; did you mean 'replace'"),
        (["live.writes=racey"], "live.writes 'racey'; did you mean 'racy'"),
        (["live.shards=0"], "live.shards must be a whole number >= 1"),
        (["live.shards=3"], "live.shards must be <= 2, the parameters of quadratic, not 3"),
        (["live.staleness=-1"], "live.staleness must be a whole number >= 0"),
        (["live.heartbeat=0.0"], r"live.heartbeat must be > 0 s"),
        (["fleets.machines.workers=65"], f"at most {MOST_PROCESSES} workers, each a process"),
        (["live.workers=65"], f"at most {MOST_PROCESSES} workers"),
        (["live.delay=fleet"], "fleet 'sampled': live.delay = \"fleet\" needs a fleet of workers"),
        (["updates=1", "seconds=1.0"], "exactly one of"),
        (['fleets."machines, live".staleness=1'], "two fleets would be called 'machines, live'"),
    ],
)
def test_a_mistake_about_engines_is_named(changes: list[str], says: str) -> None:
    """An unknown engine or option, and workers or delays that do not fit, are errors."""
    with pytest.raises(ConfigError, match=says):
        built(*changes)


def test_what_no_live_run_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual seconds, too few samples, no Ray and nothing that can run are errors."""
    problem, one = ds.problems.softmax(ds.data.digits()), {"a": ds.algorithms.downpour(0.1)}
    with pytest.raises(ConfigError, match=r"seconds are virtual, and no budget of a live run"):
        ds.compare(one, problem, ds.Fleet(2), seconds=3.0, engine="local")
    with pytest.raises(ConfigError, match="lock-free workers need sparse data"):
        Setup({"r": ds.algorithms.hogwild(0.1)}, problem, {"f": ds.Fleet(2)}, {"updates": 1}, engine="local")
    few = ds.problems.logistic(ds.data.sparse(5, 30, 3))
    with pytest.raises(ConfigError, match=r"workers must be <= \d, the samples of logistic, not 8"):
        ds.compare(one, few, ds.Fleet(8), updates=1, engine="local")
    monkeypatch.setattr("distsgd.experiment.setup.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="ray is not installed; install it with: pip install"):
        ds.compare(one, problem, ds.Fleet(2), updates=1, engine="ray")
