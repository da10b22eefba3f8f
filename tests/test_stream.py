import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from distsgd.data.stream import Stream
from distsgd.errors import ConfigError
from distsgd.kernels.draws.random import SAMPLES, below, draw, stream_key

small = st.integers(0, 1000)


@pytest.mark.jit_off
@pytest.mark.bounds
def test_sample_is_the_draw_of_its_position() -> None:
    """Sample i of worker w at step k is draw k b + i of the worker's key, scaled to the samples."""
    batch = Stream(1797, 3, seed=7).batch(worker=2, step=5)
    key = stream_key(7, SAMPLES, 2)
    assert batch.tolist() == [below(draw(key, 5 * 3 + i), 1797) for i in range(3)]
    assert batch.dtype == np.uint32


@settings(deadline=None)
@given(small, small, small, st.lists(small, max_size=5))
def test_batch_depends_on_seed_worker_and_step_alone(seed: int, worker: int, step: int, others: list[int]) -> None:
    """A batch is the same alone and in any company, whatever was drawn before."""
    stream = Stream(10_000, 4, seed)
    together = stream.batches([*others, worker], [*others, step])
    assert np.array_equal(together[-1], Stream(10_000, 4, seed).batch(worker, step))


@pytest.mark.parametrize(("seed", "worker", "step"), [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_each_part_of_the_key_matters(seed: int, worker: int, step: int) -> None:
    """Another seed, another worker or another step gives another batch."""
    first = Stream(10_000, 8, 0).batch(0, 0)
    assert not np.array_equal(Stream(10_000, 8, seed).batch(worker, step), first)


def test_steps_of_a_worker_continue_one_sequence() -> None:
    """Steps of 4 samples visit the samples that twice as many steps of 2 visit."""
    wide = Stream(100, 4).batches([3] * 5, range(5))
    narrow = Stream(100, 2).batches([3] * 10, range(10))
    assert np.array_equal(wide.ravel(), narrow.ravel())


def test_samples_are_uniform() -> None:
    """Every sample is equally likely, across workers and steps."""
    batches = Stream(97, 32, seed=1).batches(np.arange(3000) % 30, np.arange(3000) // 30)
    assert chisquare(np.bincount(batches.ravel(), minlength=97)).pvalue > 0.01


def test_workers_are_independent() -> None:
    """The pair of samples that two workers draw at a step is uniform over all pairs."""
    stream = Stream(8, 1, seed=2)
    one, two = (stream.batches([worker] * 20_000, range(20_000)).ravel() for worker in (0, 1))
    assert chisquare(np.bincount(8 * one + two, minlength=64)).pvalue > 0.01


def test_same_in_another_process() -> None:
    """Another process draws the same batch."""
    program = "from distsgd.data.stream import Stream; print(Stream(1797, 5, 3).batch(1, 2).tolist())"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == str(Stream(1797, 5, 3).batch(1, 2).tolist())


def test_largest_number_of_samples() -> None:
    """Indices of 2**32 samples fill the whole range of uint32."""
    batch = Stream(2**32, 1000).batch(0, 0)
    assert batch.max() > 2**32 * 0.99
    assert batch.min() < 2**32 * 0.01


@pytest.mark.parametrize(
    ("numbers", "named"),
    [
        ((0, 1, 0), "samples"),
        ((2**32 + 1, 1, 0), "samples"),
        ((10, 0, 0), "batch"),
        ((10, 1.5, 0), "batch"),
        ((10, 1, -1), "seed"),
        ((10, 1, 2**63), "seed"),
    ],
)
def test_bad_numbers_are_named(numbers: tuple[int, int, int], named: str) -> None:
    """A number out of its bounds is the caller's error, and the message names it."""
    with pytest.raises(ConfigError, match=f"^{named} must be"):
        Stream(*numbers)
