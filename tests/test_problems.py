import json
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse
from scipy.stats import kstest
from sklearn.metrics import accuracy_score, hinge_loss, log_loss, mean_squared_error

from distsgd import problems
from distsgd.data import Data, Sparse, digits, from_arrays, sparse
from distsgd.errors import ConfigError
from distsgd.problem import Problem
from distsgd.problems.network import Network

DRAWS = np.random.default_rng(5)
TEXT = sparse(60, 20, 4, seed=1)
FLOWERS = from_arrays(DRAWS.normal(size=(50, 6)), np.arange(50) % 3 * 10 - 10, seed=2)
NUMBERS = from_arrays(DRAWS.normal(size=(50, 6)), DRAWS.normal(size=50))
EVERY: dict[str, Problem] = {
    "quadratic": problems.quadratic([1.0, 2.0]),
    "logistic": problems.logistic(TEXT, 0.1),
    "svm": problems.svm(TEXT, 0.1),
    "least_squares": problems.least_squares(NUMBERS, 0.1),
    "softmax": problems.softmax(FLOWERS, 0.1),
    "network": problems.network(FLOWERS, (7, 4), l2=0.1),
}


def _point(problem: Problem) -> np.ndarray:
    # small, since scikit-learn clips probabilities near 0
    return np.random.default_rng(0).normal(size=problem.dimension) / 3


def _dense(x: np.ndarray | Sparse) -> np.ndarray:
    return x.dense() if isinstance(x, Sparse) else x


def _logits(problem: Network, x: np.ndarray, table: np.ndarray) -> np.ndarray:
    units, at = table, 0
    sizes = [6, *problem.hidden, 3]
    for inputs, outputs in pairwise(sizes):
        weights = x[at : at + inputs * outputs].reshape(inputs, outputs)
        at += (inputs + 1) * outputs
        units = (np.maximum(units, 0.0) if inputs != 6 else units) @ weights + x[at - outputs : at]
    assert at == x.size
    return units


def test_registry_knows_every_problem() -> None:
    """The registry maps each problem's name to the constructor that is exported under it."""
    assert set(problems.registry) == set(EVERY)
    for name, constructor in problems.registry.items():
        assert getattr(problems, name) is constructor
        assert EVERY[name].name == name


def test_logistic_loss_is_scikit_learns() -> None:
    """The logistic loss is the log loss of the sigmoid, plus l2 / 2 |x|^2."""
    one = EVERY["logistic"]
    x = _point(one)
    chance = 1 / (1 + np.exp(-_dense(TEXT.x) @ x))
    assert one.loss(x) == pytest.approx(log_loss(TEXT.y, chance) + 0.05 * x @ x, rel=1e-13)


@pytest.mark.parametrize(
    ("name", "data", "theirs"),
    [
        ("svm", TEXT, hinge_loss),
        ("least_squares", NUMBERS, lambda labels, margins: mean_squared_error(labels, margins) / 2),
    ],
)
def test_a_linear_loss_is_scikit_learns(name: str, data: Data, theirs: Callable[..., float]) -> None:
    """The hinge loss and half the mean squared error are scikit-learn's, plus l2 / 2 |x|^2."""
    one = EVERY[name]
    x = _point(one)
    expected = theirs(data.y, _dense(data.x) @ x) + 0.05 * x @ x
    assert one.loss(x) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("name", ["softmax", "network"])
def test_softmax_loss_is_scikit_learns(name: str) -> None:
    """Softmax and network have the log loss of their class probabilities, plus l2 / 2 |x|^2."""
    one = EVERY[name]
    x = _point(one)
    powers = np.exp(_logits(one, x, _dense(FLOWERS.x)))
    expected = log_loss(FLOWERS.y, powers / powers.sum(axis=1, keepdims=True)) + 0.05 * x @ x
    assert one.loss(x) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("name", EVERY)
def test_evaluation_holds_the_loss(name: str) -> None:
    """An evaluation's loss is the problem's loss."""
    one = EVERY[name]
    assert one.evaluate(_point(one)).loss == one.loss(_point(one))


