import dataclasses
import os
import signal
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest
from scipy.sparse import csr_array
from small_lock_free import HOGWILD, PROBLEMS, request_of

import distsgd as ds
from distsgd.algorithm import Algorithm, At, Rules, Server, Worker, where
from distsgd.algorithms.parts import adagrad
from distsgd.errors import WorkerLost
from distsgd.fold.request import Progress
from distsgd.kernels.fold.rules import RuleSet, loops
from distsgd.kernels.lock_free.gather import exchange_source
from distsgd.kernels.lock_free.steps import epoch_order, fill_order
from distsgd.live.lock_free.launch import epochs_of
from distsgd.live.lock_free.workers import Epoch, LockFreeJob, Tools, is_gathered
from distsgd.live.options import LiveRequest

pytestmark = pytest.mark.long

MANY = ds.problems.logistic(ds.data.sparse(20_000, 20, 5, test_samples=0))


class Count(NamedTuple):
    """The hyper-parameters of `counting`."""

    one: float


class Counts(NamedTuple):
    """Two columns that count the changes of a coordinate."""

    x: float
    twice: float


class One(NamedTuple):
    """A column that counts."""

    x: float


def counting(n_columns: int) -> Algorithm:
    """Add 1 to every coordinate that a sample touches, whatever the gradient."""
    server = Server(
        init=(lambda _, x: One(x)) if n_columns == 1 else (lambda _, x: Counts(x, x)),
        reads=("x",),
        apply=(lambda h, s, m: One(s.x + m.x))
        if n_columns == 1
        else (lambda h, s, m: Counts(s.x + m.x, s.twice + 2.0 * m.x)),
    )
    worker = Worker(
        init=lambda _, x: One(0.0 * x),
        receive=lambda h, w, x: One(0.0 * x),
        at=lambda h, w: w.x,
        step=lambda h, w, g: One(where(g != 0.0, h.one, 0.0)),
        send=lambda h, w: (w, One(w.x)),
    )
    return HOGWILD._replace(name="counting", hyper=Count(1.0), server=server, worker=worker)


def serial(request: LiveRequest, epochs: list[Epoch], block: int) -> dict[str, list[float]]:
    """Return the columns after a loop over the batches of all epochs, in plain Python."""
    h, rules, support = request.hyper, Rules.of(request.algorithm), request.problem.support
    state = request.algorithm.server.init(h, request.problem.start(0))
    kind, columns = type(state), [column.tolist() for column in state]
    step = 0
    for epoch in epochs:
        order = np.empty(request.problem.samples, np.uint32)
        fill_order(epoch_order(request.seed, epoch.number, order.size, block), 0, order)
        factor = request.algorithm.schedule(epoch.number)
        for number in range(epoch.steps):
            batch = order[number * request.config.batch : (number + 1) * request.config.batch].tolist()
            at = At(step, 0, 1, step, factor)
            sent = applied = at._replace(step=(step := step + 1))
            own = request.algorithm.worker.init(h, 0.0)
            touched = sorted({u for row in batch for u in row_of(request, row)[0]})
            read = {u: rules.receive(h, own, columns[0][u], at) for u in touched}
            point = {u: rules.at(h, w, at) for u, w in read.items()}
            gradient = dict.fromkeys(touched, 0.0)
            for row in batch:
                indices, values = row_of(request, row)
                margin = 0.0
                for u, value in zip(indices, values, strict=True):
                    margin += value * point[u]
                slope = support.slope(margin, support.labels[row])
                for u, value in zip(indices, values, strict=True):
                    shrunk = support.shrink[u] * point[u] if support.shrink.size else 0.0
                    gradient[u] += slope * value + shrunk
            for u, g in gradient.items():
                w = rules.step(h, read[u], g / len(batch), at)
                _, message = rules.send(h, w, sent)
                changed = rules.apply(h, kind(*(column[u] for column in columns)), message, applied)
                for column, value in zip(columns, changed, strict=True):
                    column[u] = float(value)
    return dict(zip(kind._fields, columns, strict=True))


def row_of(request: LiveRequest, row: int) -> tuple[list[int], list[float]]:
    """Return the columns and the values of a sample."""
    rows = request.problem.support.rows
    here = slice(int(rows.starts[row]), int(rows.starts[row + 1]))
    return rows.columns[here].tolist(), rows.values[here].tolist()


def processes() -> list[psutil.Process]:
    """Return the workers of the run that is going on."""
    return [worker for launcher in psutil.Process().children() for worker in launcher.children()]


