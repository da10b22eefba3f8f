"""Problems that are made of functions: whatever has a loss and a gradient."""

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from distsgd.errors import ConfigError, check_count, check_name, check_number, shown, wrong_kind
from distsgd.problem import Evaluation, Exactness, Layer, Problem, Settings, Vector, data_settings, layers_of
from distsgd.rules.identity import identified
from distsgd.samples.dataset import Data

Start: TypeAlias = ArrayLike | Callable[[int], ArrayLike] | None
"""A point, a function of the run's seed that returns one, or None for zeros."""

_TYPES = ("float64", "float32")
_PLAIN, _RANDOM = "(x, batch)", "(x, batch, key)"
"""What a gradient is a function of."""


@dataclass(frozen=True, eq=False)
class Function(Problem):
    """A problem of functions; made by `from_function`."""

    name: str = field()
    dimension: int = field()
    samples: int = field()
    data: Data | None = field()
    dtype: np.dtype[Any] = field()
    exactness: Exactness = field()
    is_random: bool = field()
    blocks: tuple[Layer, ...]
    objective: Callable[[Vector], float]
    slope: Callable[..., ArrayLike]
    origin: Start
    judge: Callable[[Vector], Evaluation] | None

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Blocks of parameters, as the caller has named them."""
        return self.blocks

    @property
    def settings(self) -> Settings:
        """Name, sizes and data, and what the functions do."""
        known = {"name": self.name, "dimension": self.dimension, "samples": self.samples}
        if self.data is not None:
            known["data"] = data_settings(self.data)
        own = (self.objective, self.slope, self.origin, self.judge, self.blocks, self.exactness)
        return known | identified(f"the problem {self.name}", own)

    def start(self, seed: int) -> Vector:
        """Return the starting point, float[d]."""
        origin = self.origin(seed) if callable(self.origin) else self.origin
        return super().start(seed) if origin is None else np.array(origin, self.dtype)

    def loss(self, x: Vector) -> float:
        """Return what the function of the loss returns."""
        return float(self.objective(x))

    def gradient(self, x: Vector, batch: Any, key: int = 0) -> Vector:  # noqa: ANN401 # as the base has it
        """Return what the function of the gradient returns, float[d]."""
        given = (x, batch, key) if self.is_random else (x, batch)
        return np.asarray(self.slope(*given), self.dtype)

    def evaluate(self, x: Vector) -> Evaluation:
        """Return what the function of the evaluation returns, else the loss alone."""
        return super().evaluate(x) if self.judge is None else self.judge(x)


def from_function(
    gradient: Callable[..., ArrayLike],
    loss: Callable[[Vector], float],
    dimension: int,
    samples: int,
    *,
    start: Start = None,
    evaluate: Callable[[Vector], Evaluation] | None = None,
    data: Data | None = None,
    layers: Mapping[str, int | Sequence[int]] | None = None,
    dtype: DTypeLike = np.float64,
    exactness: Exactness = "bits",
    name: str = "function",
) -> Function:
    r"""Make a problem of a loss and its mini-batch gradient.

    .. math::
        F(x) = \frac 1 n \sum_i f_i(x), \quad
        g(x, B) = \frac{1}{|B|} \sum_{i \in B} \nabla f_i(x).

    Runs are identified by what the functions do: by their code, and the numbers and arrays that
    they use.

    Parameters
    ----------
    gradient : callable
        ``gradient(x, batch)``: the mean gradient of the samples `batch`, uint32[b], at `x`, as
        float[d]. One that draws random numbers is ``gradient(x, batch, key)``: the key, a whole
        number, depends on (seed, worker, step), and every draw on the key alone.
    loss : callable
        ``loss(x)``: the objective F over all samples.
    dimension : int
        Number of parameters, >= 1. The papers' d.
    samples : int
        Number of training samples n, >= 1 and <= 2**32, from which batches are drawn.
    start : float[d] or callable, default zeros
        Starting point, or a function of the run's seed that returns one.
    evaluate : callable, optional
        ``evaluate(x)``: an `Evaluation` of loss, test loss and accuracy. By default the loss alone
        is known.
    data : Data, optional
        The samples, where runs shall divide them by their labels.
    layers : dict of str to shape, optional
        Names and shapes of the blocks of `x`, in order; by default one block ``x``.
    dtype : {float64, float32}, default float64
        The type of parameters, gradients and messages.
    exactness : {"bits", "close"}, default "bits"
        Whether a gradient has the same bits whenever it is asked for on one machine.
    name : str, default "function"
        What reports call the problem.

    Returns
    -------
    Function
        A problem for every engine.

    Raises
    ------
    ConfigError
        If something is no function of these arguments, or a number, a type or a shape does not
        fit. What the functions return is checked when a run begins.

    Examples
    --------
    >>> import numpy as np
    >>> import distsgd as ds
    >>> z = np.arange(100.0)
    >>> problem = ds.problems.from_function(
    ...     lambda x, batch: x - z[batch].mean(),
    ...     lambda x: np.mean((x - z) ** 2) / 2,
    ...     dimension=1,
    ...     samples=100,
    ... )
    >>> run = ds.simulate(ds.algorithms.synchronous(0.5), problem, ds.Fleet(workers=4), updates=50)
    >>> bool(abs(run.x[0] - 49.5) < 5)
    True
    """
    size = check_count("dimension", dimension)
    check_name("exactness", exactness, get_args(Exactness))
    _check_form("loss", loss, "(x)")
    if evaluate is not None:
        _check_form("evaluate", evaluate, "(x)")
    return Function(
        name,
        size,
        _samples(samples, data),
        data,
        _dtype(dtype),
        exactness,
        _check_form("gradient", gradient, _PLAIN, _RANDOM) == _RANDOM,
        _layers(layers, size),
        loss,
        gradient,
        _origin(start, size),
        evaluate,
    )


def _check_form(name: str, function: object, *forms: str) -> str:
    """Return the first of the `forms`, such as "(x)", in which a function can be called."""
    if not callable(function):
        raise ConfigError(f"{name} must be a function of {' or '.join(forms)}, not {shown(function)}")
    for form in forms:
        if _takes(function, form.count(",") + 1):
            return form
    raise ConfigError(f"{name} must be a function of {' or '.join(forms)}, not of {inspect.signature(function)}")


def _takes(function: Callable[..., object], n_arguments: int) -> bool:
    try:
        inspect.signature(function).bind(*range(n_arguments))
    except TypeError:
        return False
    except ValueError:
        return True  # some built-in functions have no signature
    return True


def _samples(samples: int, data: Data | None) -> int:
    check_number("samples", samples, below=2.0**32 + 1)
    if not isinstance(data, Data | None):
        raise wrong_kind("data", "distsgd.data.from_arrays(x, y)", data)
    if data is not None and samples != data.samples:
        raise ConfigError(f"samples must be {data.samples}, those of data, not {shown(samples)}")
    return check_count("samples", samples)


def _dtype(given: DTypeLike) -> np.dtype[Any]:
    with contextlib.suppress(TypeError):
        if (dtype := np.dtype(given)).name in _TYPES:
            return dtype
    raise ConfigError(f"dtype must be {' or '.join(_TYPES)}, not {shown(given)}")


def _layers(shapes: Mapping[str, int | Sequence[int]] | None, dimension: int) -> tuple[Layer, ...]:
    if shapes is None:
        return layers_of({"x": (dimension,)})
    sizes = {name: np.atleast_1d(shape).tolist() for name, shape in shapes.items()}
    layers = layers_of({name: [check_count(f"layers[{name!r}]", n) for n in size] for name, size in sizes.items()})
    n_parameters = layers[-1].place.stop if layers else 0
    if n_parameters != dimension:
        raise ConfigError(f"layers must have {dimension} numbers in all, as dimension says, not {n_parameters}")
    return layers


def _origin(start: Start, dimension: int) -> Start:
    if start is None:
        return None
    if callable(start):
        _check_form("start", start, "(seed)")
        return start
    try:
        point = np.array(start, np.float64)
    except (TypeError, ValueError):
        raise ConfigError(f"start must be {dimension} numbers, or a function of (seed), not {shown(start)}") from None
    if point.shape != (dimension,):
        raise ConfigError(f"start must have the shape ({dimension},), one number per parameter, not {point.shape}")
    return point
