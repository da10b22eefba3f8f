from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime, check_grad

from distsgd import problem as module
from distsgd import problems
from distsgd.data import Data, Sparse, from_arrays, sparse
from distsgd.errors import ConfigError
from distsgd.kernels.gradients.linear import add_row_gradient, compiled_slope, compiled_support
from distsgd.problem import Problem
from distsgd.problems import linear


@cache
def _samples(n_classes: int, *, is_whole: bool = True) -> Data:
    draws = np.random.default_rng(n_classes)
    x = draws.normal(size=(24, 5))
    y = np.arange(24) % n_classes if is_whole else draws.normal(size=24)
    return from_arrays(x, y, seed=1)


@cache
def _text(*, is_numeric: bool = False) -> Data:
    data = sparse(30, 12, 4, seed=3)
    if not is_numeric:
        return data
    draws = np.random.default_rng(0)
    return Data("numbers", data.x, draws.normal(size=30), data.test_x, draws.normal(size=7))


MAKERS: dict[str, Callable[[], Problem]] = {
    "quadratic": lambda: problems.quadratic([0.5, 1.0, 4.0]),
    "quadratic with noise": lambda: problems.quadratic([0.5, 1.0, 4.0], noise=0.7),
    "logistic": lambda: problems.logistic(_text(), 0.01),
    "logistic dense": lambda: problems.logistic(_samples(2), 0.1),
    "svm": lambda: problems.svm(_text(), 0.01),
    "svm dense": lambda: problems.svm(_samples(2), 0.0),
    "least_squares": lambda: problems.least_squares(_text(is_numeric=True), 0.1),
    "least_squares dense": lambda: problems.least_squares(_samples(3, is_whole=False), 0.1),
    "softmax": lambda: problems.softmax(_samples(3), 0.1),
    "softmax sparse": lambda: problems.softmax(_text(), 0.0),
    "network": lambda: problems.network(_samples(3), (4,), l2=0.1),
    "network deep": lambda: problems.network(_samples(4), (6, 5, 3)),
}
NOISELESS = [name for name in MAKERS if "noise" not in name]
FINITE = [name for name in NOISELESS if "quadratic" not in name]
LINEAR = [name for name in MAKERS if name.split()[0] in {"logistic", "svm", "least_squares"}]


@cache
def _problem(name: str) -> Problem:
    return MAKERS[name]()


def _points(one: Problem, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, one.dimension))


def _everything(one: Problem) -> np.ndarray:
    return np.arange(min(one.samples, 5))[None] if one.samples > 1000 else np.arange(one.samples)[None]


@pytest.mark.parametrize("name", NOISELESS)
def test_gradient_of_all_samples_is_that_of_the_loss(name: str) -> None:
    """The gradient of every sample once agrees with finite differences of the loss."""
    one = _problem(name)
    for x in _points(one, 3):
        error = check_grad(one.loss, lambda x: one.gradient(x, _everything(one)[0]), x)
        assert error < 1e-5 * (1.0 + np.linalg.norm(x))


@pytest.mark.parametrize("name", FINITE)
def test_gradient_is_the_mean_over_the_batch(name: str) -> None:
    """The gradient of a batch is the mean of its samples' gradients, each as often as it occurs."""
    one = _problem(name)
    batch = np.array([3, 1, 4, 1, 5])
    x = _points(one, 1)[0]
    mean = np.mean([one.gradient(x, [sample]) for sample in batch], axis=0)
    assert one.gradient(x, batch) == pytest.approx(mean, rel=1e-12, abs=1e-14)


@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("name", MAKERS)
@given(st.integers(1, 9), st.integers(1, 17), st.integers(0, 1000))
def test_batched_equals_single(name: str, m: int, batch: int, seed: int) -> None:
    """Gradients evaluated together have the bits of gradients evaluated one at a time."""
    one = _problem(name)
    xs = _points(one, m, seed)
    batches = np.random.default_rng(seed).integers(0, one.samples, (m, batch))
    together = one.gradients(xs, batches)
    alone = [one.gradient(x, chosen) for x, chosen in zip(xs, batches, strict=True)]
    assert np.array_equal(together, alone)


