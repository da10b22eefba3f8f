import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsgd.data import Sparse, sparse
from distsgd.errors import ConfigError


@pytest.mark.jit_off
@pytest.mark.bounds
def test_synthetic_rows_have_their_shape() -> None:
    """Rows have distinct ascending columns, norm 1, and labels -1 and 1."""
    data = sparse(40, 30, 5, test_samples=8)
    assert isinstance(data.x, Sparse)
    assert (data.x.shape, data.test_x.shape) == ((40, 30), (8, 30))
    assert (data.x.lengths == 5).all()
    assert np.linalg.norm(data.x.dense(), axis=1) == pytest.approx(np.ones(40))
    assert set(data.y) == {-1, 1}


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 20), st.data())
def test_synthetic_rows_for_any_bounds(features: int, more: st.DataObject) -> None:
    """Every number of non-zeros up to all features can be drawn, at any popularity."""
    nonzeros = more.draw(st.integers(1, features))
    popularity = more.draw(st.floats(0, 100))
    rows = sparse(3, features, nonzeros, popularity, seed=more.draw(st.integers(0, 99))).x
    assert isinstance(rows, Sparse)
    assert (rows.counts <= 3).all()
    assert rows.lengths.tolist() == [nonzeros] * 3


def test_popularity_is_a_power_law() -> None:
    """With one feature per sample, counts follow the exponent; equal weights are uniform."""
    for exponent in (0.0, 1.1):
        rows = sparse(200_000, 50, 1, exponent, test_samples=0).x
        assert isinstance(rows, Sparse)
        slope = np.polyfit(np.log(1 + np.arange(50)), np.log(rows.counts), 1)[0]
        assert slope == pytest.approx(-exponent, abs=0.03)


def test_noise_is_the_share_of_flipped_labels() -> None:
    """Noise flips that share of the labels and changes nothing else."""
    clean, noisy = (sparse(20_000, 100, 5, noise=noise) for noise in (0.0, 0.2))
    assert isinstance(clean.x, Sparse)
    assert isinstance(noisy.x, Sparse)
    assert np.array_equal(clean.x.values, noisy.x.values)
    assert np.mean(clean.y != noisy.y) == pytest.approx(0.2, abs=0.01)


def test_synthetic_data_are_a_function_of_their_arguments() -> None:
    """The same seed gives the same bits, another seed others; labels of both kinds are balanced."""
    first = sparse(500, 100, 5, seed=1)
    assert first.digest == sparse(500, 100, 5, seed=1).digest != sparse(500, 100, 5, seed=2).digest
    assert abs(np.mean(first.y)) < 0.2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"samples": 0}, "samples"),
        ({"features": 0}, "features"),
        ({"nonzeros": 0}, "nonzeros"),
        ({"nonzeros": 11}, "nonzeros"),
        ({"popularity": -1.0}, "popularity"),
        ({"popularity": 1e9}, "popularity"),
        ({"noise": 0.6}, "noise"),
        ({"noise": float("nan")}, "noise"),
        ({"seed": -1}, "seed"),
        ({"test_samples": -1}, "test_samples"),
    ],
)
def test_bad_shapes_are_named(change: dict[str, float], named: str) -> None:
    """A number out of its bounds is the caller's error, and the message names it."""
    with pytest.raises(ConfigError, match=f"^{named} must"):
        sparse(**({"samples": 10, "features": 10, "nonzeros": 2} | change))  # type: ignore[arg-type]
