import sys
from collections.abc import Callable

import numpy as np
import pytest
from small_keras import QUIET, keras, loss, made, sequential, tables

import distsgd as ds
from distsgd.errors import ConfigError
from distsgd.problems.from_keras import KerasProblem
from distsgd.problems.keras.backend import Backend
from distsgd.problems.keras.model import KerasObject

pytestmark = QUIET


class Restless(keras.layers.Layer):
    """Draws from Keras' global generator, which depends on what the process has drawn before."""

    def call(self, x: KerasObject) -> KerasObject:
        """Return `x` with noise."""
        return x + keras.random.normal(keras.ops.shape(x))


class Counting(keras.layers.Layer):
    """Counts its calls, in a variable that is no statistic."""

    def build(self, shape: object) -> None:  # noqa: ARG002 # Keras calls it so
        """Make the variable."""
        self.calls = self.add_weight(name="calls", shape=(), initializer="zeros", trainable=False)

    def call(self, x: KerasObject) -> KerasObject:
        """Return `x`."""
        self.calls.assign_add(1.0)
        return x


class Closed(keras.Model):
    """Has no config: it was made of what cannot be written down."""

    def __init__(self, layer: KerasObject) -> None:
        super().__init__()
        self.layer = layer

    def call(self, x: KerasObject) -> KerasObject:
        """Return the layer's outputs."""
        return self.layer(x)


def _two_outputs() -> KerasObject:
    inputs = keras.Input((5,))
    return keras.Model(inputs, [keras.layers.Dense(3)(inputs), keras.layers.Dense(2)(inputs)])


def _fixed() -> KerasObject:
    model = sequential()
    model.trainable = False
    return model


def _mixed() -> KerasObject:
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(4), keras.layers.Dense(3, dtype="float64")])


def _data(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return tables().x, labels


def _sum(targets: KerasObject, outputs: KerasObject) -> KerasObject:
    return keras.ops.sum((outputs - keras.ops.cast(targets, "float32")[:, None]) ** 2)


def _numbered(reduction: str | None) -> KerasObject:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)


def _made(**given: object) -> KerasProblem:
    settings = {"data": tables(), "loss": loss()} | given
    return ds.problems.from_keras(**(settings if "model" in given else settings | {"model": sequential()}))


