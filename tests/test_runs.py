from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulated_launch import launched
from small_setup import setup_of

import distsgd as ds
from distsgd.experiment import runs as jobs
from distsgd.experiment.runs import Place, made, run_folder, run_jobs, worthwhile
from distsgd.experiment.setup import Job, Setup
from distsgd.fold.crossing import find_crossing
from distsgd.fold.request import Hooks, RunRequest

ALGORITHMS = {"serial": ds.algorithms.serial(0.1), "Downpour": ds.algorithms.downpour(0.1)}
FLEETS = {"machines": ds.Fleet(3, ds.exponential(1.0)), "stale": ds.fixed_staleness(2)}


@pytest.fixture
def setup() -> Setup:
    """Return two algorithms, two fleets and two seeds on softmax with few epochs."""
    problem = ds.problems.softmax(ds.data.digits(), l2=1e-4)
    return setup_of(ALGORITHMS, problem, FLEETS, {"updates": 30}, seeds=2, evaluations=3)


@pytest.fixture
def planned(setup: Setup) -> list[Job]:
    """Return its runs."""
    return [
        Job("softmax", fleet, label, seed, algorithm)
        for fleet in FLEETS
        for label, algorithm in ALGORITHMS.items()
        for seed in setup.seeds
    ]


class Counting:
    """An engine that counts the runs that it makes."""

    def __init__(self) -> None:
        self.n_made = 0

    def __call__(self, request: RunRequest[Any], hooks: Hooks) -> ds.Run:
        """Make a run."""
        self.n_made += 1
        return made(request, hooks)


@pytest.fixture
def engine() -> Counting:
    """Return an engine that counts the runs of this process."""
    return Counting()


def test_processes_do_not_change_bits(setup: Setup, planned: list[Job], tmp_path: Path) -> None:
    """Runs made by two processes, and loaded afterwards, have the bits of those made here."""
    here = {job[:4]: run for job, run in run_jobs(setup, planned, Place())}
    there = {job[:4]: run for job, run in run_jobs(setup, planned, Place(tmp_path, 2))}
    found = {job[:4]: run for job, run in run_jobs(setup, planned, Place(tmp_path))}
    for label, run in here.items():
        for same in (there[label], found[label]):
            assert same.x.tobytes() == run.x.tobytes()
            assert same.history.equals(run.history, null_equal=True)
            assert same.trace.rows.tobytes() == run.trace.rows.tobytes()
            assert same.hash == run.hash


def test_the_hash_is_known_before_the_run(setup: Setup, planned: list[Job]) -> None:
    """The settings from which a run is found again are those that it has."""
    for job, run in run_jobs(setup, planned, Place()):
        assert setup.request(job).settings == run.settings


def test_nothing_is_computed_twice(setup: Setup, planned: list[Job], tmp_path: Path, engine: Counting) -> None:
    """Equal runs are made once, saved ones not again, and a fresh start makes all of them."""
    doubled = [*planned, planned[0]._replace(label="again")]
    assert len(list(run_jobs(setup, doubled, Place(tmp_path, make=engine)))) == len(doubled)
    assert engine.n_made == len(planned)
    assert len(list(run_jobs(setup, doubled, Place(tmp_path, make=engine)))) == len(doubled)
    assert engine.n_made == len(planned)
    list(run_jobs(setup, planned, Place(tmp_path, is_fresh=True, make=engine)))
    assert engine.n_made == 2 * len(planned)


@pytest.mark.parametrize("processes", [1, 2])
def test_runs_come_with_the_crossings_of_their_targets(
    setup: Setup, planned: list[Job], tmp_path: Path, engine: Counting, processes: int
) -> None:
    """A run that is made or found has the crossing of its problem's target, and keeps it."""
    here, target = Place(tmp_path, processes, make=engine), 1.5
    list(run_jobs(setup, planned[:2], Place(tmp_path, make=engine)))
    crossed = list(run_jobs(setup, planned, here, {"softmax": target, "other": 1.0}))
    assert len(crossed) == len(planned)
    for job, run in crossed:
        found = find_crossing(run, job.algorithm, setup.problem, target)
        assert run.crossings == (found,)
        assert ds.load(run_folder(tmp_path, run.hash)).crossings == (found,)
    n_runs = engine.n_made
    again = dict(run_jobs(setup, planned, here, {"softmax": target}))
    assert all(again[job].crossings == run.crossings for job, run in crossed)
    other = list(run_jobs(setup, planned, here, {"softmax": 2.0}))
    assert all([one.target for one in run.crossings] == [target, 2.0] for _, run in other)
    assert engine.n_made == n_runs


