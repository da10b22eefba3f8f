import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

import distsgd as ds
from distsgd.data.stream import Stream
from distsgd.errors import ConfigError
from distsgd.fold.problem_check import check_problem
from distsgd.problem import problem_settings
from distsgd.problems.from_jax import Mean
from distsgd.samples.dataset import Data

jax = pytest.importorskip("jax", reason="needs distsgd[jax]")

from small_jax import DATA, NETWORK, Array, Tree, accuracy, dropout_loss, flat, loss, perceptron, tree_of  # noqa: E402 # needs jax

pytestmark = pytest.mark.long

TREE, PROBLEM = tree_of(NETWORK.start(0)), perceptron(metric=accuracy)
DROPOUT = perceptron(loss=dropout_loss)
RNG = np.random.default_rng(0)
POINTS = (PROBLEM.start(0) + 0.01 * RNG.normal(size=(11, PROBLEM.dimension))).astype(np.float32)
BATCHES = RNG.integers(0, DATA.samples, (11, 8)).astype(np.uint32)
KEYS = RNG.integers(0, 2**64, 11, dtype=np.uint64)


def test_gradients_are_those_of_the_same_network() -> None:
    """Loss, test loss, accuracy and gradients are those of our network, as far as float32 goes.

    A gradient is a sum of some hundred products that are rounded to 2**-24 of their size.
    """
    x = NETWORK.start(3)
    for batch in BATCHES:
        ours = flat(tree_of(NETWORK.gradient(x, batch)))
        theirs = PROBLEM.gradient(flat(tree_of(x)).astype(np.float32), batch)
        assert np.abs(ours - theirs).max() < 1e-5 * np.abs(ours).max()
    assert np.allclose(PROBLEM.evaluate(flat(tree_of(x))), NETWORK.evaluate(x), rtol=1e-5)


def test_gradients_are_differences_of_the_loss() -> None:
    """The contract of problems holds: slopes, means, bits and new arrays."""
    for problem in (PROBLEM, DROPOUT, perceptron(vmap=True)):
        assert check_problem(problem) == ()


def test_layers_are_named_by_the_tree() -> None:
    """A leaf's name is its path, and its numbers stand at its place in the vector."""
    shapes = {layer.name: layer.shape for layer in PROBLEM.layers}
    assert shapes == {"hidden.b": (16,), "hidden.w": (64, 16), "out.b": (10,), "out.w": (16, 10)}
    start = tree_of(NETWORK.start(0))
    for layer in PROBLEM.layers:
        group, name = layer.name.split(".")
        expected = start[group][name].astype(np.float32)
        assert np.array_equal(PROBLEM.start(5)[layer.place].reshape(layer.shape), expected)


def test_names_of_layers_differ() -> None:
    """A path that reads like another one is written in full, and a single array is called x."""
    tree = {"a.b": np.ones(2), "a": {"b": np.ones(3)}}
    problem = ds.problems.from_jax(lambda p, x, y: p["a.b"].sum() + p["a"]["b"].sum(), tree, (DATA.x, DATA.y))
    assert {layer.name for layer in problem.layers} == {"['a']['b']", "['a.b']"}
    single = ds.problems.from_jax(lambda p, x, y: (p**2).mean(), np.ones((2, 2)), (DATA.x, DATA.y))
    assert [(layer.name, layer.shape) for layer in single.layers] == [("x", (2, 2))]


@pytest.mark.parametrize("problem", [PROBLEM, DROPOUT])
def test_bits_do_not_depend_on_company_or_order(problem: ds.problems.Problem) -> None:
    """A gradient has the same bits alone, in place, among others, again, and in another order."""
    keys = KEYS if problem.is_random else None
    together = problem.gradients(POINTS, BATCHES, keys)
    others = problem.gradients(POINTS[::-1], BATCHES[::-1], None if keys is None else keys[::-1])
    assert np.array_equal(together, others[::-1])
    out = np.empty_like(together)
    for n in reversed(range(len(POINTS))):
        key = int(KEYS[n]) if problem.is_random else 0
        problem.gradient_into(POINTS[n], BATCHES[n], out[n], key)
        assert np.array_equal(out[n], problem.gradient(POINTS[n], BATCHES[n], key))
    assert np.array_equal(together, out)
    assert together.flags.writeable
    assert problem.exactness == "bits"


def elsewhere(expression: str, *given: object) -> bytes:
    """Return the bytes that an expression of `given` has in another process."""
    program = f"import pickle, sys; given = pickle.load(sys.stdin.buffer); assert 'jax' not in sys.modules; {SEND}"
    command, environment = [sys.executable, "-c", program.format(expression)], {"PYTHONPATH": os.pathsep.join(sys.path)}
    content = cloudpickle.dumps(given)
    return subprocess.run(command, env=environment, input=content, stdout=subprocess.PIPE, check=True).stdout


SEND = "sys.stdout.buffer.write(({}).tobytes())"


