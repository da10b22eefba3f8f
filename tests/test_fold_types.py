"""Folds of float32 columns, of problems that are random, and of one gradient at a time."""

import numpy as np
import pytest
from algorithm_table import TABLE
from small_float32 import SmallDropout, SmallFloat32

import distsgd as ds
from distsgd.fold.fold import fold
from distsgd.order.schedule import schedule
from distsgd.problem import Problem

UPDATES = 24


class Together(SmallFloat32):
    """The same problem, whose gradients are evaluated together."""

    at_once = 256


def folded(algorithm: ds.algorithms.Algorithm, problem: Problem, driver: str) -> np.ndarray:
    """Return the parameters after some updates."""
    fleet = ds.Fleet(workers=5, compute=ds.exponential(1.0), latency=0.1)
    trace = schedule(algorithm.cycle, fleet, seed=2, updates=UPDATES)
    stops = np.array([7, UPDATES])
    return [state.x for state in fold(algorithm, problem, trace, stops=stops, batch=4, seed=1, driver=driver)][-1]


@pytest.mark.parametrize("problem", [SmallFloat32(), Together(), SmallDropout()], ids=lambda one: one.name)
@pytest.mark.parametrize("name", TABLE)
def test_drivers_of_float32_columns_have_equal_bits(name: str, problem: Problem) -> None:
    """Rules compute in float64 and round when they store, in both drivers, at the same places."""
    interpreted, compiled = (folded(TABLE[name], problem, driver) for driver in ("interpreted", "compiled"))
    assert interpreted.dtype == compiled.dtype == np.float32
    assert interpreted.tobytes() == compiled.tobytes()
    assert not np.array_equal(interpreted, problem.start(1))


@pytest.mark.parametrize("driver", ["interpreted", "compiled"])
def test_gradients_in_place_are_those_evaluated_together(driver: str) -> None:
    """How many gradients a problem takes at once changes no bit of a run."""
    for name in ("downpour", "elastic_averaging", "synchronous"):
        alone, together = (folded(TABLE[name], problem, driver) for problem in (SmallFloat32(), Together()))
        assert alone.tobytes() == together.tobytes()