def private_kb(process: psutil.Process) -> int:
    """Return the memory that a process has written and shares with no other."""
    text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="utf-8")
    return int(text.split("Private_Dirty:")[1].split()[0])


@pytest.mark.bounds
@pytest.mark.parametrize(
    ("problem", "writes", "batch", "algorithm"),
    [
        ("logistic", "racy", 1, HOGWILD),
        ("logistic, l2", "racy", 1, HOGWILD),
        ("svm, l2", "atomic", 1, HOGWILD),
        ("logistic, l2", "locked", 1, HOGWILD),
        ("logistic, l2", "round_robin", 1, HOGWILD),
        ("least_squares, l2", "racy", 8, HOGWILD),
        ("svm, l2", "atomic", 8, HOGWILD),
        ("logistic, l2", "atomic", 1, HOGWILD._replace(server=adagrad)),
    ],
)
def test_one_worker_has_the_bits_of_a_serial_loop(problem: str, writes: str, batch: int, algorithm: Algorithm) -> None:
    """One worker computes what a plain loop over the same order does, bit by bit."""
    request = request_of(PROBLEMS[problem], writes=writes, batch=batch, algorithm=algorithm)
    job = LockFreeJob(request, epochs_of(request), block=4)
    tools = Tools.of(job)
    for epoch in job.epochs:
        tools.begin()
        tools.take(0, epoch)
    expected = serial(request, job.epochs, job.block)
    for name, column in tools.memory.server._asdict().items():
        np.testing.assert_array_equal(column, expected[name])


