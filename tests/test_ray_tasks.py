import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from small_setup import setup_of
from threadpoolctl import threadpool_info

import distsgd as ds
from distsgd import ConfigError
from distsgd.experiment.runs import Place, run_folder, run_jobs
from distsgd.experiment.setup import Job, Setup
from distsgd.live.ray import tasks as ray_tasks
from distsgd.live.ray.session import Session, connected
from distsgd.live.ray.tasks import work

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[Session]:
    """Return a Ray of two CPUs, which all tests of this module share, on machines that use both."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # only this process has it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # another module's Ray may have changed it
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "2")
            patch.setenv("OPENBLAS_NUM_THREADS", "2")
            found = stack.enter_context(connected(processes=2))
        yield found
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def setup() -> Setup:
    """Return two algorithms, two fleets and two seeds on softmax with few updates."""
    algorithms = {"serial": ds.algorithms.serial(0.1), "Downpour": ds.algorithms.downpour(0.1)}
    fleets = {"machines": ds.Fleet(3, ds.exponential(1.0)), "stale": ds.fixed_staleness(2)}
    problem = ds.problems.softmax(ds.data.digits(), l2=1e-4)
    return setup_of(algorithms, problem, fleets, {"updates": 30}, seeds=2, evaluations=3)


def test_a_cluster_does_not_change_bits(setup: Setup, tmp_path: Path) -> None:
    """Runs made by tasks have the bits of those made here, and are saved here, once each."""
    planned = [
        Job("softmax", fleet, label, seed, algorithm)
        for fleet in setup.fleets
        for label, algorithm in setup.algorithms.items()
        for seed in setup.seeds
    ]
    here = {job[:4]: run for job, run in run_jobs(setup, planned, Place())}
    on_ray = Place(tmp_path, None, on="ray")
    there = {job[:4]: run for job, run in run_jobs(setup, [*planned, *planned], on_ray)}
    assert there.keys() == here.keys()
    assert [run for run in there.values() if isinstance(run, str)] == []
    for label, run in here.items():
        same = there[label]
        assert same.x.tobytes() == run.x.tobytes()
        assert same.history.equals(run.history, null_equal=True)
        assert same.trace.rows.tobytes() == run.trace.rows.tobytes()
        assert same.hash == run.hash
        assert ds.load(run_folder(tmp_path, run.hash)).x.tobytes() == run.x.tobytes()


def told(common: list[int], piece: int) -> tuple[int, int, int, int]:
    """Return a number, the process, what `common` is there, and the most threads of a library."""
    common.append(piece)
    threads = max((one["num_threads"] for one in threadpool_info()), default=0)
    return piece, os.getpid(), len(common), threads


def test_every_piece_is_done_once_by_other_processes() -> None:
    """Tasks do each piece once, in processes that unpack the common part once, on one thread."""
    found = list(work(told, [], range(20)))
    assert sorted(piece for piece, _ in found) == list(range(20))
    assert all(done[0] == piece for piece, done in found)
    assert {done[3] for _, done in found} == {1}
    processes = {done[1] for _, done in found}
    assert os.getpid() not in processes
    assert max(done[2] for _, done in found) >= 20 / len(processes)


def zeros(_: object, n: int) -> np.ndarray:
    """Return that many zeros."""
    return np.zeros(n)


def test_results_belong_to_the_caller() -> None:
    """What a task returns can be written: it does not lie in Ray's memory."""
    assert all(done.flags.writeable for _, done in work(zeros, None, [1_000_000] * 3))


def fail(_: object, piece: int) -> None:
    """Fail at the third piece."""
    if piece == 2:
        raise ConfigError("just that one")


def test_an_error_keeps_its_type() -> None:
    """What a task raises is raised here."""
    with pytest.raises(ConfigError, match=r"^just that one$"):
        list(work(fail, None, range(4)))


def end(_: object, __: object) -> None:
    """End the process that does the piece."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task whose process is killed again and again is told in words that say what to do."""
    monkeypatch.setattr(ray_tasks, "RETRIES", 1)
    with pytest.raises(ConfigError, match=r"Ray ended a task.*run the same command again"):
        list(work(end, None, [0]))


def lacks(_: object, __: object) -> None:
    """Import a package that no node has."""
    raise ModuleNotFoundError("No module named 'nobody_has_it'", name="nobody_has_it")


def test_a_missing_package_is_named() -> None:
    """A node that lacks a package is told with its name and what to install."""
    with pytest.raises(ConfigError, match=r"has no package nobody_has_it; install distsgd there"):
        list(work(lacks, None, [0]))


def sleep(_: object, seconds: float) -> float:
    """Sleep so long [s]."""
    time.sleep(seconds)
    return seconds


def test_an_interruption_frees_the_cluster() -> None:
    """Whoever stops asking for results leaves no task behind: the next work begins at once."""
    found = work(sleep, None, [0.0, *[3600.0] * 5])
    assert next(found) == (0.0, 0.0)
    found.close()
    assert len(list(work(sleep, None, [0.0, 0.0]))) == 2


def test_signals_stay_the_caller_s() -> None:
    """A connection to Ray does not decide what SIGTERM does."""
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_no_more_tasks_than_asked_for(tmp_path: Path) -> None:
    """With one process asked for, no two tasks overlap, though the cluster has two CPUs."""

    def alone(_: object, __: object) -> bool:
        with (tmp_path / "busy").open("x"):
            time.sleep(0.02)
        (tmp_path / "busy").unlink()
        return True

    assert len(list(work(alone, None, range(6), processes=1))) == 6


def test_a_cluster_without_a_cpu_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work on a cluster that has no CPU, and gets none, ends with a sentence."""

    class Empty:
        """A Ray without nodes."""

        wait = staticmethod(lambda tasks, **_: ([], tasks))
        cluster_resources = staticmethod(dict)

    monkeypatch.setattr(ray_tasks, "PATIENCE_S", 0.1)
    with pytest.raises(ConfigError, match=r"has had no CPU for 0.1 s; add a node to it"):
        ray_tasks._finished(Session(Empty), ["task"])
