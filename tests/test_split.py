import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from distsgd.data import digits, from_arrays
from distsgd.data.split import split
from distsgd.errors import ConfigError


def test_digits_are_the_whole_collection() -> None:
    """The digits are 1,797 images of 64 pixels in [0, 1] in 10 classes, a fifth set aside."""
    data = digits()
    assert (data.x.shape, data.test_x.shape) == ((1437, 64), (360, 64))
    assert (data.x.min(), data.x.max()) == (0.0, 1.0)
    assert set(data.y) == set(data.test_y) == set(range(10))


def test_digits_are_always_the_same() -> None:
    """The split is fixed by its seed."""
    assert digits().digest == digits(seed=0).digest != digits(seed=1).digest


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=60), st.floats(0, 0.9), st.integers(0, 9))
def test_split_is_a_stratified_partition(labels: list[int], share: float, seed: int) -> None:
    """Every sample is in one part, and each class its share in the test part, give or take 1."""
    y = np.array(labels)
    assume(np.ceil(y.size * share) < y.size)
    train, aside = split(y, share, seed)
    assert sorted([*train, *aside]) == list(range(y.size))
    for label in set(labels):
        expected = share * np.count_nonzero(y == label)
        assert abs(np.count_nonzero(y[aside] == label) - expected) <= 1


def test_split_shuffles() -> None:
    """Another seed sets other samples aside."""
    y = np.zeros(100, dtype=np.int64)
    assert not np.array_equal(split(y, 0.2, 0)[1], split(y, 0.2, 1)[1])


def test_split_leaves_a_sample() -> None:
    """A share that would leave nothing to train on is refused."""
    with pytest.raises(ConfigError, match="test must leave a sample of 1 for training"):
        from_arrays([[1.0]], [1], test=0.5)
