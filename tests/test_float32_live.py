import socket

import numpy as np
import pytest
from small_float32 import SmallDropout, SmallFloat32

import distsgd as ds
from distsgd.algorithm import Algorithm

ALGORITHMS = {
    "downpour": ds.algorithms.downpour(0.1, n_fetch=2, n_push=3, server="adagrad"),
    "synchronous": ds.algorithms.synchronous(0.1),
    "elastic averaging": ds.algorithms.elastic_averaging(0.1, period=3),
    "adaptive revision": ds.algorithms.adaptive_revision(0.1),
}
DOWNPOUR = ALGORITHMS["downpour"]


def free_address() -> str:
    """Return where nobody listens by now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{one.getsockname()[1]}"


@pytest.mark.parametrize("problem", [SmallFloat32(), SmallDropout()], ids=lambda one: one.name)
@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS.keys())
def test_a_live_run_of_float32_is_its_replay(algorithm: Algorithm, problem: ds.Problem) -> None:
    """A live run has float32 columns, and the bits of the fold of its order, keys included."""
    run = ds.launch(algorithm, problem, workers=2, updates=40, batch=4, seed=2)
    again = ds.replay(run, algorithm, problem)
    assert run.x.dtype == again.x.dtype == np.float32
    assert run.x.tobytes() == again.x.tobytes()
    assert run.history.equals(again.history, null_equal=True)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("shared", [True, False], ids=["memory", "frames"])
def test_float32_has_equal_bits_on_every_way(shards: int, *, shared: bool) -> None:
    """One worker has the bits of the simulation, by shared memory or frames, one shard or three."""
    problem, address = SmallDropout(), None if shared else free_address()
    run = ds.launch(DOWNPOUR, problem, workers=1, updates=40, batch=4, shards=shards, address=address)
    simulated = ds.simulate(DOWNPOUR, problem, ds.Fleet(workers=1), updates=40, batch=4)
    assert run.x.tobytes() == simulated.x.tobytes()


def test_a_point_that_ends_a_run_has_its_type() -> None:
    """The model at a target is float32, as the last one is."""
    problem = SmallFloat32()
    first = problem.loss(problem.start(0))
    run = ds.launch(DOWNPOUR, problem, workers=1, updates=10**9, batch=4, target=0.9 * first, evaluate_every=5)
    assert (run.status, run.x.dtype, run.x.size) == ("target", np.float32, problem.dimension)
    assert problem.loss(run.x) == run.history["loss"][-1]
