import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import distsgd as ds
from distsgd import ConfigError, DistsgdWarning
from distsgd.fold import problem_check as checks
from distsgd.fold.problem_check import check_problem
from distsgd.problem import Problem

X = np.random.default_rng(0).normal(size=(40, 3))
Y = X @ [1.0, -2.0, 0.5]


class Regression(Problem):
    """A user's own problem: least squares with a regulariser, from nothing but NumPy."""

    name, dimension, samples, data, support = "mine", 3, 40, None, None

    @property
    def settings(self) -> dict[str, Any]:
        """Return what identifies it."""
        return {"name": self.name}

    def start(self, seed: int) -> np.ndarray:
        """Return a random point."""
        return np.random.default_rng(seed).normal(size=3)

    def loss(self, x: np.ndarray) -> float:
        """Return the objective."""
        return float(np.mean((X @ x - Y) ** 2) / 2 + 0.05 * x @ x)

    def gradient(self, x: np.ndarray, batch: np.ndarray) -> np.ndarray:
        """Return that of one batch."""
        return X[batch].T @ (X[batch] @ x - Y[batch]) / len(batch) + 0.1 * x


def changed(**members: object) -> Regression:
    """Return the problem with other members."""
    return type("Changed", (Regression,), members)()


def worse(method: str, change: Callable[..., object]) -> Regression:
    """Return the problem with a method whose result is changed, given self and its arguments."""
    right = getattr(Regression, method)
    return changed(**{method: lambda self, *given: change(right(self, *given), *given)})


def both(change: Callable[[np.ndarray], np.ndarray]) -> Regression:
    """Return the problem with all gradients changed alike."""
    return changed(gradient=lambda self, *given: change(Regression.gradient(self, *given)))


def add_in_place(g: np.ndarray, xs: np.ndarray, _: np.ndarray) -> np.ndarray:
    """Change the points that were given."""
    xs += 1.0
    return g


def fail(*_: object) -> float:
    """Fail as users' code does."""
    raise KeyError("feature")


ORIGIN, BUFFER, NOISE = np.zeros(3), np.zeros((2, 3)), np.random.default_rng(5)

BROKEN = {
    "dimension": (changed(dimension=3.0), r"dimension returned 3.0, expected a whole number >= 1"),
    "no samples": (changed(samples=0), "samples returned 0, expected a whole number >= 1"),
    "no name": (changed(name=""), "name returned '', expected text"),
    "data": (changed(data=X), r"data returned float64\[40, 3\], expected Data"),
    "support": (changed(support=3), "support returned 3, expected Support"),
    "settings": (changed(settings={"x": ORIGIN}), "settings must be ready for JSON: .*ndarray"),
    "NaN settings": (changed(settings={"x": float("nan")}), "settings must be ready for JSON"),
    "start's shape": (worse("start", lambda x, _: x[None]), r"start returned float64\[1, 3\], ex"),
    "start's type": (worse("start", lambda x, _: x.tolist()), "start returned .* list, expected"),
    "start again": (changed(start=lambda *_: NOISE.normal(size=3)), "start returned .* same seed"),
    "start's memory": (changed(start=lambda *_: ORIGIN), "start returned the same array twice"),
    "NaN start": (changed(start=lambda *_: np.full(3, np.nan)), "start returned nan at .* finite"),
    "loss": (changed(loss=lambda *_: np.ones(1)), r"loss returned float64\[1\], expected a finite"),
    "NaN loss": (changed(loss=lambda *_: np.nan), "loss returned nan, expected a finite number"),
    "evaluate": (changed(evaluate=lambda *_: 1.0), r"evaluate returned 1.0, expected Evaluation\("),
    "other loss": (worse("evaluate", lambda e, _: e._replace(loss=e.loss + 1.0)), "evaluate .* the loss"),
    "float32": (both(np.float32), r"gradient returned float32\[3\], expected float64\[3\]"),
    "shape": (both(lambda g: g[:2]), r"gradient returned float64\[2\], expected"),
    "NaN gradient": (both(lambda g: g * np.nan), r"gradient returned nan at \[0\]"),
    "one gradient": (worse("gradients", lambda g, *_: g * (1 + 1e-15)), "must have the same bits"),
    "noise": (worse("gradients", lambda g, *_: g + NOISE.normal()), "other numbers when it"),
    "in place": (worse("gradients", add_in_place), "gradients changed the points or the batches"),
    "buffer": (worse("gradients", lambda g, *_: np.copyto(BUFFER, g) or BUFFER), "an earlier call"),
    "bytes": (changed(message_bytes=lambda *_: 0.0), "message_bytes returned 0.0, expected"),
    "error": (changed(evaluate=fail), rf"evaluate raised KeyError: 'feature' \({re.escape(__file__)}:\d+, in fail\)"),
}


