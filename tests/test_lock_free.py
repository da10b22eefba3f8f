import dataclasses
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest
from scipy.sparse import csr_array

import distsgd as ds
from distsgd import ConfigError
from distsgd.algorithm import Algorithm, At, Rules, Server, Worker, where
from distsgd.algorithms.parts import adagrad
from distsgd.errors import WorkerLost
from distsgd.kernels.fold.rules import Halves, loops
from distsgd.kernels.lock_free.steps import fill_order, order_of
from distsgd.live.lock_free.launch import block_of, epochs_of
from distsgd.live.lock_free.workers import Epoch, Job, Tools, is_gathered, status_of
from distsgd.live.request import Budget, Launch, Progress
from distsgd.problem import Problem

HOGWILD = ds.algorithms.hogwild(0.3, backoff=0.8)
DATA = ds.data.sparse(70, 30, 5, popularity=0.5, test_samples=0)
PROBLEMS = {
    "logistic": ds.problems.logistic(DATA),
    "logistic, l2": ds.problems.logistic(DATA, l2=0.1),
    "svm, l2": ds.problems.svm(DATA, l2=0.1),
    "least_squares, l2": ds.problems.least_squares(DATA, l2=0.1),
}
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
        init=lambda _, x: One(0.0 * x), receive=lambda h, w, x: One(0.0 * x),
        at=lambda h, w: w.x, step=lambda h, w, g: One(where(g != 0.0, h.one, 0.0)),
        send=lambda h, w: (w, One(w.x)),
    )  # fmt: skip
    return HOGWILD._replace(name="counting", hyper=Count(1.0), server=server, worker=worker)


def case_of(problem: Problem, *, algorithm: Algorithm = HOGWILD, **others: object) -> Launch:
    """Return a run of one worker on single samples, for three epochs and a half."""
    case = Launch(algorithm, problem, 1, Budget("epochs", 3.5), batch=1, seed=3)
    return dataclasses.replace(case, **others)


def serial(case: Launch, epochs: list[Epoch], block: int) -> dict[str, list[float]]:
    """Return the columns after a loop over the batches of all epochs, in plain Python."""
    h, rules, support = case.hyper, Rules.of(case.algorithm), case.problem.support
    state = case.algorithm.server.init(h, case.problem.start(0))
    kind, columns = type(state), [column.tolist() for column in state]
    step = 0
    for epoch in epochs:
        order = np.empty(case.problem.samples, np.uint32)
        fill_order(order_of(case.seed, epoch.number, order.size, block), 0, order)
        factor = case.algorithm.schedule(epoch.number)
        for number in range(epoch.steps):
            batch = order[number * case.batch : (number + 1) * case.batch].tolist()
            at = At(step, 0, 1, step, factor)
            sent = applied = at._replace(step=(step := step + 1))
            own = case.algorithm.worker.init(h, 0.0)
            touched = sorted({u for row in batch for u in row_of(case, row)[0]})
            read = {u: rules.receive(h, own, columns[0][u], at) for u in touched}
            point = {u: rules.at(h, w, at) for u, w in read.items()}
            gradient = dict.fromkeys(touched, 0.0)
            for row in batch:
                indices, values = row_of(case, row)
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


def row_of(case: Launch, row: int) -> tuple[list[int], list[float]]:
    """Return the columns and the values of a sample."""
    rows = case.problem.support.rows
    here = slice(int(rows.starts[row]), int(rows.starts[row + 1]))
    return rows.columns[here].tolist(), rows.values[here].tolist()


def processes() -> list[psutil.Process]:
    """Return the workers of the run that is going on."""
    return [worker for nursery in psutil.Process().children() for worker in nursery.children()]


def private_kb(process: psutil.Process) -> int:
    """Return the memory that a process has written and shares with nobody."""
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
def test_one_worker_has_the_bits_of_a_serial_loop(
    problem: str, writes: str, batch: int, algorithm: Algorithm
) -> None:
    """One worker computes what a plain loop over the same order does, bit by bit."""
    case = case_of(PROBLEMS[problem], writes=writes, batch=batch, algorithm=algorithm)
    job = Job(case, epochs_of(case), block=4)
    tools = Tools.of(job)
    for epoch in job.epochs:
        tools.begin()
        tools.take(0, epoch)
    expected = serial(case, job.epochs, job.block)
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
        case = case_of(problem, algorithm=algorithm, workers=3, writes=writes)
        job = Job(case, epochs_of(case), block=4)
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
    assert not is_gathered(case_of(problem, workers=1, writes="gathered"))
    assert is_gathered(case_of(problem, workers=2, writes="gathered"))
    assert not is_gathered(case_of(problem, workers=2))


def test_gathered_changes_of_others_are_kept() -> None:
    """An exchange adds what a worker has changed since it took, and takes what others have."""
    exchange = loops(Halves.of(HOGWILD)).by_name["exchange_popular"]
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
        fill_order(order_of(seed, number, n, block), 0, order)
    np.testing.assert_array_equal(np.sort(orders[0]), np.arange(n))
    np.testing.assert_array_equal(orders[0], orders[2])
    assert n == 1 or np.any(orders[0] != orders[1])


