from pathlib import Path
from typing import Any

import pytest
from simulated_launch import launched
from small_setup import setup_of

import distsgd as ds
from distsgd import ConfigError
from distsgd.experiment.execution import Execution
from distsgd.experiment.file import parse
from distsgd.experiment.runs import Place, made, run_jobs
from distsgd.experiment.setup import Job, Setup
from distsgd.fold.request import Hooks, RunRequest
from distsgd.live.options import MOST_PROCESSES, Live, LiveFleet, LiveRequest
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


class Recording:
    """An engine whose live runs have no processes; it keeps their requests."""

    def __init__(self) -> None:
        self.requests: list[LiveRequest] = []

    def __call__(self, request: RunRequest[Any], hooks: Hooks) -> ds.Run:
        """Make a run."""
        if not isinstance(request.fleet, LiveFleet):
            return made(request, hooks)
        self.requests.append(request)
        return launched(request, hooks)


@pytest.fixture
def engine() -> Recording:
    """Return an engine that keeps the requests of this process."""
    return Recording()


def built(*changes: str) -> Setup:
    """Return the experiment with changes."""
    return parse(QUADRATIC, "engines.toml", changes).build()


def planned(setup: Setup) -> list[Job]:
    """Return all its runs."""
    return [Job(*place, seed, setup.algorithms[place[2]]) for place in setup.places for seed in setup.seeds]


def test_each_fleet_is_on_each_engine() -> None:
    """Every fleet is followed by its live twin; one engine may be given without a list."""
    assert list(built().sites) == ["machines", "machines, live", "sampled", "sampled, live"]
    assert list(built("engine=local").sites) == ["machines, live", "sampled, live"]
    assert list(built("engine=simulate").sites) == ["machines", "sampled"]
    assert "live" not in built("engine=simulate").settings


def test_a_live_run_takes_after_its_fleet(engine: Recording) -> None:
    """A live run has its fleet's workers or staleness; serial SGD one worker that is fresh."""
    list(run_jobs(built(), planned(built()), Place(make=engine)))
    told = {(one.algorithm.name, one.fleet.workers, str(one.fleet.staleness)) for one in engine.requests}
    assert told == {("downpour", 3, "None"), ("serial", 1, "None"), ("downpour", 2, "exponential(4.0)")}
    assert {one.fleet.heartbeat for one in engine.requests} == {0.5}


def test_live_runs_come_last(engine: Recording) -> None:
    """Whatever their order in the report, live runs are made after all simulated ones."""
    order = [
        isinstance(built().machines_of(job.fleet), LiveFleet)
        for job, _ in run_jobs(built(), planned(built()), Place(processes=2, make=engine))
    ]
    assert order == sorted(order)
    assert (sum(order), len(engine.requests)) == (8, 6)  # serial SGD is the same on both fleets


def test_a_live_run_is_found_by_its_hash(engine: Recording, tmp_path: Path) -> None:
    """The settings of a live run are known before it; it is not made again, unless asked for."""
    setup = built("live.delay=constant(0.0)", "live.shards=2")
    for job, run in run_jobs(setup, planned(setup), Place(tmp_path, make=engine)):
        assert run.hash == identify(setup.request(job).settings)
    n_launched = len(engine.requests)
    assert len(list(run_jobs(setup, planned(setup), Place(tmp_path, make=engine)))) == len(planned(setup))
    assert len(engine.requests) == n_launched == 6
    list(run_jobs(setup, planned(setup), Place(tmp_path, is_fresh=True, make=engine)))
    assert len(engine.requests) == 2 * n_launched


def test_what_the_launcher_makes_is_found_by_its_hash(tmp_path: Path) -> None:
    """Runs of real processes, served or without locks, have the settings known before them."""
    algorithms = {"racing": ds.algorithms.hogwild(0.1), "served": ds.algorithms.downpour(0.1)}
    problem = ds.problems.logistic(ds.data.sparse(60, 30, 5))
    live = Live(shards=2, staleness=1, delay=[ds.constant(0.0)] * 2)
    setup = setup_of(
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
        assert run.hash == identify(setup.request(job).settings)
    assert len(list(run_jobs(setup, planned(setup), Place(tmp_path, make=pytest.fail)))) == 2


def test_what_cannot_run_live_is_left_out_with_its_reason(engine: Recording) -> None:
    """Racing workers need sparse data: without, they are left out, and only they."""
    (first, second) = built().left_out
    assert (first[:3], second[1]) == (("quadratic", "machines, live", "racing"), "sampled, live")
    assert "lock-free workers need sparse data" in first.reason
    assert len(planned(built())) == built().n_runs == (2 * 3 + 2 * 2) * 2
    sparse = ds.problems.logistic(ds.data.sparse(60, 30, 5))
    racing = {"racing": ds.algorithms.hogwild(0.1)}
    live = Live(writes="atomic")
    setup = setup_of(racing, sparse, {"two": ds.Fleet(2)}, {"epochs": 0.5}, batch=1, seeds=1, engine="local", live=live)
    ((_, run),) = run_jobs(setup, planned(setup), Place(make=engine))
    assert run.settings["fleet"]["writes"] == "atomic"
    assert [one.fleet.writes for one in engine.requests] == ["atomic"]


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


def test_tuned_live_runs_have_the_simulated_rate(engine: Recording) -> None:
    """Tuning simulates, and what it finds for a fleet holds for the fleet's live runs."""
    tunable = ds.Tunable(ds.algorithms.downpour, {"learning_rate": ds.Range(0.1, 1.0)})
    found = Execution(
        setup_of(
            {"tuned": tunable},
            ds.problems.quadratic([1.0]),
            {"two": ds.Fleet(2)},
            {"updates": 5},
            seeds=1,
            engine=["simulate", "local"],
            tuning=ds.Tuning(trials=2, refinements=0),
        )
    )
    found.carry_out(make=engine)
    rates = [one.run.settings["algorithm"]["hyper"] for one in found.outcomes]
    assert rates[0] == rates[1]
    assert len(engine.requests) == 1


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
        (
            ["fleets.machines.workers=65"],
            f"workers must be <= {MOST_PROCESSES} on one machine, where each is a process",
        ),
        (["live.workers=65"], f"workers must be <= {MOST_PROCESSES} on one machine"),
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
        setup_of({"r": ds.algorithms.hogwild(0.1)}, problem, {"f": ds.Fleet(2)}, {"updates": 1}, engine="local")
    few = ds.problems.logistic(ds.data.sparse(5, 30, 3))
    with pytest.raises(ConfigError, match=r"workers must be <= \d, the samples of logistic, not 8"):
        ds.compare(one, few, ds.Fleet(8), updates=1, engine="local")
    monkeypatch.setattr("distsgd.experiment.setup.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="ray is not installed; install it with: pip install"):
        ds.compare(one, problem, ds.Fleet(2), updates=1, engine="ray")
