"""Compute-time laws: how long a step takes, as a distribution that has a name and a text form.

Every law but `shifted_exponential`, `uniform` and `empirical` takes its mean first, so that laws of
equal mean and different spread can be exchanged for one another. Times are in seconds.
"""

import ast
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from types import MappingProxyType
from typing import Any

import numpy as np

from distsgd.errors import ConfigError, check_count, check_name, check_number, check_seed
from distsgd.kernels.draws import laws as kernels
from distsgd.kernels.draws.random import COMPUTE

SECONDS = " s"
_AHEAD = 1000
"""Draws that are computed at once, at least."""


@dataclass(frozen=True)
class Law:
    """A distribution of durations [s], or of lags [versions] for `stale_reads`.

    Made by the constructors of this module, or by `Law.parse` from the text that `str` returns.

    Parameters
    ----------
    name : str
        Name of the constructor.
    parameters : tuple of float
        Its arguments; for `empirical` the samples.
    stragglers : tuple of float, optional
        Probability and factor of a transient straggler, see `with_stragglers`.
    """

    name: str
    parameters: tuple[float, ...]
    stragglers: tuple[float, float] | None = None

    @property
    def mean(self) -> float:
        """Mean of the law, stragglers included [s]."""
        probability, factor = self.stragglers or (0.0, 1.0)
        steady = _MEANS[self.name](*self.parameters) if self.name in _MEANS else self.parameters[0]
        return steady * (1.0 + probability * (factor - 1.0))

    @property
    def is_zero(self) -> bool:
        """Whether the law is ``constant(0)``: a duration of 0 that the caller asked for."""
        return self.name == "constant" and self.parameters == (0.0,)

    def with_stragglers(self, probability: float, factor: float) -> "Law":
        """Return the law whose steps are, independently, `factor` times slower with `probability`.

        Raises
        ------
        ConfigError
            If `probability` is outside of [0, 1] or `factor` is not positive.
        """
        check_number("probability", probability, at_least=0)
        if probability > 1:
            raise ConfigError(f"probability must be <= 1, not {probability!r}")
        chance = float(probability)
        return replace(self, stragglers=(chance, check_number("factor", factor, above=0)))

    def divided(self, speed: float) -> "Law":
        """Return the law of the durations of this one divided by `speed`, > 0."""
        check_number("speed", speed, above=0)
        n_times = 1 if self.name in _WITH_SHAPE else len(self.parameters)
        times = tuple(time / speed for time in self.parameters[:n_times])
        return replace(self, parameters=times + self.parameters[n_times:])

    def sample(self, seed: int, purpose: int = COMPUTE, worker: int = 0, n: int = 1) -> np.ndarray:
        """Return the first `n` draws of one worker's stream, ``float64[n]``.

        Draw k is the duration of the worker's step k on a fleet of speed 1 with the same seed.

        Raises
        ------
        ConfigError
            If `seed`, `worker` or `n` is not a whole number >= 0.
        """
        check_seed(seed)
        check_count("worker", worker, at_least=0)
        check_count("n", n, at_least=0)
        rows, samples = table([self])
        values: np.ndarray = kernels.fill(rows[0], samples, seed, purpose, worker, n)
        return values

    @staticmethod
    def parse(text: str) -> "Law":
        """Return the law that `text` describes, for example ``"lognormal(1.0, 0.5)"``.

        The text is what `str` returns: a call of a constructor with literal arguments, and perhaps
        ``.with_stragglers(probability, factor)`` behind it. Nothing of it is executed.

        Raises
        ------
        ConfigError
            If the text is no such call, or its numbers are out of bounds.
        """
        try:
            return _evaluate(ast.parse(text.strip(), mode="eval").body)
        except ConfigError as error:
            raise ConfigError(f"law {text!r}: {error}") from None
        except (SyntaxError, ValueError, TypeError, AttributeError, MemoryError):
            raise ConfigError(f"law {text!r} must look like 'lognormal(1.0, 0.5)'; known: {', '.join(laws)}") from None

    def __str__(self) -> str:
        numbers = ", ".join(map(repr, self.parameters))
        text = f"{self.name}([{numbers}])" if self.name == "empirical" else f"{self.name}({numbers})"
        return text if self.stragglers is None else f"{text}.with_stragglers{self.stragglers!r}"


def constant(value: float) -> Law:
    """Return the law of equal durations: `value` [s], >= 0."""
    return Law("constant", (check_number("value", value, at_least=0, unit=SECONDS),))


def exponential(mean: float) -> Law:
    """Return the memoryless law of the given `mean` [s], > 0."""
    return Law("exponential", (_positive("mean", mean),))


def shifted_exponential(shift: float, mean: float) -> Law:
    r"""Return the law of `shift` plus an exponential time: :math:`s + \mathrm{Exp}(\mu)`.

    `mean` is that of the exponential part, :math:`1 / \mu` [s], > 0; the law's own mean is
    ``shift + mean``. `shift` is >= 0 [s].
    """
    at_least = check_number("shift", shift, at_least=0, unit=SECONDS)
    return Law("shifted_exponential", (at_least, _positive("mean", mean)))


def lognormal(mean: float, cv: float) -> Law:
    """Return the log-normal law of the given `mean` [s], > 0.

    `cv` is the coefficient of variation (deviation / mean), >= 0. The logarithm has the variance
    ``log(1 + cv**2)``.
    """
    return Law("lognormal", (_positive("mean", mean), check_number("cv", cv, at_least=0)))


def gamma(mean: float, shape: float) -> Law:
    """Return the gamma law of `mean` [s] and `shape`, both > 0; shape 1 is exponential."""
    return Law("gamma", (_positive("mean", mean), check_number("shape", shape, above=0)))