def test_workers_share_an_epoch() -> None:
    """The chunks of all workers are the epoch, and their sizes differ by 1 at most."""
    for steps in (7, 100, 101):
        shares = [Epoch(0, steps, 0, is_evaluated=True).share(w, 4) for w in range(4)]
        assert [first for first, _ in shares] == [0, *np.cumsum([n for _, n in shares])[:-1]]
        assert sum(n for _, n in shares) == steps
        assert max(n for _, n in shares) - min(n for _, n in shares) <= 1


@pytest.mark.parametrize(
    ("budget", "ends"),
    [
        (Budget("epochs", 2), [70, 140]),
        (Budget("epochs", 1.5), [70, 105]),
        (Budget("updates", 150), [70, 140, 150]),
        (Budget("gradients", 60), [60]),
    ],
)
def test_a_budget_ends_inside_an_epoch(budget: Budget, ends: list[int]) -> None:
    """Epochs follow one another until the budget is spent, and the last may be cut short."""
    epochs = epochs_of(case_of(PROBLEMS["logistic"], budget=budget))
    assert [epoch.end for epoch in epochs] == ends
    assert [epoch.version for epoch in epochs] == [0, *ends[:-1]]
    assert epochs[-1].is_evaluated


def test_a_point_of_the_history_is_an_end_of_an_epoch() -> None:
    """The objective is evaluated at the first end behind each wanted point, and at the last."""

    def evaluated(**asked: int) -> list[int]:
        case = case_of(PROBLEMS["logistic"], budget=Budget("epochs", 100), **asked)
        return [epoch.number + 1 for epoch in epochs_of(case) if epoch.is_evaluated]

    assert evaluated(evaluations=4) == [25, 50, 75, 100]
    assert evaluated(evaluate_every=30 * 70 + 1) == [31, 61, 91, 100]
    assert evaluated() == list(range(2, 101, 2))


def test_blocks_are_small_where_samples_are_few() -> None:
    """An epoch has a thousand blocks, or a block for each sample."""
    assert [block_of(n) for n in (1, 100, 2048, 20_000, 10**6)] == [1, 1, 2, 19, 64]


@pytest.mark.parametrize(
    ("writes", "n_columns"), [("atomic", 1), ("atomic", 2), ("locked", 1), ("round_robin", 1)]
)
def test_no_change_is_lost(writes: str, n_columns: int) -> None:
    """Unless writes are racy, what several workers add to the same coordinates is the sum."""
    epochs = 1 if writes == "round_robin" else 4
    run = ds.launch(counting(n_columns), MANY, workers=2, epochs=epochs, batch=1, writes=writes)
    np.testing.assert_array_equal(run.x, epochs * MANY.support.rows.counts)


def test_a_killed_worker_is_replaced() -> None:
    """Processes hold little of the data each, and when one is killed another one goes on."""
    problem = ds.problems.logistic(ds.data.sparse(40_000, 2_000, 50, test_samples=0))
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
        HOGWILD, problem, workers=3, epochs=100_000, batch=1, writes="locked", evaluations=10,
        watch=watch, stop=lambda: 1 in lost,
    )  # fmt: skip
    assert len(private) == 3
    assert sum(private) < 0.8 * data_kb
    assert run.status == "stopped"
    assert run.counts["lost_workers"] == 1
    assert run.counts["updates"] % problem.samples == 0
    assert not psutil.Process().children()


def test_whoever_takes_a_place_finds_no_locks() -> None:
    """The locks of a worker that has ended are free, and nobody else's are."""
    case = case_of(PROBLEMS["logistic"], writes="locked")
    tools = Tools.of(Job(case, epochs_of(case), block=4))
    tools.memory.locks[:4] = [0, 1, 2, 1]
    tools.free(0)
    assert tools.memory.locks[:4].tolist() == [0, 0, 2, 0]


def test_whoever_takes_a_place_knows_its_steps() -> None:
    """A process goes on from the count that was told, or from the turns that are over."""
    case = case_of(PROBLEMS["logistic"], workers=3, writes="round_robin")
    tools = Tools.of(Job(case, epochs_of(case), block=4))
    for turn in range(10):
        tools.memory.turn[0] = turn
        expected = [len(range(worker, turn, 3)) for worker in range(3)]
        assert [tools.resumed(worker, 70) for worker in range(3)] == expected
    tools.take(0, Epoch(0, 2, 0, is_evaluated=False))  # a turn without a step, which is over
    tools = dataclasses.replace(tools, job=tools.job._replace(case=case_of(case.problem)))
    tools.memory.taken[:] = [4096, 0, 5]
    assert [tools.resumed(worker, 5000) for worker in range(3)] == [4096, 0, 5]


def test_a_worker_that_fails_ends_the_run() -> None:
    """An exception in a worker is raised by `launch`, with its traceback."""
    failing = HOGWILD._replace(schedule=lambda epoch: 1.0 / (1.0 - epoch))
    with pytest.raises(WorkerLost, match=r"(?s)worker \d failed.*ZeroDivisionError"):
        ds.launch(failing, PROBLEMS["logistic"], workers=2, epochs=3, batch=1)
    assert not psutil.Process().children()


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


