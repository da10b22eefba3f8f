import math
from typing import Any

import numpy as np
import pytest

import distsgd as ds
from distsgd import ConfigError
from distsgd.data.stream import Stream
from distsgd.fold.problem_check import check_problem
from distsgd.problem import Layer, layers_of

Z = np.random.default_rng(0).normal(size=(50, 3))
DIGITS = ds.data.digits()


class Smallest(ds.Problem):
    """A point that is near all samples: two numbers and two functions."""

    dimension, samples = 3, 50

    def loss(self, x: np.ndarray) -> float:
        """Return the objective."""
        return float(np.mean((Z - x) ** 2) * 1.5)

    def gradient(self, x: np.ndarray, batch: np.ndarray) -> np.ndarray:
        """Return that of a batch."""
        return x - Z[batch].mean(axis=0)


class Dropping(Smallest):
    """The same behind dropout of whole coordinates."""

    is_random = True

    def gradient(self, x: np.ndarray, batch: np.ndarray, key: int) -> np.ndarray:
        """Return that of a batch, without the coordinates that the key drops."""
        return super().gradient(x, batch) * np.random.default_rng(key).integers(0, 3, x.size)


def changed(kind: type[ds.Problem] = Smallest, **members: object) -> ds.Problem:
    """Return the problem with other members."""
    made: ds.Problem = type("Changed", (kind,), members)()
    return made


def test_two_functions_and_two_numbers_are_a_problem() -> None:
    """The smallest problem is simulated, launched and replayed, and its minimum found."""
    algorithm, problem = ds.algorithms.downpour(0.1), Smallest()
    simulated = ds.simulate(algorithm, problem, ds.Fleet(4), updates=300)
    launched = ds.launch(algorithm, problem, workers=2, updates=300)
    for run in (simulated, launched):
        np.testing.assert_allclose(run.x, Z.mean(axis=0), atol=0.2)  # batches of 32 are that far apart
        assert ds.replay(run, algorithm, problem).x.tobytes() == run.x.tobytes()


def test_what_a_problem_does_not_say_has_defaults() -> None:
    """It has its class's name, float64 zeros to start at, one layer, and no test samples."""
    problem = Smallest()
    assert (problem.name, problem.settings) == ("Smallest", {"name": "Smallest"})
    assert (problem.data, problem.support, problem.at_once) == (None, None, 1)
    assert (problem.dtype, problem.exactness, problem.is_random) == (np.float64, "bits", False)
    assert problem.layers == (Layer("x", (3,), 0),)
    assert problem.start(7).tobytes() == np.zeros(3).tobytes()
    assert problem.message_bytes(2, 32) == 48.0
    loss, *others = problem.evaluate(np.ones(3))
    assert loss == problem.loss(np.ones(3))
    assert all(map(math.isnan, others))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_many_gradients_are_those_of_one_at_a_time(dtype: type) -> None:
    """All three ways to ask for a gradient have the same bits, in the problem's type."""
    problem = changed(dtype=np.dtype(dtype))
    xs = np.random.default_rng(1).normal(size=(4, 3)).astype(dtype)
    batches = Stream(50, 8).batches(range(4), [0] * 4)
    found, into = problem.gradients(xs, batches), np.empty(3, dtype)
    assert found.dtype == problem.start(0).dtype == dtype
    for x, batch, one in zip(xs, batches, found, strict=True):
        problem.gradient_into(x, batch, into)
        assert into.tobytes() == one.tobytes() == problem.gradient(x, batch).astype(dtype).tobytes()


def test_layers_tell_the_place_of_each_block() -> None:
    """Layers stand one behind the other, and those of a network hold its weights and biases."""
    network = ds.problems.network(DIGITS, (5, 4))
    names = [(layer.name, layer.shape) for layer in network.layers]
    assert names == [("W_0", (64, 5)), ("b_0", (5,)), ("W_1", (5, 4)), ("b_1", (4,)), ("W_2", (4, 10)), ("b_2", (10,))]
    x = network.start(0)
    for layer, (weights, biases) in zip(network.affines, zip(*[iter(network.layers)] * 2, strict=True), strict=True):
        assert x[weights.place].tobytes() == layer.weights(x[None])[0].tobytes()
        assert not x[biases.place].any()
    assert network.layers[-1].place.stop == network.dimension