def test_test_loss_has_no_regulariser() -> None:
    """The test loss is the loss of the test samples alone, for linear models and networks."""
    x = _point(EVERY["logistic"])
    chance = 1 / (1 + np.exp(-_dense(TEXT.test_x) @ x))
    found = EVERY["logistic"].evaluate(x).test_loss
    assert found == pytest.approx(log_loss(TEXT.test_y, chance), rel=1e-13)
    x = _point(EVERY["softmax"])
    powers = np.exp(_logits(EVERY["softmax"], x, _dense(FLOWERS.test_x)))
    expected = log_loss(FLOWERS.test_y, powers / powers.sum(axis=1, keepdims=True))
    assert EVERY["softmax"].evaluate(x).test_loss == pytest.approx(expected, rel=1e-13)


def test_accuracy_is_the_share_of_right_test_samples() -> None:
    """Accuracy is scikit-learn's, on the test samples."""
    for name in ("logistic", "svm"):
        x = _point(EVERY[name])
        guess = np.where(_dense(TEXT.test_x) @ x > 0, 1, -1)
        assert EVERY[name].evaluate(x).accuracy == accuracy_score(TEXT.test_y, guess)
    for name in ("softmax", "network"):
        x = _point(EVERY[name])
        guess = _logits(EVERY[name], x, _dense(FLOWERS.test_x)).argmax(axis=1) * 10 - 10
        assert EVERY[name].evaluate(x).accuracy == accuracy_score(FLOWERS.test_y, guess)


def test_what_does_not_apply_is_nan() -> None:
    """A quadratic has no test samples, a regression no accuracy, data without tests neither."""
    assert np.isnan(EVERY["quadratic"].evaluate(np.ones(2))[1:]).all()
    found = EVERY["least_squares"].evaluate(np.ones(6))
    assert np.isfinite(found.test_loss)
    assert np.isnan(found.accuracy)
    for make in (problems.logistic, problems.softmax):
        one = make(from_arrays(_dense(TEXT.x), TEXT.y, test=0), 0.0)
        assert np.isnan(one.evaluate(_point(one))[1:]).all()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("value", [np.nan, np.inf, -1e200])
def test_a_diverged_point_is_a_result(name: str, value: float) -> None:
    """The loss of a point that has diverged is no useful number, and neither warning nor error."""
    found = EVERY[name].evaluate(np.full(EVERY[name].dimension, value))
    assert not found.loss < 1e100
    assert np.isfinite(value) or np.isnan(found.accuracy)


@pytest.mark.parametrize("name", EVERY)
def test_settings_are_json(name: str) -> None:
    """Settings go through JSON unchanged, and begin with the name."""
    found = EVERY[name].settings
    assert json.loads(json.dumps(found)) == found
    assert found["name"] == name


def test_settings_tell_problems_apart() -> None:
    """Another number, other layers or other data give other settings; equal problems equal ones."""
    other = from_arrays(_dense(FLOWERS.x) + 1, FLOWERS.y)
    found = [
        problems.softmax(FLOWERS, 0.1).settings,
        problems.softmax(FLOWERS, 0.2).settings,
        problems.softmax(other, 0.1).settings,
        problems.network(FLOWERS, (7, 4), l2=0.1).settings,
        problems.network(FLOWERS, (4, 7), l2=0.1).settings,
        problems.quadratic([1.0]).settings,
        problems.quadratic([1.0], start=[2.0]).settings,
    ]
    assert len({json.dumps(one) for one in found}) == len(found)
    assert problems.softmax(FLOWERS, 0.1).settings == found[0]


def test_dense_messages_are_whole_vectors() -> None:
    """A dense message has 8 bytes per coordinate and column."""
    assert EVERY["softmax"].message_bytes(columns=2, batch=32) == 8 * 2 * 21
    assert EVERY["quadratic"].message_bytes(columns=1, batch=1) == 16
    assert EVERY["least_squares"].message_bytes(columns=1, batch=1) == 8 * 6


def test_sparse_messages_are_the_expected_support() -> None:
    """A sparse message has 4 bytes per index and 8 per number of the mean support of a batch."""
    one = EVERY["logistic"]
    supports = [set(np.flatnonzero(row)) for row in _dense(TEXT.x)]
    mean = np.mean([len(a | b) for a in supports for b in supports])
    assert one.message_bytes(columns=3, batch=2) == pytest.approx(mean * (8 * 3 + 4), rel=1e-12)
    assert one.message_bytes(columns=1, batch=1) == pytest.approx(4 * 12, rel=1e-12)