BAD: dict[str, tuple[Callable[[], dict[str, object]], str]] = {
    "no model": (lambda: {"model": len}, "model must be a value such as keras.Sequential"),
    "no config": (lambda: {"model": Closed(keras.layers.Dense(3))}, "write get_config for Closed"),
    "nothing to train": (lambda: {"model": _fixed()}, "must have trainable variables, but has none"),
    "two types": (lambda: {"model": _mixed()}, "of one type, float32 or float64, not float32, float64"),
    "two outputs": (lambda: {"model": _two_outputs()}, "model must have one output, not 2"),
    "other inputs": (
        lambda: {"data": (np.ones((9, 4)), np.ones(9, int))},
        r"refuses the first samples of data, .*\[4, 4\]",
    ),
    "sparse data": (lambda: {"data": ds.data.sparse(30, 5, 2)}, "needs dense samples"),
    "no loss": (lambda: {"loss": 3}, "loss must be a value such as 'mean_squared_error'"),
    "unknown loss": (lambda: {"loss": "mean_squared_eror"}, "did you mean 'mean_squared_error'"),
    "unknown metric": (lambda: {"metric": "no_such"}, "unknown metric of Keras 'no_such'"),
    "which accuracy": (lambda: {"metric": "accuracy"}, "must say which accuracy"),
    "reduction sum": (lambda: {"loss": _numbered("sum")}, "not have reduction='sum'"),
    "reduction none": (lambda: {"loss": _numbered(None)}, "not have reduction=None"),
    "a sum": (lambda: {"loss": _sum}, "must be the mean over the batch, but grows from"),
    "other targets": (
        lambda: {"loss": "mean_squared_error", "data": _data(np.ones((40, 2)))},
        r"loss refuses outputs float32\[4, 3\] and targets float32\[4, 2\]",
    ),
    "numbers without outputs": (
        lambda: {"loss": "mean_squared_error", "data": _data(np.linspace(0.0, 1.0, 40))},
        r"targets float32\[4\] do not fit outputs float32\[4, 3\]",
    ),
    "too many classes": (lambda: {"data": _data(np.arange(40))}, "labels from 0 to 2, one per output of .*, not 3"),
    "unknown policy": (lambda: {"buffers": "freeze"}, "unknown buffers 'freeze'; did you mean 'frozen'"),
    "statistics": (
        lambda: {"model": sequential(keras.layers.BatchNormalization())},
        "change in training, .*: batch_normalization; say buffers='batch'",
    ),
    "other variables": (
        lambda: {"model": sequential(Counting()), "buffers": "batch"},
        "other variables too, of .*counting; say buffers='frozen'",
    ),
    "global randomness": (lambda: {"model": sequential(Restless())}, "a keras.random.SeedGenerator of its own"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_a_problem_is_a_sentence(name: str) -> None:
    """An error names what is wrong, and says what to do."""
    make, sentence = BAD[name]
    with pytest.raises(ConfigError, match=sentence):
        _made(**make())


def test_numbers_that_are_not_finite_are_found_before_a_run() -> None:
    """A loss with an infinite slope, whose first gradient is NaN, is refused when a run begins."""
    one = _made(loss=lambda _, outputs: keras.ops.sqrt(0.0 * outputs))
    with pytest.raises(ConfigError, match=r"gradient returned nan at \[.*it must be finite there"):
        ds.simulate(ds.algorithms.serial(0.1), one, ds.Fleet(1), updates=1)


def test_a_missing_framework_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Keras, an error says what to install."""
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(ConfigError, match=r"pip install 'distsgd\[tensorflow\]'"):
        _made(model=1)


def test_a_policy_for_other_variables_keeps_them() -> None:
    """With buffers="frozen" a variable that training would change stays as it is."""
    one = made(Counting(), buffers="frozen")
    assert np.array_equal(*(one.gradient(one.start(0), [1, 2]) for _ in range(2)))
    assert float(one._at_work.model.layers[1].calls.numpy()) == 0.0


def test_a_class_of_one_s_own_is_made_again() -> None:
    """Layers of a user's class, even one that no module has, come along with the model."""

    class Twice(keras.layers.Layer):
        def call(self, x: KerasObject) -> KerasObject:
            """Return the double of `x`."""
            return 2.0 * x

    one, data = made(Twice()), tables()
    assert one.loss(one.start(0)) == pytest.approx(float(loss()(data.y, sequential(Twice())(data.x))), rel=1e-6)


def test_a_model_that_is_not_built_is_built_for_the_samples() -> None:
    """Layers without inputs take those of the data, and the problem keeps its start."""
    one = ds.problems.from_keras(keras.Sequential([keras.layers.Dense(3)]), tables(), loss())
    assert [(layer.name, layer.shape) for layer in one.layers] == [("dense/kernel", (5, 3)), ("dense/bias", (3,))]
    assert np.array_equal(one.start(0), one.start(1))


def test_tokens_keep_their_type() -> None:
    """Whole numbers reach an embedding as they are."""
    tokens, labels = np.arange(60).reshape(20, 3) % 7, np.arange(20) % 2
    model = keras.Sequential([keras.layers.Embedding(7, 4), keras.layers.Flatten(), keras.layers.Dense(2)])
    one = ds.problems.from_keras(model, (tokens, labels), loss())
    assert one.data.x.dtype == np.int64
    assert np.isfinite(one.gradient(one.start(0), [0, 1])).all()


def test_a_process_computes_as_the_one_that_made_the_problem() -> None:
    """Where the backend or its threads are others, too late to change, an error says so."""
    known = Backend.current()
    known.enter()
    with pytest.raises(ConfigError, match="set KERAS_BACKEND=no_such before Keras is imported"):
        known._replace(name="no_such").enter()
    if known.threads is not None:
        with pytest.raises(ConfigError, match=f"made with {known.threads + 1} threads of {known.name}"):
            known._replace(threads=known.threads + 1).enter()