@pytest.mark.parametrize(
    ("loss", "x", "is_stopped", "status"),
    [
        (0.5, 1.0, False, "done"),
        (0.5, 1.0, True, "stopped"),
        (0.4, 1.0, True, "target"),
        (math.nan, 1.0, False, "diverged"),
        (0.4, math.inf, False, "diverged"),
    ],
)
def test_a_run_ends_where_its_numbers_say(
    loss: float, x: float, is_stopped: bool, status: str
) -> None:
    """Numbers that are not finite come first, then the target, then whoever asked to stop."""
    assert status_of(np.array([x]), loss, 0.4, is_stopped=is_stopped) == status


@pytest.mark.filterwarnings("ignore::distsgd.DistsgdWarning")  # refused all the same
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seconds": 1.0}, "give epochs, not seconds"),
        ({"epochs": 1, "staleness": 3}, "staleness has no meaning for hogwild"),
        ({"epochs": 1, "shards": 2}, "shards has no meaning"),
        ({"epochs": 1, "delay": ds.constant(1.0)}, "delay has no meaning"),
        ({"epochs": 1, "on_loss": "shrink"}, "on_loss has no meaning"),
        ({"epochs": 1, "partition": ds.Partition("sharded")}, "partition has no meaning"),
        ({"epochs": 1, "workers": 10, "batch": 8}, "workers must be <= 9, the batches of 8"),
        ({"epochs": 1, "writes": "gathered", "batch": 2}, "batches of 1 only, not 2"),
        ({"epochs": 1, "writes": "careful"}, "unknown writes 'careful'"),
        ({"epochs": 1, "on": "ray"}, "use on='local', or downpour on a cluster"),
        ({"epochs": 1, "updates": 1}, "give exactly one of"),
    ],
)
def test_what_has_no_meaning_is_refused(arguments: dict[str, object], message: str) -> None:
    """An argument that shared memory cannot follow is refused before anything starts."""
    with pytest.raises(ConfigError, match=message):
        ds.launch(HOGWILD, PROBLEMS["logistic"], **arguments)


@pytest.mark.filterwarnings("ignore::distsgd.DistsgdWarning")  # refused all the same
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "workers must be a whole number >= 1"),
        ({"workers": 65}, "workers must be <= 64 on one machine"),
        ({"on": "moon"}, "unknown on 'moon'"),
        ({"epochs": 0}, "epochs must be > 0"),
        ({"epochs": None}, "give exactly one of updates, gradients, epochs, seconds"),
        ({"epochs": None, "updates": 1.5}, "updates must be a whole number"),
        ({"evaluate_every": 1, "evaluations": 1}, "give evaluate_every or evaluations, not both"),
        ({"evaluations": 0}, "evaluations must be a whole number >= 1"),
        ({"partition": "sharded"}, "partition must be a value such as"),
        ({"staleness": -1}, "staleness must be a whole number >= 0"),
        ({"delay": [ds.constant(1.0)]}, r"delay must have one law per worker \(4\), not 1"),
        ({"delay": 0.1}, "delay must be a law such as"),
        ({"shards": 31}, "shards must be <= 30, the number of parameters"),
        ({"on_loss": "weep"}, "unknown on_loss 'weep'"),
        ({"heartbeat": 0.0}, "heartbeat must be > 0 s"),
        ({"writes": "atomic"}, "writes='atomic' has a meaning for lock-free algorithms only"),
    ],
)
def test_every_argument_of_launch_is_checked(arguments: dict[str, object], message: str) -> None:
    """An argument outside of its bounds is refused before any process starts."""
    with pytest.raises(ConfigError, match=message):
        ds.launch(ds.algorithms.downpour(0.1), PROBLEMS["logistic"], **{"epochs": 1} | arguments)


@pytest.mark.filterwarnings("ignore::distsgd.DistsgdWarning")  # refused all the same
def test_what_is_not_sparse_is_refused() -> None:
    """Dense gradients, and algorithms that wait or remember, are refused with what to use."""
    with pytest.raises(ConfigError, match="use a linear problem on sparse data"):
        ds.launch(HOGWILD, ds.problems.quadratic([1.0]), epochs=1)
    waiting = ds.algorithms.synchronous(0.1)._replace(lock_free=True, sparse=True)
    with pytest.raises(ConfigError, match="use hogwild, not synchronous"):
        ds.launch(waiting, PROBLEMS["logistic"], epochs=1)


def test_too_little_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that does not fit says how much it needs before anything starts."""
    free: Callable[[], float] = lambda: 1e3  # noqa: E731 # what the function does is all there is
    monkeypatch.setattr("distsgd.live.machine.forking._free_bytes", free)
    with pytest.raises(ConfigError, match=r"hogwild on logistic needs 0.0 GB of shared memory"):
        ds.launch(HOGWILD, PROBLEMS["logistic"], workers=1, epochs=1)
