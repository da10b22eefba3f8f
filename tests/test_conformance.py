"""The table algorithm x engine: a law holds in every cell, or a reason stands there."""

import contextlib
import os
import socket
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest

import distsgd as ds
from distsgd.algorithm import Algorithm, At, Column, Pull, Push, Step, Worker, verb
from distsgd.algorithms.parts import Gradient, Parameters, Reader, gradient_worker, sgd
from distsgd.problem import Problem
from distsgd.run import Run

pytestmark = pytest.mark.long

BATCH, SEED, RATE, UPDATES = 8, 3, 0.1, 40


def weighted(g: Column, at: At) -> Column:
    """Return a gradient times a number in which everything stands that a rule may know."""
    known = 2.0 * at.version + 3.0 * at.staleness + 5.0 * at.workers + 7.0 * at.step
    return g * (at.factor / (1.0 + 0.01 * known))


KNOWING = gradient_worker._replace(
    receive=lambda h, w, x, at: Reader(weighted(x, at), 0.0),
    at=lambda h, w, at: weighted(w.x, at),
    step=lambda h, w, g, at: Reader(w.x, weighted(g, at)),
    send=lambda h, w, at: (w, Gradient(weighted(w.g, at))),
)


class Remembering(NamedTuple):
    """A worker that keeps what it pulled before, until long after the next pull."""

    x: Column
    before: Column
    g: Column


REMEMBERING = Worker(
    init=lambda h, x: Remembering(x, x, 0.0),
    receive=lambda h, w, x: Remembering(x, w.x, 0.0),
    at=lambda h, w: 0.5 * (w.x + w.before),
    step=lambda h, w, g: Remembering(w.x, w.before, g),
    send=lambda h, w: (w, Gradient(w.g)),
)

ALGORITHMS = {
    "remembering": ds.algorithms.downpour(RATE)._replace(name="remembering", worker=REMEMBERING, sparse=False),
    "knowing": ds.algorithms.synchronous(RATE)._replace(
        name="knowing",
        worker=KNOWING,
        server=sgd._replace(apply=lambda h, s, m, at: Parameters(s.x - h.learning_rate * weighted(m.g, at))),
        cycle=(Pull(every=2), Step(), Push(every=1)),
        schedule=lambda epoch: 1.0 / (1.0 + epoch),
    ),
    "serial": ds.algorithms.serial(RATE),
    "hogwild": ds.algorithms.hogwild(RATE),
    "synchronous": ds.algorithms.synchronous(RATE),
    "with backup": ds.algorithms.synchronous(RATE, backup=1),
    "downpour": ds.algorithms.downpour(RATE),
    "downpour 3 2": ds.algorithms.downpour(RATE, n_fetch=3, n_push=2, server="adagrad"),
    "warm start": ds.algorithms.downpour(RATE, warm_start=5),
    "adaptive_revision": ds.algorithms.adaptive_revision(RATE),
    "elastic": ds.algorithms.elastic_averaging(RATE, period=3, momentum=0.5),
    "stale_synchronous": ds.algorithms.stale_synchronous(RATE, bound=1),
}


def free_ports(n: int) -> int:
    """Return the first of some ports in a row that are free."""
    for first in range(20_000 + os.getpid() % 10_000, 60_000, n):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + n):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise AssertionError


class Place(NamedTuple):
    """Where a live run is."""

    workers: int
    shards: int = 1
    over_tcp: bool = False


PLACES = {
    "alone": Place(1),
    "shared memory": Place(2),
    "8 workers, 3 shards": Place(8, shards=3),
    "frames, 3 shards": Place(2, shards=3, over_tcp=True),
}


QUICK = {("knowing", "alone"), ("downpour 3 2", "frames, 3 shards")}
"""Cells in which most can go wrong for the time that they take."""


def reason(label: str, place: Place) -> str:
    """Return why a cell of the table is empty, or nothing."""
    algorithm = ALGORITHMS[label]
    if algorithm.lock_free:
        return "lock-free workers have no order: compared statistically, in test_lock_free"
    if label == "serial" and place.workers > 1:
        return "serial SGD has one worker"
    if verb(algorithm.cycle, Push).backup >= place.workers:
        return "a worker has to be waited for"
    return ""