def test_equal_runs_know_all_of_their_targets(setup: Setup, tmp_path: Path) -> None:
    """One problem under two labels is run once, for the targets of both."""
    both = replace(setup, problem={"one": setup.problem, "two": setup.problem})
    jobs = [Job(name, "stale", "serial", 0, ALGORITHMS["serial"]) for name in both.problems]
    done = run_jobs(both, jobs, Place(tmp_path), {"one": 1.5, "two": 2.0})
    assert [{one.target for one in run.crossings} for _, run in done] == [{1.5, 2.0}] * 2


def test_a_live_run_is_kept_without_its_crossing(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A live run is saved before its crossing is looked for, and not made again to find it."""

    def broken(*_: object) -> None:
        msg = "no crossing"
        raise ValueError(msg)

    live = replace(setup, engine="local", fleets={"machines": ds.Fleet(2)}, seeds=1)
    (fleet,) = live.sites
    jobs_of_it = [Job("softmax", fleet, "Downpour", 0, ALGORITHMS["Downpour"])]
    targets = {"softmax": 1.5}
    with monkeypatch.context() as broken_for_now:
        broken_for_now.setattr(jobs, "with_crossing", broken)
        ((_, error),) = run_jobs(live, jobs_of_it, Place(tmp_path, make=launched), targets)
    assert error.startswith("ValueError: no crossing (")
    ((_, run),) = run_jobs(live, jobs_of_it, Place(tmp_path, make=broken), targets)
    assert [one.target for one in run.crossings] == [1.5]


def test_an_interrupted_comparison_goes_on(setup: Setup, planned: list[Job], tmp_path: Path, engine: Counting) -> None:
    """What had finished before an interruption is found, and only the rest is computed."""
    running = run_jobs(setup, planned, Place(tmp_path, make=engine))
    next(running), next(running), next(running)
    running.close()
    assert len(list(run_jobs(setup, planned, Place(tmp_path, make=engine)))) == len(planned)
    assert engine.n_made == len(planned)


@pytest.mark.parametrize("content", [b"{", b'{"format": 99}'])
def test_a_damaged_run_is_made_again(
    setup: Setup, planned: list[Job], tmp_path: Path, engine: Counting, content: bytes
) -> None:
    """A run that is half written, or of another version's layout, is made again and replaced."""
    ((_, run),) = run_jobs(setup, planned[:1], Place(tmp_path, make=engine))
    record = run_folder(tmp_path, run.hash) / "run.json"
    record.write_bytes(content)
    ((_, again),) = run_jobs(setup, planned[:1], Place(tmp_path, make=engine))
    assert engine.n_made == 2
    assert ds.load(run_folder(tmp_path, run.hash)).x.tobytes() == again.x.tobytes()


def test_other_configurations_are_left_alone(setup: Setup, planned: list[Job], tmp_path: Path) -> None:
    """Runs of another configuration in the same folder stay as they are."""
    ((_, first),) = run_jobs(setup, planned[:1], Place(tmp_path))
    before = {path: path.read_bytes() for path in run_folder(tmp_path, first.hash).iterdir()}
    list(run_jobs(setup, planned[1:3], Place(tmp_path)))
    assert len(list((tmp_path / "runs").iterdir())) == 3
    assert {path: path.read_bytes() for path in before} == before


def test_processes_start_only_for_enough_work(setup: Setup) -> None:
    """A few short runs are made in this process, many or unknown ones by one process per core."""
    assert worthwhile(setup, 2) == 1
    assert worthwhile(setup, 1000) == jobs.n_processes()
    timed = setup_of(ALGORITHMS, setup.problem, FLEETS, {"seconds": 5.0})
    assert worthwhile(timed, 1) == jobs.n_processes()