@pytest.mark.parametrize("name", ["softmax", "network deep"])
def test_chunks_change_no_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many gradients, or samples of a loss, share the working memory does not matter."""
    one = _problem(name)
    xs, batches = _points(one, 7), np.arange(14).reshape(7, 2)
    whole, loss = one.gradients(xs, batches), one.loss(xs[0])
    monkeypatch.setattr(module, "_CHUNK_BYTES", 500.0)
    assert np.array_equal(one.gradients(xs, batches), whole)
    assert one.loss(xs[0]) == pytest.approx(loss, rel=1e-14)


@pytest.mark.parametrize("name", MAKERS)
def test_memory_layout_changes_no_bit(name: str) -> None:
    """Strided points and batches of any integer type give the same bits."""
    one = _problem(name)
    xs, batches = _points(one, 4), np.arange(12).reshape(4, 3)
    expected = one.gradients(xs, batches)
    assert np.array_equal(one.gradients(np.asfortranarray(xs), batches.astype(np.uint8)), expected)
    assert np.array_equal(one.gradients(xs[::-1], batches[::-1])[::-1], expected)


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_leave_their_arguments_alone(name: str) -> None:
    """Points and batches are not written, and the result is a new array."""
    one = _problem(name)
    xs, batches = _points(one, 2), np.zeros((2, 3), dtype=np.uint32)
    xs.setflags(write=False)
    batches.setflags(write=False)
    assert not np.shares_memory(one.gradients(xs, batches), xs)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
def test_gradient_of_a_diverged_point_is_a_result(name: str, value: float) -> None:
    """A point that is not finite, or far out, gives numbers without a warning or an error."""
    one = _problem(name)
    assert one.gradient(np.full(one.dimension, value), [0, 1]).shape == (one.dimension,)


@pytest.mark.parametrize("name", ["logistic", "svm", "least_squares"])
def test_sparse_gradient_is_the_split_formula(name: str) -> None:
    """A sample's gradient is slope z + l2 n / d_u x on its support, and 0 elsewhere."""
    one = _problem(name)
    assert one.support is not None
    rows, labels, shrink, slope = one.support
    table, x = rows.dense(), _points(one, 1)[0]
    d_u = np.count_nonzero(table, axis=0)
    l2 = one.settings["l2"]
    expected_shrink = [l2 * rows.shape[0] / count if count else 0.0 for count in d_u]
    assert shrink == pytest.approx(expected_shrink, rel=1e-15)
    for row in range(10):
        expected = slope(table[row] @ x, labels[row]) * table[row] + (table[row] != 0) * shrink * x
        assert one.gradient(x, [row]) == pytest.approx(expected, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("name", ["logistic dense", "svm dense", "least_squares dense"])
def test_dense_gradient_has_the_whole_regulariser(name: str) -> None:
    """With dense data every sample's gradient has exactly l2 x, and there is no support."""
    one = _problem(name)
    assert isinstance(one, linear.Linear)
    assert one.support is None
    assert (one.sparse.shrink == one.l2).all()


@pytest.mark.jit_off
@pytest.mark.bounds
@pytest.mark.parametrize("name", ["logistic", "svm", "least_squares"])
def test_gathered_coordinates_give_the_same_bits(name: str) -> None:
    """The row gradient at gathered coordinates equals the one at the whole vector, bit for bit."""
    one = _problem(name)
    assert one.support is not None
    support = compiled_support(one.support)
    x, out = _points(one, 1)[0], np.zeros(4)
    columns = support.rows.take(np.array([6])).columns
    place = np.array([2, 0, 3, 1], np.uint32)
    gathered = np.empty(4)
    gathered[place] = x[columns]
    add_row_gradient(support, 6, place, gathered, out)
    whole = one.gradient(x, [6])
    assert np.array_equal(out[place], whole[columns])
    assert np.count_nonzero(whole) <= 4


@pytest.mark.parametrize("loss", [linear._LOGISTIC, linear._HINGE, linear._SQUARE])
@pytest.mark.parametrize("label", [-1.0, 1.0])
def test_slope_is_the_derivative_of_the_loss(loss: linear.MarginLoss, label: float) -> None:
    """A slope agrees with finite differences of its loss by the margin."""
    for margin in (-30.3, -1.2, -0.4, 0.1, 0.7, 1.6, 25.0):
        at, labels = np.array([margin]), np.array([label])
        difference = approx_fprime(at, lambda m, y=labels: loss.loss(m, y)[0])
        assert loss.slope(margin, label) == pytest.approx(difference[0], abs=1e-6)


@pytest.mark.parametrize("margin", [-1e308, -750.0, 750.0, 1e308])
def test_logistic_slope_never_overflows(margin: float) -> None:
    """For margins of any size the slope is 0 or -y, and the compiled one agrees."""
    for label in (-1.0, 1.0):
        expected = -label if label * margin < 0 else 0.0
        assert linear.logistic_slope(margin, label) == pytest.approx(expected, abs=1e-300)
        assert compiled_slope(linear.logistic_slope)(margin, label) == pytest.approx(expected, abs=1e-300)


@pytest.mark.jit_off
@pytest.mark.bounds
@pytest.mark.parametrize("name", MAKERS)
def test_a_small_step_against_the_gradient_descends(name: str) -> None:
    """A small step along the negative gradient of all samples lowers the loss."""
    one = _problem(name.removesuffix(" with noise"))
    x = _points(one, 1)[0]
    assert one.loss(x - 1e-4 * one.gradients(x[None], _everything(one))[0]) < one.loss(x)


@pytest.mark.parametrize("name", MAKERS)
def test_bad_points_and_batches_are_named(name: str) -> None:
    """A wrong shape, or a sample that does not exist, is refused before compiled code sees it."""
    one = _problem(name)
    x, d = _points(one, 1)[0], one.dimension
    for bad, batch, message in [
        (x[1:], [0], f"xs must have the shape \\(m, {d}\\)"),
        (x, [], "batches must have the shape"),
        (x, [[0]], "batches must have the shape"),
        (x, [0.5], "batches must hold sample indices"),
        (x, [-1], "batches must be >= 0"),
        (x, [0, one.samples], f"batches must be >= 0 and < {one.samples}"),
    ]:
        with pytest.raises(ConfigError, match=f"^{message}"):
            one.gradient(bad, np.array(batch))
    with pytest.raises(ConfigError, match=r"^x must have the shape"):
        one.loss(x[1:])


def test_text_is_sparse() -> None:
    """The sparse cases of this file are sparse."""
    assert isinstance(_text().x, Sparse)
    assert all(_problem(name).support for name in LINEAR if "dense" not in name)