def cell(label: str, name: str) -> object:
    """Return a cell of the table, with its reason if it is empty."""
    why = reason(label, PLACES[name])
    marks = [pytest.mark.skip(why)] if why else [pytest.mark.quick] if (label, name) in QUICK else []
    return pytest.param(label, name, marks=marks, id=f"{label}-{name}")


CELLS = [cell(label, name) for label in ALGORITHMS for name in PLACES]


SPARSE = ds.problems.logistic(ds.data.sparse(200, 300, 10), l2=1e-3)
NOISY = ds.problems.quadratic(np.linspace(0.5, 2.0, 7), noise=0.1)
DENSE = ds.problems.softmax(ds.data.digits())


def problem_of(label: str, name: str) -> Problem:
    """Return a small problem: dense, sparse or noisy."""
    if (label, name) == ("downpour", "shared memory"):
        return SPARSE
    return NOISY if label == "elastic" else DENSE


@cache
def pytorch_problem() -> Problem:
    """Return a module of PyTorch, whose columns are float32, with a random layer."""
    torch = pytest.importorskip("torch", reason="needs distsgd[torch]")
    torch.manual_seed(0)
    layers = torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(8, 10)
    return ds.problems.from_torch(torch.nn.Sequential(*layers), ds.data.digits(), "cross_entropy")


@cache
def live(label: str, name: str) -> Run:
    """Make a short live run."""
    return launched(ALGORITHMS[label], problem_of(label, name), PLACES[name])


def launched(algorithm: Algorithm, problem: Problem, place: Place) -> Run:
    """Make a short live run in a place."""
    address = f"tcp://127.0.0.1:{free_ports(place.shards)}" if place.over_tcp else None
    return ds.launch(
        algorithm,
        problem,
        workers=place.workers,
        shards=place.shards,
        address=address,
        updates=UPDATES,
        batch=BATCH,
        seed=SEED,
        evaluate_every=10,
    )


@pytest.mark.parametrize(("label", "name"), CELLS)
def test_a_live_run_is_its_replay(label: str, name: str) -> None:
    """The recorded order of a live run gives its parameters and its history, bit for bit."""
    run = live(label, name)
    assert (run.status, run.trace.n_updates) == ("done", UPDATES)
    run.trace.verify()
    # interpreted: a compiled fold has the same bits, and takes seconds to compile
    again = ds.replay(run, ALGORITHMS[label], problem_of(label, name), driver="interpreted")
    assert run.x.tobytes() == again.x.tobytes()
    assert run.history.equals(again.history, null_equal=True)


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("label", ["downpour 3 2", "elastic", "knowing"])
def test_a_pytorch_module_is_its_replay(label: str, name: str) -> None:
    """Both drivers give a live run of a PyTorch module again, bit for bit, wherever it was."""
    # no lock-free workers: they need sparse data, and the gradients of a module are dense
    run = launched(ALGORITHMS[label], pytorch_problem(), PLACES[name])
    assert (run.status, run.trace.n_updates, run.x.dtype) == ("done", UPDATES, np.float32)
    for driver in ("interpreted", "compiled"):
        again = ds.replay(run, ALGORITHMS[label], pytorch_problem(), driver=driver)
        assert run.x.tobytes() == again.x.tobytes()
        assert run.history.equals(again.history, null_equal=True)


@pytest.mark.parametrize(("label", "name"), [cell(label, "alone") for label in ALGORITHMS])
def test_one_live_worker_is_the_simulated_one(label: str, name: str) -> None:
    """One live worker has the bits of one simulated worker, and the same order."""
    run = live(label, name)
    simulated = ds.simulate(
        ALGORITHMS[label], problem_of(label, name), ds.Fleet(workers=1), updates=UPDATES, batch=BATCH, seed=SEED
    )
    assert run.x.tobytes() == simulated.x.tobytes()
    for field in ("worker", "verb", "step", "version", "read"):
        served = run.trace.rows[field][: len(simulated.trace.rows)]
        assert served.tolist() == simulated.trace.rows[field].tolist()