@pytest.mark.parametrize("name", ["logistic", "svm", "least_squares", "softmax"])
def test_convex_problems_start_at_zero(name: str) -> None:
    """A convex problem on data starts at 0, whatever the seed."""
    assert not EVERY[name].start(3).any()


@pytest.mark.jit_off
@pytest.mark.bounds
def test_a_network_starts_at_random_weights_and_zero_biases() -> None:
    """Weights are normal with variance 2 / inputs, others in each layer and seed; biases are 0."""
    wide = problems.network(FLOWERS, (50, 40))
    x = wide.start(1)
    assert np.array_equal(x, wide.start(1))
    assert not np.array_equal(x, wide.start(2))
    at, seen = 0, set()
    for inputs, outputs in [(6, 50), (50, 40), (40, 3)]:
        weights = x[at : at + inputs * outputs]
        at += (inputs + 1) * outputs
        draws = weights / np.sqrt(2 / inputs)
        assert kstest(draws, "norm").pvalue > 0.01
        seen.update(draws[:10])
        assert not x[at - outputs : at].any()
    assert len(seen) == 30


def test_a_start_is_the_callers_to_write() -> None:
    """Writing into a starting point does not change the next one."""
    for one in EVERY.values():
        first = one.start(0)
        first += 1.0
        assert np.array_equal(one.start(0), first - 1.0) or one.name == "network"
        assert not np.array_equal(one.start(0), first)


def test_softmax_of_two_classes_is_logistic() -> None:
    """With two classes the softmax of (0, m) has the logistic loss of the margin m."""
    two, one = problems.softmax(TEXT), problems.logistic(TEXT)
    x = _point(one)
    weights = np.concatenate([np.stack([0 * x, x], axis=1).ravel(), [0, 0]])
    assert two.loss(weights) == pytest.approx(one.loss(x), rel=1e-13)


def test_a_network_learns_the_digits() -> None:
    """Two hundred steps of serial SGD classify nine test digits in ten."""
    one = problems.network(digits(), (32,))
    x = one.start(0)
    for step in range(200):
        x -= 0.3 * one.gradient(x, (np.arange(32) * 7 + 32 * step) % one.samples)
    assert one.evaluate(x).accuracy > 0.9


def test_two_labels_of_any_kind_become_signs() -> None:
    """The smaller of two label values is -1 and the greater one 1, in both parts."""
    x = [[1.0], [2.0], [3.0], [4.0]]
    for labels in ([0, 1, 1, 0], [2, 7, 7, 2], [-0.5, 0.5, 0.5, -0.5]):
        one = problems.svm(from_arrays(x, labels, test_x=x, test_y=labels), 0.0)
        assert one.sparse.labels.tolist() == one.test_labels.tolist() == [-1.0, 1.0, 1.0, -1.0]


def _labelled(*labels: float, aside: float | None = None) -> Data:
    test_y = labels[0] if aside is None else aside
    return from_arrays(np.eye(len(labels)), labels, test_x=np.eye(len(labels))[:1], test_y=[test_y])


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("svm", _labelled(1, 2, 3), "svm needs labels with 2 values, but arrays has 3; use softmax"),
        ("logistic", _labelled(1, 1), "logistic needs labels with 2 values, but arrays has 1"),
        ("logistic", _labelled(0, 1, aside=2), "logistic needs test labels that occur in training"),
        ("softmax", _labelled(0.5, 1), "softmax needs whole numbers as labels.*use least_squares"),
        ("softmax", _labelled(4, 4), "softmax needs labels of at least 2 classes"),
        ("network", _labelled(0, 1, aside=7), "network needs test labels.*but arrays has 7"),
    ],
)
def test_labels_that_do_not_fit_are_refused(name: str, data: Data, message: str) -> None:
    """Labels that a loss cannot use are the caller's error, and the message says what could."""
    with pytest.raises(ConfigError, match=f"^{message}"):
        problems.registry[name](data, **({} if name == "network" else {"l2": 0.0}))


@pytest.mark.parametrize("name", ["logistic", "svm", "least_squares", "softmax", "network"])
def test_a_negative_regulariser_is_refused(name: str) -> None:
    """The regulariser must be a number >= 0."""
    for bad in (-0.1, float("nan"), "much"):
        with pytest.raises(ConfigError, match=r"^l2 must be"):
            problems.registry[name](TEXT, l2=bad)


