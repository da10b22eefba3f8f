from typing import NamedTuple

import numpy as np
import pytest
from small_float32 import SmallDropout, SmallFloat32

import distsgd as ds
from distsgd.algorithm import Algorithm, Column, Worker
from distsgd.algorithms.parts import Gradient
from distsgd.data.stream import Stream
from distsgd.live.peers import replica
from distsgd.live.peers.replica import Replica, Samples, WorkerCase, prepare

PROBLEM = ds.problems.quadratic([1.0, 2.0, 0.5, 3.0, 1.5, 0.2, 1.0], noise=0.1)
LAYERS = np.arange(7.0)
CASES = {
    "gradient": (ds.algorithms.synchronous(0.1), None),
    "downpour": (ds.algorithms.downpour(0.1, n_fetch=2, n_push=2), LAYERS),
    "revision": (ds.algorithms.adaptive_revision(0.1), None),
    "elastic": (ds.algorithms.elastic_averaging(0.1, period=2, momentum=0.9), LAYERS),
}
"""Algorithms, and the factors of the layers."""


def case_of(algorithm: Algorithm, problem: ds.Problem, factors: np.ndarray | None = None) -> WorkerCase:
    """Return what a worker computes."""
    return WorkerCase(algorithm, problem, Stream(problem.samples, 4, 3), problem.start(3), 2, factors)


def exchanged(case: WorkerCase) -> list[bytes]:
    """Return what a worker sends that has pulled the same columns, moved a little, a few times."""
    one, sent = Replica(case, 1), []
    for version in range(4):
        read = [np.full(7, 0.3 * version, case.start.dtype) for _ in case.algorithm.server.reads]
        one.receive(read, version)
        for _ in range(2):
            one.take_step()
        sent += [column.tobytes() for column in one.send()]
    return sent


@pytest.mark.parametrize("problem", [PROBLEM, SmallFloat32()], ids=["float64", "float32"])
@pytest.mark.parametrize(("algorithm", "factors"), CASES.values(), ids=CASES.keys())
def test_compiled_loops_have_the_bits_of_numpy(
    algorithm: Algorithm, problem: ds.Problem, factors: np.ndarray | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a worker sends is the same to the bit, whichever code calls the rules."""
    case = case_of(algorithm, problem, factors)
    sent = []
    for least in (10**9, 0):
        monkeypatch.setattr(replica, "COMPILED_FROM", least)
        sent.append(exchanged(case))
    assert sent[0] == sent[1]


@pytest.mark.parametrize("problem", [PROBLEM, SmallFloat32()], ids=["float64", "float32"])
def test_nothing_is_compiled_after_the_preparation(problem: ds.Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops that were prepared before the fork are those that the workers use."""
    monkeypatch.setattr(replica, "COMPILED_FROM", 2)
    case = case_of(ds.algorithms.downpour(0.1, server="adagrad"), problem)
    prepare(case)
    rules = replica.RuleSet.of(case.algorithm, problem.dtype)
    generated = replica.loops(rules, replica.private_source)
    loops = [generated[name] for name in ("pull", "point", "take_step", "message")]
    before = [len(loop.signatures) for loop in loops]
    exchanged(case)
    assert all(before)
    assert [len(loop.signatures) for loop in loops] == before  # other tests may have compiled more


class Late(NamedTuple):
    """A worker that steps along the gradient before the last one, and knows the two since."""

    x: Column
    g: Column
    g_before: Column


LATE = Worker(
    init=lambda h, x: Late(x, 0.0, 0.0),
    receive=lambda h, w, x: w,
    at=lambda h, w: w.x,
    step=lambda h, w, g: Late(w.x - h.learning_rate * w.g_before, g, w.g),
    send=lambda h, w: (w, Gradient(w.x)),
)


def test_a_gradient_that_a_rule_keeps_stays_as_it_is() -> None:
    """A state may hold the gradients that it was given, though they are written in place."""
    # float64, where rules of NumPy return what they are given
    case = case_of(ds.algorithms.serial(0.1)._replace(worker=LATE), PROBLEM)
    replica, x, gradients = Replica(case, 0), case.start, [np.zeros(7), np.zeros(7)]
    for step in range(9):
        replica.take_step()
        gradients.append(case.problem.gradient(x, case.stream.batch(0, step)))
        x = x - 0.1 * gradients[-3]
    assert replica.send()[0].tobytes() == x.tobytes()


def test_samples_drawn_together_are_those_of_each_step() -> None:
    """A step has its own batch and key, whichever steps were asked for before."""
    case = case_of(ds.algorithms.downpour(0.1), SmallDropout())
    samples = Samples(case, 1)
    for step in (*range(40), 3, 100, 33):
        batch, key = samples.of(step)
        assert batch.tolist() == case.stream.batch(1, step).tolist()
        assert key == case.stream.keys([1], [step])[0]
