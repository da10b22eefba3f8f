from collections.abc import Callable

import numpy as np
import pytest

import distsgd as ds
from distsgd import ConfigError
from distsgd.fold.problem_check import check_problem
from distsgd.problem import Layer, problem_settings
from distsgd.problems.from_function import Function

Z = np.random.default_rng(0).normal(size=(60, 4))
Y = Z @ [1.0, -2.0, 0.5, 0.0]
DATA = ds.data.from_arrays(Z, Y, test=0)
FLEET = ds.Fleet(3, ds.exponential(1.0))


def gradient(x: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Return the slope of least squares."""
    return Z[batch].T @ (Z[batch] @ x - Y[batch]) / len(batch)


def loss(x: np.ndarray) -> float:
    """Return half the mean square."""
    return np.mean((Z @ x - Y) ** 2) / 2


def noisy(x: np.ndarray, batch: np.ndarray, key: int) -> np.ndarray:
    """Return a gradient behind dropout of its numbers."""
    kept = np.random.default_rng(key).random(x.size) < 0.5
    return 2.0 * kept * gradient(x, batch)


def made(**changed: object) -> Function:
    """Return least squares of functions, with other arguments."""
    given = {"gradient": gradient, "loss": loss, "dimension": 4, "samples": 60}
    return ds.problems.from_function(**given | changed)


def scaled_by(factor: float) -> Function:
    """Return a problem whose functions use a number that is not in their code."""
    return made(gradient=lambda x, batch: factor * gradient(x, batch), loss=lambda x: factor * loss(x))


def test_two_functions_are_the_problem_that_they_describe() -> None:
    """Functions of least squares go where our least squares goes, up to the order of sums."""
    theirs, ours = (
        ds.simulate(ds.algorithms.downpour(0.1), problem, FLEET, updates=60, batch=8)
        for problem in (made(), ds.problems.least_squares(DATA))
    )
    np.testing.assert_allclose(theirs.x, ours.x, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(theirs.history["loss"], ours.history["loss"], rtol=1e-9)


@pytest.mark.parametrize(
    "problem",
    [
        made(),
        made(dtype=np.float32, gradient=lambda x, batch: gradient(x, batch).astype(np.float32)),
        made(dtype="float32"),
        made(gradient=noisy),
        made(gradient=lambda x, *others: gradient(x, others[0])),
        made(data=DATA, start=np.ones(4), layers={"bias": 1, "weights": (3, 1)}, exactness="close"),
        made(start=lambda seed: np.random.default_rng(seed).normal(size=4).tolist()),
        made(evaluate=lambda x: ds.Evaluation(float(loss(x)), 1.0, 0.5)),
    ],
)
def test_what_is_made_keeps_the_contract(problem: Function) -> None:
    """Every form of the arguments makes a problem that the check has nothing against."""
    assert check_problem(problem) == ()


def test_arguments_are_the_members() -> None:
    """Start, layers, type, data, evaluation and name are those that were given."""
    problem = made(
        start=[1, 2, 3, 4],
        layers={"bias": 1, "weights": (3, 1)},
        dtype=np.float32,
        data=DATA,
        evaluate=lambda x: ds.Evaluation(float(loss(x)), 1.0, 0.5),
        name="mine",
    )
    assert problem.start(0).tolist() == [1.0, 2.0, 3.0, 4.0]
    assert problem.start(0).dtype == problem.dtype == np.float32
    assert problem.layers == (Layer("bias", (1,), 0), Layer("weights", (3, 1), 1))
    assert (problem.name, problem.data, problem.evaluate(Z[0]).accuracy) == ("mine", DATA, 0.5)
    seeded = made(start=lambda seed: [seed, 0, 0, 0])
    assert [seeded.start(seed)[0] for seed in (3, 5)] == [3.0, 5.0]


def test_a_gradient_of_three_arguments_draws_from_its_key() -> None:
    """A gradient is random if it needs a key, and has the same bits for the same key only."""
    problem = made(gradient=noisy)
    assert problem.is_random
    assert not made().is_random
    xs, batches = np.ones((2, 4)), np.zeros((2, 8), np.uint32)
    first, other = problem.gradients(xs, batches, np.array([1, 2], np.uint64))
    assert first.tobytes() == noisy(xs[0], batches[0], 1).tobytes()
    assert other.tobytes() == noisy(xs[0], batches[0], 2).tobytes() != first.tobytes()


def test_a_problem_is_what_its_functions_do() -> None:
    """Equal code and numbers have equal settings, and others have others."""
    alike = [problem_settings(one) for one in (made(), made(), scaled_by(2.0), scaled_by(2.0))]
    assert alike[0] == alike[1]
    assert alike[2] == alike[3]
    others = [
        scaled_by(3.0),
        made(samples=59),
        made(start=np.ones(4)),
        made(start=lambda seed: np.ones(4)),
        made(dtype="float32"),
        made(data=DATA),
        made(layers={"w": 4}),
        made(exactness="close"),
        made(evaluate=lambda x: ds.Evaluation(float(loss(x)), 0.0, 0.0)),
        made(gradient=noisy),
    ]
    texts = [str(settings) for settings in (alike[0], alike[2], *map(problem_settings, others))]
    assert len(set(texts)) == len(texts)


def test_the_start_is_not_the_caller_s_array() -> None:
    """Whoever changes the array that was the start does not change the problem."""
    point = np.ones(4)
    problem = made(start=point)
    point[:] = 7.0
    assert problem.start(0).tolist() == [1.0] * 4


@pytest.mark.parametrize(
    "changed", [{}, {"gradient": noisy}, {"dtype": np.float32}], ids=["plain", "random", "rounded"]
)
def test_runs_of_functions_are_replayed(changed: dict[str, object]) -> None:
    """Simulated and live runs have the bits of their replays, whatever is drawn and rounded."""
    algorithm, problem = ds.algorithms.downpour(0.05), made(**changed)
    runs = (
        ds.simulate(algorithm, problem, FLEET, updates=30, batch=8),
        ds.launch(algorithm, problem, workers=2, updates=30, batch=8),
    )
    for run in runs:
        again = ds.replay(run, algorithm, made(**changed))
        assert again.x.tobytes() == run.x.tobytes()
        assert again.x.dtype == problem.dtype


def test_a_replay_needs_the_same_functions() -> None:
    """The replay of a run with functions that do something else is refused."""
    run = ds.simulate(ds.algorithms.downpour(0.05), made(), FLEET, updates=3)
    with pytest.raises(ConfigError, match="problem to replay must be the recorded one"):
        ds.replay(run, ds.algorithms.downpour(0.05), scaled_by(2.0))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"gradient": 3}, r"gradient must be a function of \(x, batch\) or \(x, batch, key\), not 3"),
        ({"gradient": lambda x: x}, r"gradient must be a function of .* not of \(x\)"),
        ({"gradient": lambda x, batch, key, more: x}, r"gradient must be .* not of \(x, batch, key, more\)"),
        ({"loss": Z}, r"loss must be a function of \(x\), not an object of the type ndarray"),
        ({"loss": lambda: 0.0}, r"loss must be a function of \(x\), not of \(\)"),
        ({"evaluate": lambda x, y: None}, r"evaluate must be a function of \(x\), not of \(x, y\)"),
        ({"dimension": 0}, "dimension must be a whole number >= 1, not 0"),
        ({"samples": 1.5}, "samples must be a whole number >= 1, not 1.5"),
        ({"samples": 2**33}, r"samples must be < 4.29497e\+09 and finite, not 8589934592"),
        ({"samples": 61, "data": DATA}, "samples must be 60, those of data, not 61"),
        ({"data": Z}, r"data must be a value such as distsgd.data.from_arrays\(x, y\)"),
        ({"start": [1.0, 2.0]}, r"start must have the shape \(4,\), one number per parameter, not \(2,\)"),
        ({"start": "here"}, r"start must be 4 numbers, or a function of \(seed\), not 'here'"),
        ({"start": lambda: 0}, r"start must be a function of \(seed\), not of \(\)"),
        ({"dtype": np.float16}, "dtype must be float64 or float32, not <class 'numpy.float16'>"),
        ({"dtype": "real"}, "dtype must be float64 or float32, not 'real'"),
        ({"layers": {"w": 3}}, "layers must have 4 numbers in all, as dimension says, not 3"),
        ({"layers": {"w": (2, 0)}}, r"layers\['w'\] must be a whole number >= 1, not 0"),
        ({"exactness": "bit"}, "unknown exactness 'bit'; did you mean 'bits'"),
    ],
)
def test_what_does_not_fit_is_named(changed: dict[str, object], says: str) -> None:
    """An argument that is no function, or out of its bounds, is an error that names it."""
    with pytest.raises(ConfigError, match=f"^{says}"):
        made(**changed)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"gradient": lambda x, batch: len(batch) * gradient(x, batch)}, "gradient doubles when its batch is rep"),
        ({"gradient": lambda x, batch: gradient(x, batch)[:3]}, r"gradient returned float64\[3\], expected"),
        ({"gradient": lambda x, batch: gradient(x, batch) * np.nan}, r"gradient returned nan at \[0\]"),
        ({"gradient": lambda x, batch: "steep"}, "gradient raised ValueError"),
        ({"loss": lambda x: Z @ x}, "loss raised TypeError"),
        ({"loss": lambda x: np.inf}, "loss returned inf, expected a finite number"),
        ({"start": lambda seed: [1.0]}, r"start returned float64\[1\], expected float64\[4\]"),
        ({"evaluate": lambda x: 1.0}, r"evaluate returned 1.0, expected Evaluation\("),
        ({"name": ""}, "name returned '', expected text"),
    ],
)
def test_what_functions_return_is_checked(changed: dict[str, Callable[..., object]], says: str) -> None:
    """What a function returns is looked at before a run, and named if an engine cannot use it."""
    with pytest.raises(ConfigError, match=f"^problem Function: {says}"):
        ds.simulate(ds.algorithms.serial(0.1), made(**changed), ds.Fleet(1), updates=2)
