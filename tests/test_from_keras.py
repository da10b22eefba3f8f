import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from scipy.optimize import check_grad
from small_keras import MODELS, QUIET, keras, loss, made, sequential, tables

import distsgd as ds
from distsgd.data.stream import Stream
from distsgd.fold.problem_check import check_problem
from distsgd.problem import problem_settings
from distsgd.problems.from_keras import KerasProblem
from distsgd.problems.keras.model import KerasObject, numbers_of

pytestmark = [pytest.mark.long, QUIET]

BACKEND = keras.config.backend()
BATCH = np.array([3, 1, 4, 1, 5], np.uint32)


def entropies(targets: KerasObject, outputs: KerasObject) -> KerasObject:
    """Return the cross-entropy of each sample."""
    return keras.losses.sparse_categorical_crossentropy(targets, outputs, from_logits=True)


@cache
def _problem(name: str) -> KerasProblem:
    return MODELS[name]()


@pytest.mark.parametrize("name", MODELS)
def test_a_problem_is_what_engines_rely_on(name: str) -> None:
    """Gradients have equal bits when asked again, and without noise they are slopes of the loss."""
    assert check_problem(_problem(name)) == ()


def test_gradients_are_those_of_our_network() -> None:
    """The gradient of a perceptron is that of ours, up to the rounding of sums in float32."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(10)])
    data = ds.data.digits()
    one, ours = ds.problems.from_keras(model, data, loss()), ds.problems.network(data, 16)
    x, batch = one.start(0), np.arange(32)
    expected = ours.gradient(x.astype(np.float64), batch)
    assert one.gradient(x, batch) == pytest.approx(expected, abs=1e-5 * np.abs(expected).max())
    assert one.evaluate(x) == pytest.approx(ours.evaluate(x), rel=1e-5)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="JAX and the losses of PyTorch's backend take float32")
def test_gradients_in_float64_are_finite_differences() -> None:
    """In float64, the gradient of all samples agrees with differences of the loss."""
    # a function, since an object of Keras casts to float32
    one = ds.problems.from_keras(sequential(dtype="float64"), tables(), entropies)
    assert one.dtype == np.float64
    x = np.random.default_rng(0).normal(size=one.dimension)
    assert check_grad(one.loss, lambda x: one.gradient(x, np.arange(one.samples)), x) < 1e-5


def test_one_worker_is_the_loop_of_keras() -> None:
    """A serial run has the bits of `train_on_batch` on the same batches, at a rate of 1 / 4."""
    # Keras rounds the product of rate and gradient, where we round once: this one is exact
    one, model = _problem("plain"), sequential()
    run = ds.simulate(ds.algorithms.serial(0.25), one, ds.Fleet(1), updates=20, batch=8)
    model.compile(keras.optimizers.SGD(0.25), loss(), jit_compile=False)
    stream, data = Stream(one.samples, 8, 0), tables()
    for step in range(20):
        batch = stream.batch(0, step)
        model.train_on_batch(data.x[batch], data.y[batch])
    found = np.concatenate([value.ravel() for value in model.get_weights()])
    # JAX compiles gradient and step into one program, which rounds in other places
    assert run.x == pytest.approx(found, abs=1e-6) if BACKEND == "jax" else np.array_equal(run.x, found)


@pytest.mark.parametrize("name", ["dropout", "two dropouts"])
def test_random_layers_draw_from_the_key(name: str) -> None:
    """A key has the same bits after others and under another global seed, and others differ."""
    one = _problem(name)
    x = one.start(0)
    first = [one.gradient(x, BATCH, key) for key in range(4)]
    keras.utils.set_random_seed(99)
    again = [one.gradient(x, BATCH, key) for key in (3, 2, 1, 0)][::-1]
    assert np.array_equal(first, again)
    assert len({gradient.tobytes() for gradient in first}) == 4


def test_random_layers_draw_apart() -> None:
    """Two layers of the same kind draw from states of their own."""
    one = made(keras.layers.Dropout(0.5), keras.layers.Dropout(0.5))
    states = one._at_work.states(2**63 + 5)
    assert len({tuple(state) for state in states.tolist()}) == 2


def test_a_run_repeats_whatever_was_computed_before() -> None:
    """Two runs with dropout have equal bits, and the model that was given is as before."""
    model = sequential(keras.layers.Dropout(0.5))
    before = model.get_weights()
    one = ds.problems.from_keras(model, tables(), loss())
    runs = [ds.simulate(ds.algorithms.downpour(0.1), one, ds.Fleet(3), updates=20, batch=4) for _ in range(2)]
    assert np.array_equal(runs[0].x, runs[1].x)
    assert all(map(np.array_equal, before, model.get_weights()))


def test_statistics_of_batches_are_those_of_the_training_set_in_evaluations() -> None:
    """With buffers="batch" the loss is that of one batch of all samples in training mode."""
    model = sequential(keras.layers.BatchNormalization())
    one, data = ds.problems.from_keras(model, tables(), loss(), buffers="batch"), tables()
    expected = float(numbers_of(loss()(data.y, model(data.x, training=True))))
    assert one.loss(one.start(0)) == pytest.approx(expected, rel=1e-6)  # sums of float32 in another order


def test_frozen_statistics_are_used_in_training() -> None:
    """With buffers="frozen" gradients are slopes of the loss in evaluation mode."""
    model = sequential(keras.layers.BatchNormalization())
    model.layers[1].moving_mean.assign(np.linspace(-1.0, 1.0, 8))
    one, data = ds.problems.from_keras(model, tables(), loss(), buffers="frozen"), tables()
    assert one.loss(one.start(0)) == pytest.approx(
        float(numbers_of(loss()(data.y, model(data.x, training=False)))), rel=1e-6
    )
    assert [layer.name for layer in one.layers if "batch" in layer.name] == [
        "batch_normalization/gamma",
        "batch_normalization/beta",
    ]
    assert check_problem(one) == ()


def test_regularisers_count_in_training_only() -> None:
    """The penalty of a layer is a part of loss and gradient, and not of the test loss."""
    keras.utils.set_random_seed(1)
    hidden = keras.layers.Dense(8, "tanh", kernel_regularizer=keras.regularizers.L2(0.5))
    model = keras.Sequential([keras.Input((5,)), hidden, keras.layers.Dense(3)])
    one, plain = ds.problems.from_keras(model, tables(), loss()), _problem("plain")
    x = one.start(0)
    kernel = x[one.layers[0].place].astype(np.float64)
    penalty, slope = 0.5 * float(np.sum(kernel**2)), one.gradient(x, BATCH) - plain.gradient(x, BATCH)
    assert slope[one.layers[0].place] == pytest.approx(kernel, abs=1e-6)  # a difference of float32
    found, other = one.evaluate(x), plain.evaluate(x)
    assert found.loss == pytest.approx(other.loss + penalty, rel=1e-6)
    assert found.test_loss == other.test_loss


def test_layers_that_are_not_trained_are_no_parameters() -> None:
    """A frozen layer stays as it is, outside of the vector."""
    model = sequential()
    model.layers[0].trainable = False
    one = ds.problems.from_keras(model, tables(), loss())
    assert [(layer.name, layer.shape) for layer in one.layers] == [("dense_1/kernel", (8, 3)), ("dense_1/bias", (3,))]
    assert one.loss(one.start(0)) == _problem("plain").loss(_problem("plain").start(0))


def test_equal_models_have_equal_names_and_settings() -> None:
    """Layers that a program has made before do not count, nor what a model was compiled with."""
    model = sequential()
    model.compile("adam", "mse")
    again = ds.problems.from_keras(model, tables(), loss())
    assert again.layers == _problem("plain").layers
    assert problem_settings(again) == problem_settings(_problem("plain"))


@pytest.mark.parametrize("part", ["weights", "loss", "metric", "layer"])
def test_another_part_is_another_problem(part: str) -> None:
    """The settings know the start, the loss, the metric and the model."""
    model, given = sequential(*[keras.layers.Dropout(0.1)] * (part == "layer")), loss()
    if part == "weights":
        model.layers[1].bias.assign(np.ones(3))
    if part == "loss":
        given = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=7)
    metric = "sparse_top_k_categorical_accuracy" if part == "metric" else None
    other = ds.problems.from_keras(model, tables(), given, metric=metric)
    assert problem_settings(other) != problem_settings(_problem("plain"))


def test_metrics_are_names_functions_and_objects() -> None:
    """Each form of the same metric finds the same, and a user's own object counts nothing."""
    own = keras.metrics.SparseCategoricalAccuracy()
    forms = [None, "sparse_categorical_accuracy", own, lambda y, o: keras.ops.equal(keras.ops.argmax(o, 1), y)]
    found = {made(metric=form).evaluate(_problem("plain").start(0)).accuracy for form in forms}
    assert len(found) == 1
    assert 0.0 <= found.pop() <= 1.0
    assert float(own.count) == 0.0


