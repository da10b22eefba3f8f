import math
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from disturbed_problem import DisturbedProblem

import distsgd as ds
from distsgd.errors import ConfigError, DistsgdError
from distsgd.fold.request import Progress
from distsgd.live.local import launch as local
from distsgd.live.machine import forking
from distsgd.live.machine.folder import remove_dead, run_folder
from distsgd.run import Run
from distsgd.trace import PULL, PUSH

RATE = 0.1
PROBLEM = ds.problems.softmax(ds.data.digits())


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the folder in which run folders are made; nothing may be left in it, nor any process."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = psutil.Process().children(recursive=True)  # of other tests' pools
    yield tmp_path
    assert list(tmp_path.iterdir()) == []
    assert set(psutil.Process().children(recursive=True)) <= set(before)


def live(algorithm: object = None, problem: object = PROBLEM, **options: object) -> Run:
    """Make a short live run."""
    options = {"workers": 2, "batch": 8, "heartbeat": 5.0} | options
    if not {"updates", "gradients", "epochs", "seconds"} & options.keys():
        options["updates"] = 30
    return ds.launch(algorithm or ds.algorithms.downpour(RATE), problem, **options)


def assert_replays(run: Run, algorithm: object = None, problem: object = PROBLEM) -> None:
    """Check that the recorded order gives the run again, bit for bit."""
    run.trace.verify()
    again = ds.replay(run, algorithm or ds.algorithms.downpour(RATE), problem)
    assert run.x.tobytes() == again.x.tobytes()
    assert run.history.equals(again.history, null_equal=True)


def test_a_run_folder_is_private_and_goes() -> None:
    """Only its user can enter a run's folder, and it is gone after the run."""
    with run_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "socket").touch()
    assert not folder.exists()


def test_folders_of_dead_runs_are_removed(folders: Path) -> None:
    """A folder that no living program holds is removed, and any other one stays."""
    dead, other = folders / "distsgd-run-dead", folders / "other"
    (dead / "inside").mkdir(parents=True)
    other.mkdir()
    with run_folder() as living:
        assert set(folders.iterdir()) == {living, other}
        remove_dead()
        assert set(folders.iterdir()) == {living, other}
    other.rmdir()