BROKEN: dict[str, tuple[ds.Problem, str]] = {
    "too short": (changed(layers=layers_of({"w": (2,)})), "layers returned .* 3 numbers in all"),
    "too long": (changed(layers=layers_of({"w": (3,), "b": (1,)})), "layers returned .* 3 numbers in all"),
    "a gap": (changed(layers=(Layer("w", (1,), 0), Layer("b", (1,), 2))), "layers returned .*one behind the other"),
    "two of a name": (changed(layers=(Layer("w", (1,), 0), Layer("w", (2,), 1))), "a name of its own for each"),
    "no layers": (changed(layers=()), r"layers returned \(\), expected Layers"),
    "shapes": (changed(layers={"w": (3,)}), "layers returned {'w'.*}, expected Layers"),
    "half": (changed(dtype=np.dtype(np.float16)), r"dtype returned dtype\('float16'\), expected numpy.dtype"),
    "whole numbers": (changed(dtype=np.dtype(int)), "dtype returned .* expected numpy.dtype"),
    "a type's name": (changed(dtype="float32"), "dtype returned 'float32', expected numpy.dtype"),
    "another type": (changed(gradient=lambda self, x, batch: x.astype(np.float32)), r"gradient returned float32\[3\]"),
    "exactness": (changed(exactness="roughly"), "exactness returned 'roughly', expected 'bits' or 'close'"),
    "at once": (changed(at_once=0), "at_once returned 0, expected a whole number >= 1"),
    "a sum": (
        changed(gradient=lambda self, x, batch: (x - Z[batch]).sum(axis=0)),
        "gradient doubles when its batch is repeated, so that it is a sum; it must be the mean over the batch",
    ),
    "no key": (changed(is_random=True), "gradient raised TypeError: .*gradient.. takes 3 positional arguments"),
    "no mean of keys": (
        changed(Dropping, gradient=lambda self, x, batch, key: x + np.random.default_rng().normal()),
        "other numbers when it was asked again; .* and the key where is_random",
    ),
    "another place": (
        changed(
            gradients=lambda self, xs, batches: np.array(list(map(self.gradient, xs, batches))),
            gradient_into=lambda self, x, batch, out, key: out.fill(0.0),
        ),
        "gradient_into and gradients of the same points and batches differ",
    ),
}


@pytest.mark.parametrize(("problem", "says"), BROKEN.values(), ids=BROKEN)
def test_a_member_that_breaks_the_contract_is_named(problem: ds.Problem, says: str) -> None:
    """Layers, types and gradients that no engine could use are errors that name the member."""
    with pytest.raises(ConfigError, match=f"^problem Changed: .*{says}"):
        check_problem(problem)


def test_a_random_problem_repeats_by_its_key() -> None:
    """Gradients of equal keys have equal bits, those of others differ, and the check agrees."""
    problem = Dropping()
    assert check_problem(problem) == ()
    x, batch = np.ones(3), np.arange(8, dtype=np.uint32)
    found = problem.gradients([x] * 3, [batch] * 3, np.array([5, 6, 5], np.uint64))
    assert found[0].tobytes() == found[2].tobytes() == problem.gradient(x, batch, 5).tobytes()
    assert found[0].tobytes() != found[1].tobytes()


def test_close_is_not_equal() -> None:
    """A problem may be asked for other bits by saying so, and for other numbers it may not."""
    draws = np.random.default_rng(2)

    def noisy(size: float) -> dict[str, Any]:
        def gradient(self: Smallest, x: np.ndarray, batch: np.ndarray) -> np.ndarray:
            return Smallest.gradient(self, x, batch) * (1.0 + size * draws.normal())

        return {"gradient": gradient, "exactness": "close"}

    assert check_problem(changed(**noisy(1e-12))) == ()
    with pytest.raises(ConfigError, match="other numbers when it was asked again"):
        check_problem(changed(**noisy(1e-2)))


@pytest.mark.parametrize("missing", ["dimension", "samples", "loss", "gradient"])
def test_a_missing_member_is_named(missing: str) -> None:
    """The base has no default for two numbers and two functions, and the one left out is named."""
    own = {name: one for name, one in vars(Smallest).items() if name != missing}
    problem = type("Partial", (ds.Problem,), own)()
    with pytest.raises(ConfigError, match=f"loss, gradient of its own; Partial lacks {missing}$"):
        ds.simulate(ds.algorithms.serial(0.1), problem, ds.Fleet(1), updates=2)