def test_bits_are_those_of_another_process() -> None:
    """A copy that another process unpickles has the same gradients, bit for bit."""
    given = DROPOUT, POINTS, BATCHES, KEYS
    assert elsewhere("given[0].gradients(*given[1:])", *given) == DROPOUT.gradients(*given[1:]).tobytes()


def test_vmap_is_close_to_one_at_a_time() -> None:
    """Gradients by vmap differ by rounding alone, and say so; their runs have another hash."""
    many = perceptron(vmap=True, metric=accuracy)
    single, together = (problem.gradients(POINTS, BATCHES) for problem in (PROBLEM, many))
    assert np.abs(single - together).max() < 1e-6 * np.abs(single).max()
    assert (many.exactness, many.settings["vmap"]) == ("close", True)
    large = ds.problems.from_jax(lambda p, x, y: (p**2).mean(), np.ones(10**6), (DATA.x, DATA.y), vmap=True)
    assert (large.exactness, large.at_once) == ("bits", 1)


def test_random_layers_draw_from_the_key() -> None:
    """Equal keys drop equal pixels, each half of a key counts, and evaluations drop none."""
    one, *others = (DROPOUT.gradient(POINTS[0], BATCHES[0], key) for key in (7, 7, 8, 7 + 2**32))
    assert [np.array_equal(one, other) for other in others] == [True, False, False]
    assert DROPOUT.loss(POINTS[0]) == PROBLEM.loss(POINTS[0])
    assert (DROPOUT.is_random, PROBLEM.is_random) == (True, False)


def test_one_worker_is_the_loop_of_jax() -> None:
    """Serial SGD has the bits of a loop of compiled steps on the same batches.

    The rate is a power of 2, so that a step is rounded once, in float64 as in float32.
    """
    x, y = jax.numpy.asarray(DATA.x, "float32"), jax.numpy.asarray(DATA.y)

    @jax.jit
    def step(parameters: Tree, batch: Array) -> Tree:
        gradient = jax.grad(loss)(parameters, x[batch], y[batch])
        return jax.tree.map(lambda p, g: p - 0.25 * g, parameters, gradient)

    parameters, stream = jax.tree.map(jax.numpy.asarray, TREE), Stream(DATA.samples, 32, seed=1)
    for number in range(200):
        parameters = step(parameters, stream.batch(0, number))
    run = ds.simulate(ds.algorithms.serial(0.25), PROBLEM, ds.Fleet(1), updates=200, seed=1)
    assert np.array_equal(run.x, flat(parameters))
    assert run.history["accuracy"][-1] > run.history["accuracy"][0]


@pytest.mark.parametrize("problem", [PROBLEM, DROPOUT])
def test_a_live_run_is_replayed(problem: ds.problems.Problem) -> None:
    """Forked workers have a JAX each, and a replay has their bits, those of random layers too."""
    algorithm = ds.algorithms.downpour(0.1)
    run = ds.launch(algorithm, problem, workers=2, updates=60, evaluations=2)
    assert run.status == "done"
    assert np.array_equal(ds.replay(run, algorithm, problem).x, run.x)


def test_a_run_by_vmap_is_close_to_one_without() -> None:
    """A few updates by vmap differ by rounding alone from those by single gradients."""
    one, other = (
        ds.simulate(ds.algorithms.downpour(0.1), problem, ds.Fleet(8, ds.exponential(1.0)), updates=40)
        for problem in (PROBLEM, perceptron(vmap=True, metric=accuracy))
    )
    assert one.hash != other.hash
    # 40 gradients, each to some 2**-24 of its size
    assert 0.0 < np.abs(one.x - other.x).max() < 1e-5


def test_the_example_prints_an_answer() -> None:
    """The example of a model in JAX runs as it stands."""
    script = Path(__file__).parent.parent / "scripts" / "examples" / "jax_model.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert "synchronous" in done.stdout


def test_settings_say_what_is_minimised() -> None:
    """Equal models have equal settings, also as copies; another loss, start or data has others."""
    assert problem_settings(PROBLEM) == problem_settings(perceptron(metric=accuracy))
    assert pickle.loads(cloudpickle.dumps(PROBLEM)).settings == PROBLEM.settings
    others = [
        perceptron(),
        perceptron(metric=accuracy, vmap=True),
        perceptron(metric=accuracy, loss=lambda p, x, y: 2.0 * loss(p, x, y)),
        ds.problems.from_jax(loss, tree_of(NETWORK.start(1)), DATA, metric=accuracy),
        ds.problems.from_jax(loss, tree_of(NETWORK.start(0)), ds.data.digits(seed=1), metric=accuracy),
    ]
    assert len({str(problem_settings(one)) for one in (PROBLEM, *others)}) == 6