@pytest.mark.parametrize(
    ("budget", "reached"),
    [
        ({"updates": 33}, lambda run: run.trace.n_updates == 33),
        ({"gradients": 33}, lambda run: run.trace.gradients[-1] == 33),
        ({"epochs": 0.2}, lambda run: run.trace.gradients[-1] == math.ceil(0.2 * 1437 / 8)),
        ({"seconds": 0.3}, lambda run: np.all(run.trace.seconds <= 0.3)),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
def test_a_budget_is_kept(budget: dict[str, float], reached: object) -> None:
    """A live run ends with its budget, exactly, and is its replay."""
    run = live(**budget, evaluations=3)
    assert run.status == "done"
    assert reached(run)
    assert_replays(run)


def test_a_history_has_wall_seconds() -> None:
    """The history of a live run has wall seconds, ascending, and no virtual ones."""
    run = live(evaluate_every=10)
    assert run.history["seconds"].is_nan().all()
    seconds = run.history["wall_seconds"].to_list()
    assert seconds[0] == 0.0
    assert seconds == sorted(seconds)
    assert seconds[1:] == [run.trace.seconds[u - 1] for u in run.history["update"][1:]]


def test_a_run_can_be_stopped() -> None:
    """A run that is asked to stop returns what it has done so far."""
    seen: list[Progress] = []
    run = live(updates=10**9, watch=seen.append, stop=lambda: bool(seen and seen[-1].updates))
    assert run.status == "stopped"
    assert run.trace.n_updates >= seen[-1].updates > 0
    assert run.history["update"][-1] == run.trace.n_updates
    assert (seen[-1].alive, seen[-1].lost) == (2, 0)
    assert_replays(run)


class Standing(DisturbedProblem):
    """A problem whose gradient is never found from the fourth call in a worker on."""

    problem = PROBLEM

    def disturb(self, step: int) -> None:
        """Wait for ever."""
        if step > 3:
            threading.Event().wait()


def test_a_run_that_stands_still_can_be_stopped() -> None:
    """A run is stopped although its last model has been judged and no other one comes."""
    seen: list[int] = []
    run = live(
        problem=Standing(),
        workers=1,
        updates=10**9,
        evaluate_every=1,
        watch=lambda progress: seen.append(progress.updates),
        stop=lambda: seen.count(2) > 4,
    )
    assert (run.status, run.trace.n_updates) == ("stopped", 2)
    assert run.history["update"][-1] == 2


def test_a_target_ends_a_run() -> None:
    """A run ends at the evaluation that meets its target, and its parameters are those."""
    run = live(updates=10**9, target=1.0, evaluate_every=20)
    losses = run.history["loss"].to_list()
    assert run.status == "target"
    assert losses[-1] <= 1.0 < min(losses[:-1])
    assert PROBLEM.loss(run.x) == losses[-1]
    assert_replays(run)


def test_divergence_ends_a_run() -> None:
    """A run whose numbers leave the finite ones ends there, at an update that it names."""
    run = live(ds.algorithms.downpour(1e300), updates=10**9, evaluate_every=20)
    assert run.status == "diverged"
    assert run.diverged_at == run.history["update"][-1] == run.trace.n_updates


def test_parts_of_the_data_are_kept() -> None:
    """Workers of a live run see their own parts of the data, as a replay knows."""
    assert_replays(live(partition=ds.Partition("sharded", "reshuffled")))


def test_injected_staleness_is_seen() -> None:
    """Every pull is as many updates behind as was asked for, as soon as there are so many."""
    run = live(staleness=16, updates=60)
    rows = run.trace.rows
    pulls = rows[rows["verb"] == PULL]
    assert (pulls["version"] - pulls["read"] == np.minimum(pulls["version"], 16)).all()
    assert (run.trace.staleness[20:] >= 16).all()
    assert_replays(run)


def test_a_delay_is_slept() -> None:
    """No worker pushes earlier after its pull than its delay lets it."""
    slow = ds.constant(0.01)
    run = live(ds.algorithms.downpour(RATE), delay=[slow, ds.constant(0.0)], updates=40)
    rows = run.trace.rows[run.trace.rows["worker"] == 0]
    pushes = np.flatnonzero(rows["verb"] == PUSH)
    assert (rows["sent"][pushes] - rows["done"][pushes - 1] >= 0.01).all()
    assert run.settings["fleet"]["delay"] == ["constant(0.01)", "constant(0.0)"]
    assert_replays(run)


def test_nobody_runs_ahead_of_a_bound() -> None:
    """With a bound, no pull is served to a worker that is further ahead of the slowest."""
    algorithm = ds.algorithms.stale_synchronous(RATE, bound=2)
    run = live(algorithm, delay=[ds.constant(0.005), ds.constant(0.0)], updates=60)
    pushed = [0, 0]
    for row in run.trace.rows:
        if row["verb"] == PULL:
            assert pushed[row["worker"]] - min(pushed) <= 2
        else:
            pushed[row["worker"]] = row["step"]
    assert_replays(run, algorithm)


def test_what_evaluation_cost_is_counted() -> None:
    """Evaluations, those that were skipped, and their cost are in the run's counts."""
    run = live(evaluate_every=1, updates=200)
    counts = run.counts
    assert counts["evaluations"] == len(run.history)
    assert counts["evaluations"] + counts["skipped_evaluations"] >= 200
    assert counts["evaluation_us"] > 0
    assert (counts["lost_workers"], counts["server_restarts"]) == (0, 0)


class Failing(DisturbedProblem):
    """A problem whose gradient fails at the fifth call in a worker."""

    problem = PROBLEM

    def disturb(self, step: int) -> None:
        """Fail once."""
        if step == 5:
            raise ZeroDivisionError("divided by zero")


def test_a_worker_that_fails_is_named() -> None:
    """An error in a worker ends the run, and says which worker it was and what happened."""
    with pytest.raises(DistsgdError, match=r"worker [01] failed: ZeroDivisionError: divided by zero"):
        live(problem=Failing(), updates=10**9)


class Slow(DisturbedProblem):
    """A problem whose calls are written down; all workers but one compile for a while."""

    problem = PROBLEM

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def start(self, seed: int) -> np.ndarray:
        """Return the starting point."""
        self.write("start")
        return PROBLEM.start(seed)

    def disturb(self, step: int) -> None:
        """Compile, so to speak."""
        if step == 1 and "first gradient" in self.path.read_text():
            time.sleep(0.5)
        self.write("gradient" if step > 1 else "first gradient")

    def write(self, what: str) -> None:
        """Write down what this process does."""
        with self.path.open("a") as file:
            file.write(f"{os.getpid()} {what}\n")


def test_the_launcher_leaves_a_problem_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What may start threads is called in the program and behind the fork; each worker warms up.

    No worker takes a step before all of them have evaluated their first gradient.
    """
    path = tmp_path_factory.mktemp("seen") / "calls"
    live(problem=Slow(path), updates=50)
    calls = [line.split(" ", 1) for line in path.read_text().splitlines()]
    calls = [(process, what) for process, what in calls if int(process) != os.getpid()]
    evaluator = {process for process, what in calls if what == "start"}
    workers = [process for process, what in calls if what == "first gradient"]
    assert (len(evaluator), len(workers), len({*workers, *evaluator})) == (1, 2, 3)
    taken = [what for _, what in calls if what != "start"]
    assert taken[:2] == ["first gradient"] * 2
    assert set(taken[2:]) == {"gradient"}


def test_an_interrupted_program_leaves_nothing() -> None:
    """Ctrl-C in the program ends all processes of the run, and goes on upwards."""

    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        live(updates=10**9, watch=interrupt)


@pytest.mark.filterwarnings("ignore::distsgd.DistsgdWarning")  # parts are smaller than a batch
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": ds.algorithms.synchronous(RATE, backup=2)}, "backup must be < the number"),
        ({"partition": ds.Partition("sharded"), "workers": 8, "problem": "small"}, "must be <= 6"),
    ],
    ids=["backup", "parts"],
)
def test_what_cannot_run_is_refused(options: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no run could be made of is refused before a process is started."""
    monkeypatch.setattr(local, "launcher", None)
    if "problem" in options:
        options["problem"] = ds.problems.logistic(ds.data.sparse(6, 20, 3))
    with pytest.raises(ConfigError, match=message):
        live(**options)


def test_a_port_in_use_is_refused() -> None:
    """A run that cannot listen at its address says so, whichever shard it is."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"{address} cannot be listened at: it is in use"):
            live(address=address)


def test_too_little_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that would not fit says how much memory it needs, and how much is free."""
    monkeypatch.setattr(forking, "_free_bytes", lambda: 1000.0)
    with pytest.raises(ConfigError, match=r"needs .* GB .* 0\.0 GB are free; use fewer workers"):
        live()