@pytest.mark.parametrize(("problem", "says"), BROKEN.values(), ids=BROKEN)
def test_what_a_method_returns_is_named(problem: Regression, says: str) -> None:
    """A problem that breaks the contract is an error that names the method and its result."""
    with pytest.raises(ConfigError, match=f"^problem Changed: .*{says}"):
        check_problem(problem)


WRONG_SLOPES = {
    "a sum": both(lambda g: 40 * g),
    "no regulariser": worse("gradient", lambda g, x, _: g - 0.1 * x),
    "a sign": both(lambda g: -g),
    "one coordinate": both(lambda g: g * [1.0, 1.0, 1.01]),
    "with noise": worse("gradient", lambda g, _, b: 2 * g + 1e-3 * np.random.default_rng(b).normal(size=3)),
    "virtual samples": changed(
        samples=2**32,
        gradient=lambda _, x, b: 3 * x + 1e-3 * np.random.default_rng(b).normal(size=3),
        loss=lambda _, x: float(x @ x / 2),
    ),
}


@pytest.mark.parametrize("problem", WRONG_SLOPES.values(), ids=WRONG_SLOPES)
def test_a_gradient_that_is_not_the_slope_of_the_loss_is_doubted(problem: Regression) -> None:
    """A gradient that finite differences of the loss do not confirm is a warning and no error."""
    (doubt,) = check_problem(problem)
    assert "gradient is not the slope of loss near the start" in doubt
    with pytest.warns(DistsgdWarning, match="gradient is not the slope"):
        ds.simulate(ds.algorithms.serial(1e-3), problem, ds.Fleet(1), updates=2)


DATA = ds.data.from_arrays(X, (Y > 0).astype(int))
SPARSE = ds.data.sparse(200, 50, 5)
OURS = {
    "mine": Regression(),
    "kinks": changed(
        loss=lambda _, x: float(np.abs(x).sum()),
        gradient=lambda _, x, __: np.where(x < 0.0, -1.0, 1.0),
        start=lambda *_: np.zeros(3),
    ),
    "noise": worse("gradient", lambda g, _, b: g + 0.1 * np.random.default_rng(b).normal(size=3)),
    "quadratic": ds.problems.quadratic([1.0, 20.0]),
    "flat": ds.problems.quadratic([0.0]),
    "noisy quadratic": ds.problems.quadratic([1.0, 2.0], noise=10.0),
    "digits": ds.problems.softmax(ds.data.digits(), 1e-4),
    "network": ds.problems.network(DATA, (8, 4), l2=0.1),
    "unused features": ds.problems.logistic(ds.data.sparse(200, 300, 10), l2=0.1),
    "one sample": ds.problems.least_squares(ds.data.from_arrays([[1.0]], [2.5], test=0)),
    **{
        f"{name}, {data.name}": ds.problems.registry[name](data, l2=0.1)
        for name in ("logistic", "svm", "least_squares", "softmax")
        for data in (DATA, SPARSE)
    },
}


@pytest.mark.parametrize("problem", OURS.values(), ids=OURS)
def test_a_right_problem_is_not_doubted(problem: ds.problems.Problem) -> None:
    """Every problem of ours, and a right one of a user's, noise and kinks included, passes."""
    assert check_problem(problem) == ()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (ds.problems.softmax, r"softmax was not called; write softmax\(data\)"),
        (Regression, r"Regression was not called; write Regression\(\)"),
        ("softmax", r"such as distsgd.problems.softmax\(data\), not 'softmax'"),
        (DATA, "not an object of the type Data"),
        (type("Bare", (Problem,), {"dimension": 2, "samples": 3})(), "Bare lacks loss, gradient"),
        (type("Half", (Problem,), {"loss": 1, "dimension": 2})(), "Half lacks samples, gradient"),
    ],
)
@pytest.mark.parametrize("engine", ["simulate", "launch", "compare"])
def test_what_is_no_problem_is_named(given: object, says: str, engine: str) -> None:
    """Every engine refuses what is no problem with the same sentence."""
    serial, fleet = ds.algorithms.serial(0.1), ds.Fleet(1)
    runs: dict[str, Callable[[], object]] = {
        "simulate": lambda: ds.simulate(serial, given, fleet, updates=3),
        "launch": lambda: ds.launch(serial, given, workers=1, updates=3),
        "compare": lambda: ds.compare(serial, given, fleet, updates=3),
    }
    with pytest.raises(ConfigError, match=f"^problem must .*{says}"):
        runs[engine]()


def test_a_problem_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process checks a problem once, even one that cannot be hashed."""
    problem = changed(__hash__=None)
    check_problem(problem)
    monkeypatch.setattr(checks, "_check_methods", lambda _: pytest.fail("checked again"))
    assert check_problem(problem) == ()
    with pytest.raises(pytest.fail.Exception, match="checked again"):
        check_problem(changed(__hash__=None))