@cache
def _convolution() -> KerasProblem:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Reshape((8, 8, 1)), keras.layers.Conv2D(4, 3, activation="relu"), keras.layers.Flatten()]
    model = keras.Sequential([keras.Input((64,)), *layers, keras.layers.Dropout(0.2), keras.layers.Dense(10)])
    return ds.problems.from_keras(model, ds.data.digits(), loss())


def test_a_problem_works_in_another_process(tmp_path: Path) -> None:
    """Unpickled elsewhere a problem imports nothing before its first use, and has equal bits."""
    # sums of a convolution depend on the number of threads, and live workers are told to have one
    one, file, batch = _convolution(), tmp_path / "problem", np.arange(32)
    x = one.start(0)
    file.write_bytes(cloudpickle.dumps((one, x, batch)))
    code = (
        "import pathlib, pickle, sys;"
        f"one, x, batch = pickle.loads(pathlib.Path({str(file)!r}).read_bytes());"
        "assert 'keras' not in sys.modules and one.layers;"
        "print(one.gradient(x, batch, 7).tobytes().hex(), one.evaluate(x).loss.hex())"
    )
    single = os.environ | {"NPROC": "1", "TF_NUM_INTRAOP_THREADS": "1"}
    found = subprocess.run([sys.executable, "-c", code], env=single, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [one.gradient(x, batch, 7).tobytes().hex(), one.evaluate(x).loss.hex()]


def test_a_live_run_is_replayed() -> None:
    """A live run with a convolution and dropout has a replay of equal bits."""
    one, algorithm = _convolution(), ds.algorithms.downpour(0.1)
    run = ds.launch(algorithm, one, workers=2, updates=30)
    assert run.trace.n_updates >= 30
    assert np.array_equal(ds.replay(run, algorithm, one).x, run.x)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="starts the other backends itself")
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_laws_hold_for_other_backends(backend: str) -> None:
    """Gradients, randomness, statistics, pickles and the loop of Keras pass with each backend."""
    pytest.importorskip(backend, reason=f"needs distsgd[{backend}]")
    names = "our_network or draw or statistics or another_process or loop_of_keras"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", names]
    done = subprocess.run(
        command, env=os.environ | {"KERAS_BACKEND": backend}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("script", "said"), [("examples/keras_tensorflow", "16 workers: loss"), ("tf_distribute", "mirrored")]
)
def test_scripts_say_what_they_find(script: str, said: str) -> None:
    """The example runs, and `tf.distribute` has the losses of the same algorithm here."""
    pytest.importorskip("tensorflow", reason="needs distsgd[tensorflow]")
    path = Path(__file__).parent.parent / "scripts" / f"{script}.py"
    done = subprocess.run([sys.executable, path, "--quick"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