def test_images_and_tokens_keep_their_shape() -> None:
    """A loss gets batches of the shape that the data have, of whole numbers where they are."""
    images, tokens = RNG.normal(size=(20, 1, 4, 4)).astype(np.float32), RNG.integers(0, 5, (20, 3))

    def image_loss(p: Tree, x: Array, y: Array) -> Array:
        mixed = jax.lax.conv(x, p["kernel"], (1, 1), "VALID")
        return ((mixed.sum(axis=(1, 2, 3)) - y) ** 2).mean()

    def token_loss(p: Tree, x: Array, y: Array) -> Array:
        return ((p["table"][x].sum(axis=(1, 2)) - y) ** 2).mean()

    for function, tree, x in (
        (image_loss, {"kernel": np.ones((2, 1, 3, 3))}, images),
        (token_loss, {"table": np.ones((5, 2))}, tokens),
    ):
        problem = ds.problems.from_jax(function, tree, (x, np.arange(20.0)))
        assert check_problem(problem) == ()
        # XLA's convolutions have other bits in a loop
        assert (problem.at_once > 1) == (function is token_loss)


def test_nothing_is_known_without_test_samples() -> None:
    """Test loss and accuracy are NaN where there are no test samples, accuracy without a metric."""
    untested = ds.problems.from_jax(loss, tree_of(NETWORK.start(0)), (DATA.x, DATA.y), metric=accuracy)
    assert [math.isnan(one) for one in untested.evaluate(POINTS[0])] == [False, True, True]
    assert [math.isnan(one) for one in DROPOUT.evaluate(POINTS[0])] == [False, False, True]


def fails(p: Tree, x: Array, y: Array) -> Array:
    """Multiply matrices that do not fit."""
    return (x @ p["out"]["w"] - y).mean()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"parameters": {}}, "parameters must have at least one number"),
        ({"parameters": {"a": np.ones(2), "b": np.ones(2, int)}}, "parameters must be .*, not of float32 and int32"),
        ({"parameters": {"a": jax.numpy.ones(2, "bfloat16")}}, "parameters must be .*, not of bfloat16; convert"),
        ({"parameters": {"a": "text"}}, r"parameters must be a tree of arrays, but \['a'\] is 'text'"),
        ({"loss": 3}, r"loss must be a function of \(parameters, x, y\), not 3"),
        ({"metric": "accuracy"}, r"metric must be a function of \(parameters, x, y\), not 'accuracy'"),
        ({"loss": fails}, r"loss of x float64\[64\] and y int64\[\] per sample raised TypeError.*test_from_jax"),
        ({"loss": lambda p, x, y: p["out"]["b"]}, r"loss of .* must return one number, .*shape=\(10,\)"),
        ({"loss": lambda p, x, y: (loss(p, x, y), 1)}, "loss of .* must return one number, the mean .*, not \\("),
        ({"loss": lambda p, x: 0.0}, "loss of .* raised TypeError"),
        ({"metric": lambda p, x, y: x.sum(axis=1)}, "metric of .* must return one number"),
        ({"data": DATA.x}, r"data must be \(x, y\)"),
        ({"data": ds.data.sparse(9, 5, 2)}, r"data of from_jax must be dense, .*; give x.dense\(\)"),
    ],
)
def test_what_cannot_be_derived_is_named(given: dict[str, object], message: str) -> None:
    """Parameters, functions and data of a wrong kind are the caller's error, in one sentence."""
    with pytest.raises(ConfigError, match=f"^{message}"):
        ds.problems.from_jax(**{"loss": loss, "parameters": TREE, "data": DATA} | given)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p, x, y: loss(p, x, y) * len(x), "gradient doubles when its batch is repeated, so that it is a sum"),
        (lambda p, x, y: jax.numpy.sqrt(p["out"]["b"]).sum(), "gradient returned inf"),
        (lambda p, x, y: loss(p, x, y) / p["out"]["b"].sum(), "gradient returned nan"),
    ],
)
def test_a_loss_that_cannot_be_followed_is_named(wrong: Mean, message: str) -> None:
    """A sum instead of a mean, and a first gradient that is not finite, are told before a run."""
    with pytest.raises(ConfigError, match=message):
        ds.simulate(ds.algorithms.serial(0.1), perceptron(loss=wrong), ds.Fleet(1), updates=5)


def test_a_missing_jax_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without JAX, an error says what to install."""
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(ConfigError, match=r"pip install 'distsgd\[jax\]'"):
        perceptron()


def test_float64_needs_a_setting_of_jax() -> None:
    """With jax_enable_x64 parameters of float64 stay so, in other processes too."""
    with jax.enable_x64(True):
        problem = perceptron()
        assert problem.dtype == np.float64
        assert np.allclose(problem.gradient(POINTS[0], BATCHES[0]), PROBLEM.gradient(POINTS[0], BATCHES[0]), atol=1e-5)
        expected = problem.gradient(POINTS[0], BATCHES[0])
    assert elsewhere("given[0].gradient(*given[1:])", problem, POINTS[0], BATCHES[0]) == expected.tobytes()


def test_data_are_given_as_data() -> None:
    """What distsgd.data returns is taken as it is."""
    assert isinstance(PROBLEM.data, Data)
    assert PROBLEM.data is DATA