def pareto(mean: float, shape: float) -> Law:
    """Return the Pareto law of the given `mean` [s], > 0, and tail exponent `shape`, > 1.

    The smallest duration is ``mean * (shape - 1) / shape``. Up to shape 2 the variance is infinite;
    up to 1 the mean would be too.
    """
    return Law("pareto", (_positive("mean", mean), check_number("shape", shape, above=1)))


def uniform(low: float, high: float) -> Law:
    """Return the law of durations spread evenly between `low`, >= 0, and `high`, > low [s]."""
    least = check_number("low", low, at_least=0, unit=SECONDS)
    return Law("uniform", (least, check_number("high", high, above=least, unit=SECONDS)))


def empirical(samples: Sequence[float] | np.ndarray) -> Law:
    """Return the law that draws from measured durations with replacement.

    `samples` is ``float64[n]`` [s], n >= 1, each > 0 and finite: a timer that shows 0 is coarse.
    """
    if isinstance(samples, (str, bytes)) or np.ndim(samples) != 1 or not len(samples):
        raise ConfigError(f"samples must be a list of durations, not {samples!r}")
    return Law("empirical", tuple(_positive(f"samples[{i}]", s) for i, s in enumerate(samples)))


_MAKERS = (constant, exponential, shifted_exponential, lognormal, gamma, pareto, uniform, empirical)
laws: MappingProxyType[str, Callable[..., Law]] = MappingProxyType({make.__name__: make for make in _MAKERS})
"""The constructors by name."""


def table(several: Sequence[Law]) -> tuple[np.ndarray, np.ndarray]:
    """Return the laws as kernels read them: rows of dtype `LAW`, and the samples they share."""
    rows = np.zeros(len(several), kernels.LAW)
    samples: list[float] = []
    for i, law in enumerate(several):
        measured = law.parameters if law.name == "empirical" else ()
        steady = _COMPILED[law.name](*law.parameters)
        rows[i] = (*steady, len(samples), len(measured), *(law.stragglers or (0.0, 1.0)))
        samples.extend(measured)
    return rows, np.array(samples)


def _positive(name: str, value: float) -> float:
    return check_number(name, value, above=0, unit=SECONDS)


_WITH_SHAPE = {"lognormal", "gamma", "pareto"}
"""Laws whose second parameter is no time."""

_MEANS: dict[str, Callable[..., float]] = {  # of the others it is the first parameter
    "shifted_exponential": lambda shift, mean: shift + mean,
    "uniform": lambda low, high: (low + high) / 2,
    "empirical": lambda *samples: fmean(samples),
}

_COMPILED: dict[str, Callable[..., tuple[int, float, float]]] = {
    "constant": lambda value: (kernels.CONSTANT, value, 0.0),
    "exponential": lambda mean: (kernels.EXPONENTIAL, 0.0, mean),
    "shifted_exponential": lambda shift, mean: (kernels.EXPONENTIAL, shift, mean),
    "lognormal": lambda mean, cv: (kernels.LOGNORMAL, *_logarithm(mean, cv)),
    "gamma": lambda mean, shape: (kernels.GAMMA, shape, mean / shape),
    "pareto": lambda mean, shape: (kernels.PARETO, mean * (shape - 1) / shape, 1 / shape),
    "uniform": lambda low, high: (kernels.UNIFORM, low, high - low),
    "empirical": lambda *_: (kernels.EMPIRICAL, 0.0, 0.0),
}


def _logarithm(mean: float, cv: float) -> tuple[float, float]:
    """Return mean and deviation of the logarithm of a log-normal variate."""
    variance = math.log1p(cv * cv)
    return math.log(mean) - variance / 2, math.sqrt(variance)


def _evaluate(node: ast.expr) -> Law:
    """Return the law of a parsed call: a constructor, or `with_stragglers` of such a call."""
    match node:
        case ast.Call(func=ast.Name(id=name)):
            check_name("law", name, laws)
            return _call(laws[name], node)
        case ast.Call(func=ast.Attribute(value=inner, attr="with_stragglers")):
            return _call(_evaluate(inner).with_stragglers, node)
    raise ConfigError(f"{ast.unparse(node)!r} is not a call of a law; known: {', '.join(laws)}")


def _call(make: Callable[..., Law], node: ast.Call) -> Law:
    positional = [ast.literal_eval(argument) for argument in node.args]
    named: dict[str, Any] = {str(one.arg): ast.literal_eval(one.value) for one in node.keywords}
    signature = inspect.signature(make)
    try:
        signature.bind(*positional, **named)
    except TypeError as error:
        names = ", ".join(signature.parameters)
        raise ConfigError(f"{error}; the arguments are ({names})") from None
    return make(*positional, **named)


class Draws:
    """One worker's draws of a law, computed ahead of their use: the same whatever is asked before.

    Draws above `most` are replaced by that. `seed`, `purpose` and `worker` are those of the stream;
    errors call the law `name`.
    """

    def __init__(self, name: str, law: Law, most: float, *, seed: int, purpose: int, worker: int) -> None:
        self._name, self._law, self._most = name, law, most
        self._stream = seed, purpose, worker
        self._drawn: list[float] = []

    def of(self, number: int) -> float:
        """Return the draw of a number, or raise a `ConfigError` if the law gives NaN."""
        if number >= len(self._drawn):
            drawn = self._law.sample(*self._stream, 2 * number + _AHEAD)
            if np.isnan(drawn).any():
                msg = f"{self._name} must be a law of numbers, but {self._law} gives others; choose another"
                raise ConfigError(msg)
            self._drawn = np.minimum(drawn, self._most).tolist()
        return self._drawn[number]
