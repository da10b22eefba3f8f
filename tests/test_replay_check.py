"""Replays of problems that promise equal bits, and of those that are only close."""

from dataclasses import replace

import numpy as np
import pytest
from small_float32 import SmallFloat32

import distsgd as ds
from distsgd.errors import TraceError
from distsgd.run import Run

ALGORITHM, FLEET = ds.algorithms.downpour(0.1), ds.Fleet(workers=3, compute=ds.exponential(1.0))


class Close(SmallFloat32):
    """A problem that promises no equal bits."""

    exactness = "close"


def run(problem: ds.Problem) -> Run:
    """Return a short run."""
    return ds.simulate(ALGORITHM, problem, FLEET, updates=20, batch=4)


def moved(found: Run, share: float) -> Run:
    """Return a run whose largest parameter is another one by this share."""
    x = found.x.copy()
    x[np.abs(x).argmax()] *= 1.0 + share
    return replace(found, x=x)


def test_a_replay_of_equal_bits_has_no_difference() -> None:
    """Where all bits are equal the difference is 0, whatever is promised; a run has none."""
    for problem in (SmallFloat32(), Close()):
        found = run(problem)
        assert found.difference is None
        assert ds.replay(found, ALGORITHM, problem).difference == 0.0


def test_a_close_replay_says_how_close() -> None:
    """A problem that promises no bits is replayed within 1 %, and the difference is that share."""
    again = ds.replay(moved(run(Close()), 1e-3), ALGORITHM, Close())
    assert again.difference == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize(("problem", "share"), [(SmallFloat32(), 1e-6), (Close(), 0.1), (Close(), np.nan)])
def test_a_replay_that_is_not_close_is_refused(problem: ds.Problem, share: float) -> None:
    """Any other bit is an error where bits are promised, and more than 1 % where they are not."""
    with pytest.raises(TraceError, match="the replay differs from the run"):
        ds.replay(moved(run(problem), share), ALGORITHM, problem)