@pytest.mark.bounds
def test_gathered_changes_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers one after another compute with gathered writes what racy ones do, up to rounding."""
    data = ds.data.sparse(1_000, 2_000, 5, test_samples=0)
    table = data.x.dense()[:, np.random.default_rng(0).permutation(2_000)]
    problem = ds.problems.logistic(ds.data.from_arrays(csr_array(table), data.y), l2=0.01)
    start = np.linspace(-1.0, 1.0, 2_000)
    monkeypatch.setattr(type(problem), "start", lambda _problem, _seed: start)
    algorithm = HOGWILD._replace(server=adagrad)
    finals = []
    for writes in ("racy", "gathered"):
        request = request_of(problem, algorithm=algorithm, workers=3, writes=writes)
        job = LockFreeJob(request, epochs_of(request), block=4)
        tools = Tools.of(job)
        for epoch in job.epochs:
            tools.begin()
            for worker in range(3):
                tools.take(worker, epoch)
            assert tools.memory.taken.sum() == epoch.steps
        finals.append(tools.x)
    assert 0 < tools.own.copy.x.size < 2_000
    assert np.any(finals[0] != finals[1])
    np.testing.assert_allclose(finals[1], finals[0], rtol=1e-9, atol=1e-12)


def test_one_worker_gathers_nothing() -> None:
    """A worker that is alone has no copy, whatever the writes, so that it has the serial bits."""
    problem = PROBLEMS["logistic"]
    assert not is_gathered(request_of(problem, workers=1, writes="gathered"))
    assert is_gathered(request_of(problem, workers=2, writes="gathered"))
    assert not is_gathered(request_of(problem, workers=2))


def test_gathered_changes_of_others_are_kept() -> None:
    """An exchange adds what a worker has changed since it took, and takes what others have."""
    exchange = loops(RuleSet.of(HOGWILD), exchange_source)["exchange_popular"]
    shared, copy, base = (One(np.array(x)) for x in ([5.0, 1.0, 9.0], [2.0, 4.0], [1.0, 4.0]))
    exchange(shared, copy, base)
    assert [*shared.x] == [6.0, 1.0, 9.0]
    assert [*copy.x] == [*base.x] == [6.0, 1.0]


@pytest.mark.bounds
@pytest.mark.parametrize(("n", "block"), [(1, 1), (7, 1), (64, 64), (200, 64), (1001, 8)])
def test_an_epoch_visits_every_sample_once(n: int, block: int) -> None:
    """The order of an epoch is a permutation, a fresh one each time, and the same for a seed."""
    orders = np.empty((3, n), np.uint32)
    for order, (seed, number) in zip(orders, [(5, 0), (5, 1), (5, 0)], strict=True):
        fill_order(epoch_order(seed, number, n, block), 0, order)
    np.testing.assert_array_equal(np.sort(orders[0]), np.arange(n))
    np.testing.assert_array_equal(orders[0], orders[2])
    assert n == 1 or np.any(orders[0] != orders[1])


@pytest.mark.parametrize(("writes", "n_columns"), [("atomic", 1), ("atomic", 2), ("locked", 1), ("round_robin", 1)])
def test_no_change_is_lost(writes: str, n_columns: int) -> None:
    """Unless writes are racy, what several workers add to the same coordinates is the sum."""
    epochs = 1 if writes == "round_robin" else 4
    run = ds.launch(counting(n_columns), MANY, workers=2, epochs=epochs, batch=1, writes=writes)
    np.testing.assert_array_equal(run.x, epochs * MANY.support.rows.counts)


def test_a_killed_worker_is_replaced() -> None:
    """Processes hold little of the data each, and when one is killed another one goes on."""
    problem = ds.problems.logistic(ds.data.sparse(40_000, 2_000, 50, test_samples=0))
    before = psutil.Process().children()  # of other tests' pools
    data_kb = problem.support.rows.values.nbytes * 1.5 / 1024
    private: list[int] = []
    lost: list[int] = []

    def watch(progress: Progress) -> None:
        lost.append(progress.lost)
        workers = processes()
        if progress.updates > 0 and not private:
            private.extend(map(private_kb, workers))
            os.kill(workers[-1].pid, signal.SIGKILL)

    run = ds.launch(
        HOGWILD,
        problem,
        workers=3,
        epochs=100_000,
        batch=1,
        writes="locked",
        evaluations=10,
        watch=watch,
        stop=lambda: 1 in lost,
    )
    assert len(private) == 3
    assert sum(private) < 0.8 * data_kb
    assert run.status == "stopped"
    assert run.counts["lost_workers"] == 1
    assert run.counts["updates"] % problem.samples == 0
    assert set(psutil.Process().children()) <= set(before)


def test_a_worker_that_takes_a_place_finds_no_locks() -> None:
    """The locks of a worker that has ended are free, and those of others are not."""
    request = request_of(PROBLEMS["logistic"], writes="locked")
    tools = Tools.of(LockFreeJob(request, epochs_of(request), block=4))
    tools.memory.locks[:4] = [0, 1, 2, 1]
    tools.free(0)
    assert tools.memory.locks[:4].tolist() == [0, 0, 2, 0]


def test_a_worker_that_takes_a_place_knows_its_steps() -> None:
    """A process goes on from the count that was told, or from the turns that are over."""
    request = request_of(PROBLEMS["logistic"], workers=3, writes="round_robin")
    tools = Tools.of(LockFreeJob(request, epochs_of(request), block=4))
    for turn in range(10):
        tools.memory.turn[0] = turn
        expected = [len(range(worker, turn, 3)) for worker in range(3)]
        assert [tools.resumed(worker, 70) for worker in range(3)] == expected
    tools.take(0, Epoch(0, 2, 0, is_evaluated=False))  # a turn without a step, which is over
    tools = dataclasses.replace(tools, job=tools.job._replace(request=request_of(request.problem)))
    tools.memory.taken[:] = [4096, 0, 5]
    assert [tools.resumed(worker, 5000) for worker in range(3)] == [4096, 0, 5]


def test_a_worker_that_fails_ends_the_run() -> None:
    """An exception in a worker is raised by `launch`, with its traceback."""
    before = psutil.Process().children()  # of other tests' pools
    failing = HOGWILD._replace(schedule=lambda epoch: 1.0 / (1.0 - epoch))
    with pytest.raises(WorkerLost, match=r"(?s)worker \d failed.*ZeroDivisionError"):
        ds.launch(failing, PROBLEMS["logistic"], workers=2, epochs=3, batch=1)
    assert set(psutil.Process().children()) <= set(before)


def test_a_run_has_a_history_in_wall_seconds() -> None:
    """A point stands at the ends of epochs until the target is met, and the trace is empty."""
    problem = PROBLEMS["logistic"]
    run = ds.launch(HOGWILD, problem, workers=2, epochs=50.5, batch=1, target=0.6, evaluate_every=1)
    update = run.history["update"]
    assert run.status == "target"
    assert problem.loss(run.x) == run.history["loss"][-1] <= 0.6 < run.history["loss"][-2]
    assert update.to_list() == [70 * epoch for epoch in range(len(update))]
    assert run.history["epoch"].to_list() == [*range(len(update))]
    assert run.history["gradients"].to_list() == update.to_list()
    assert run.history["wall_seconds"].is_sorted()
    assert run.history["seconds"].is_nan().all()
    assert len(run.trace.rows) == 0
    assert f"{update[-1]} updates" in repr(run)
    assert run.settings["fleet"]["kind"] == "shared_memory"
    assert run.settings["fleet"]["writes"] == "racy"