@pytest.mark.parametrize("name", ["logistic", "svm", "least_squares", "softmax", "network"])
def test_arrays_are_sent_to_the_function_that_converts(name: str) -> None:
    """A problem takes Data only, and says what makes them."""
    with pytest.raises(ConfigError, match=f"^data of {name} must be a value such as distsgd.data.from"):
        problems.registry[name](np.eye(2), l2=0.0)


def test_one_hidden_layer_needs_no_list() -> None:
    """A number of hidden units stands for one layer of them."""
    assert problems.network(FLOWERS, 8).settings == problems.network(FLOWERS, [8]).settings


def test_layers_without_units_are_refused() -> None:
    """Every hidden layer has units, and there is at least one."""
    with pytest.raises(ConfigError, match=r"^hidden must be a whole number >= 1, not 0"):
        problems.network(FLOWERS, (3, 0))
    with pytest.raises(ConfigError, match="use softmax without one"):
        problems.network(FLOWERS, ())


def test_sparse_data_that_are_too_large_are_not_made_dense() -> None:
    """Softmax on text with many features says what to use instead of filling the memory."""
    wide = scipy.sparse.csr_matrix(([1.0, 1.0], ([0, 1], [0, 1])), shape=(2, 10**8))
    with pytest.raises(ConfigError, match=r"would take 1.6 GB \(limit 1 GB\); use logistic"):
        problems.softmax(from_arrays(wide, [0, 1], test=0))


def test_the_quadratic_is_its_formula() -> None:
    """Loss, gradient and start of a quadratic without noise, by hand."""
    one = problems.quadratic([2.0, 3.0])
    assert one.loss(np.array([1.0, 2.0])) == 7.0
    assert one.gradient(np.array([1.0, 2.0]), [0]).tolist() == [2.0, 6.0]
    assert one.start(0).tolist() == [1.0, 1.0]
    assert problems.quadratic([2.0], start=[5.0]).start(9).tolist() == [5.0]


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_the_quadratics_noise_is_normal_whatever_the_batch(batch: int) -> None:
    """The noise has mean 0 and the given deviation in each coordinate, for every batch size."""
    one = problems.quadratic(np.ones(4), noise=0.5)
    batches = np.random.default_rng(batch).integers(0, one.samples, (5000, batch))
    noise = one.gradients(np.zeros((5000, 4)), batches)
    assert kstest(noise.ravel() / 0.5, "norm").pvalue > 0.01
    assert np.corrcoef(noise.T) == pytest.approx(np.eye(4), abs=0.05)
    assert np.corrcoef(noise[:-1, 0], noise[1:, 0])[0, 1] == pytest.approx(0.0, abs=0.05)


@pytest.mark.jit_off
@pytest.mark.bounds
def test_the_quadratics_noise_belongs_to_the_batch() -> None:
    """Equal batches have equal noise at every point; another order or size has other noise."""
    one = problems.quadratic([1.0, 1.0], noise=1.0)
    zero = np.zeros(2)
    first = one.gradient(zero, [7, 2**32 - 1])
    assert np.array_equal(problems.quadratic([1.0, 1.0], 1.0).gradient(zero, [7, 2**32 - 1]), first)
    assert one.gradient(np.ones(2), [7, 2**32 - 1]) - 1.0 == pytest.approx(first)
    for other in ([2**32 - 1, 7], [7], [7, 2**32 - 2], [7, 7]):
        assert not np.array_equal(one.gradient(zero, other), first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"curvature": []}, "curvature must be a list of finite numbers"),
        ({"curvature": [1.0, np.nan]}, "curvature must be a list of finite numbers"),
        ({"curvature": [[1.0]]}, "curvature must be a list of finite numbers"),
        ({"curvature": [[1.0], [1.0, 2.0]]}, "curvature must be a list of finite numbers"),
        ({"curvature": [1.0, -2.0]}, "curvature must be >= 0 in every coordinate, not -2.0"),
        ({"noise": -1.0}, "noise must be >= 0"),
        ({"start": [1.0, 2.0]}, "start must have 1 numbers, one per curvature, not 2"),
        ({"start": [np.inf]}, "start must be a list of finite numbers"),
    ],
)
def test_bad_quadratics_are_named(change: dict[str, object], message: str) -> None:
    """A number that no quadratic has is the caller's error, and the message names it."""
    with pytest.raises(ConfigError, match=f"^{message}"):
        problems.quadratic(**({"curvature": [1.0]} | change))  # type: ignore[arg-type]
