"""The contract of a problem: an objective, its gradients, and what compiled sparse loops need."""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from distsgd.errors import ConfigError
from distsgd.rules.identity import identified
from distsgd.samples.dataset import Data
from distsgd.sparse import Floats, Support

Settings: TypeAlias = Mapping[str, Any]
"""Names and numbers that identify a problem, ready for JSON."""
Vector: TypeAlias = NDArray[Any]
"""Numbers of the problem's type: float64 or float32."""
Batch: TypeAlias = NDArray[np.uint32]
"""Sample indices of one gradient, uint32[b]."""
Batches: TypeAlias = NDArray[np.uint32]
"""Sample indices, one row per gradient, uint32[m, b]."""
Exactness: TypeAlias = Literal["bits", "close"]
"""Whether equal arguments give equal bits on one machine and library, or only close numbers."""

MANY = 256
"""Gradients evaluated together: more do not stay near the cores."""
_CHUNK_BYTES = 2e6
"""Working memory of gradients that are evaluated together: small enough to stay in the cache."""


class Evaluation(NamedTuple):
    """What is known of a point; NaN where it does not apply."""

    loss: float
    """The objective: the mean over the training samples, plus the regulariser."""
    test_loss: float
    """The mean over the test samples, without the regulariser."""
    accuracy: float
    """Share of the test samples that are classified correctly."""


class Layer(NamedTuple):
    """A block of parameters: its name, its shape, and its place in the vector."""

    name: str
    shape: tuple[int, ...]
    first: int
    """Where its numbers begin; they stand in C order."""

    @property
    def place(self) -> slice:
        """Where its numbers stand in a vector of all parameters."""
        return slice(self.first, self.first + math.prod(self.shape))


def layers_of(shapes: Mapping[str, Sequence[int]]) -> tuple[Layer, ...]:
    """Return layers of these names and shapes, one behind the other."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    starts = accumulate(sizes, initial=0)
    return tuple(Layer(name, tuple(shape), first) for (name, shape), first in zip(shapes.items(), starts, strict=False))


class _ClassName:
    """An attribute that is the name of the class, unless a class gives another."""

    def __get__(self, problem: object, kind: type) -> str:
        return kind.__name__


class Problem:
    """An objective over samples, and its mini-batch gradients: the base of every problem.

    A class of your own gives `dimension`, `samples`, `loss` and `gradient`; the rest has defaults.
    Every array that is returned is a new one, and the same for the same arguments; none that is
    given is changed. ``loss(x)`` is the objective at `x`, float[d], and ``gradient(x, batch)`` the
    mean gradient of the samples `batch`, int[b]. A problem that is random takes a third argument
    there, ``key``: a number that depends on (seed, worker, step), on which all that it draws
    depends, and on nothing else. `distsgd.fold.problem_check.check_problem` tries all of this.

    Examples
    --------
    >>> import numpy as np
    >>> import distsgd as ds
    >>> class Mean(ds.Problem):
    ...     dimension, samples = 1, 100
    ...     def loss(self, x):
    ...         return float(np.mean((x - np.arange(100)) ** 2) / 2)
    ...     def gradient(self, x, batch):
    ...         return x - np.mean(batch)
    >>> run = ds.simulate(ds.algorithms.synchronous(0.5), Mean(), ds.Fleet(workers=4), updates=50)
    >>> bool(abs(run.x[0] - 49.5) < 5)
    True
    """

    if TYPE_CHECKING:  # what a class gives, or sets as it likes: attributes, fields, properties, methods

        @property
        def name(self) -> str:
            """What reports call the problem."""

        @property
        def dimension(self) -> int:
            """Number of parameters. The papers' d."""

        @property
        def samples(self) -> int:
            """Number of training samples, from which streams draw."""

        @property
        def data(self) -> Data | None:
            """The samples and their labels, None where distsgd does not know them."""

        @property
        def support(self) -> Support | None:
            """What sparse loops need, None when gradients are dense."""

        @property
        def dtype(self) -> np.dtype[Any]:
            """The type of parameters, gradients and messages: float64 or float32."""

        @property
        def is_random(self) -> bool:
            """Whether gradients draw random numbers; they get a key then."""

        @property
        def exactness(self) -> Exactness:
            """Whether a gradient has the same bits whenever it is asked for on this machine."""

        def loss(self, x: Vector) -> float:
            """Return the objective at `x`, float[d]; not finite where the objective is not."""

        def gradient(self, x: Vector, batch: Any) -> Vector:  # noqa: ANN401 # uint32[b], or a list
            """Return the mean gradient of the samples `batch`, int[b], at `x`, float[d]."""

    else:
        name, data, support = _ClassName(), None, None
        dtype, is_random, exactness = np.dtype(np.float64), False, "bits"

    @property
    def at_once(self) -> int:
        """How many gradients are best evaluated together: 1 if one at a time, in place.

        More are evaluated by `gradients`, one by `gradient_into`.
        """
        return 1

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Names, shapes and places of the parameters, one behind the other."""
        return layers_of({"x": (self.dimension,)})

    @property
    def settings(self) -> Settings:
        """What identifies the problem: its name and numbers, and the digest of its data."""
        return {"name": self.name}

    def start(self, seed: int) -> Vector:  # noqa: ARG002 # for starts that are drawn
        """Return the starting point, float[d]: zeros."""
        return np.zeros(self.dimension, self.dtype)

    def gradients(self, xs: Any, batches: Any, keys: Any = None) -> Vector:  # noqa: ANN401 # arrays, or lists
        """Return m gradients, float[m, d], each at its own point: the bits of one at a time.

        Points are float[m, d], batches int[m, b], and keys, of a problem that is random, uint64[m].
        """
        points = np.asarray(xs, self.dtype)
        out = np.empty((len(points), self.dimension), self.dtype)
        for n, (x, batch) in enumerate(zip(points, batches, strict=True)):
            self.gradient_into(x, batch, out[n], 0 if keys is None else int(keys[n]))
        return out

    def gradient_into(self, x: Vector, batch: Batch, out: Vector, key: int = 0) -> None:
        """Write the gradient at `x` into `out`, both float[d], without a copy of either.

        What engines call where gradients are large; `key` counts only if the problem is random.
        """
        given = {"key": key} if self.is_random else {}
        out[...] = self.gradient(x, batch, **given)

    def evaluate(self, x: Vector) -> Evaluation:
        """Return what is known of `x`, float[d]."""
        return Evaluation(self.loss(x), math.nan, math.nan)

    def message_bytes(self, columns: int, batch: int) -> float:  # noqa: ARG002 # sparse ones depend on it
        """Return the expected size [bytes] of a message that carries `columns` vectors."""
        return float(self.dtype.itemsize) * self.dimension * columns


def check_point(x: ArrayLike, dimension: int, dtype: DTypeLike = np.float64) -> Vector:
    """Return `x` as float[d], or raise a `ConfigError` that names the expected shape."""
    point = np.ascontiguousarray(x, dtype)
    if point.shape != (dimension,):
        raise ConfigError(f"x must have the shape ({dimension},), not {point.shape}")
    return point


def check_points(xs: ArrayLike, batches: ArrayLike, dimension: int, samples: int) -> tuple[Floats, Batches]:
    """Return `xs` as float64[m, d] and `batches` as uint32[m, b], or raise a `ConfigError`.

    A sample index is checked here, since compiled loops trust it.
    """
    points, chosen = np.ascontiguousarray(xs, dtype=np.float64), np.asarray(batches)
    if points.ndim != 2 or points.shape[1] != dimension:
        raise ConfigError(f"xs must have the shape (m, {dimension}), not {points.shape}")
    if chosen.ndim != 2 or len(chosen) != len(points) or chosen.shape[1] == 0:
        raise ConfigError(f"batches must have the shape ({len(points)}, b) with b >= 1, not {chosen.shape}")
    if chosen.dtype.kind not in "iu":
        raise ConfigError(f"batches must hold sample indices, whole numbers, not {chosen.dtype}")
    is_signed = chosen.dtype.kind == "i"
    if chosen.size and (chosen.max() >= samples or (is_signed and chosen.min() < 0)):
        raise ConfigError(f"batches must be >= 0 and < {samples} (samples), not {chosen.min()} to {chosen.max()}")
    return points, np.ascontiguousarray(chosen, dtype=np.uint32)


def chunks(n_gradients: int, gradient_bytes: float) -> list[slice]:
    """Return slices of the gradients that are evaluated together in bounded working memory."""
    length = max(1, int(_CHUNK_BYTES / gradient_bytes))
    return [slice(first, first + length) for first in range(0, n_gradients, length)]


def problem_settings(problem: Problem) -> dict[str, Any]:
    """Return what identifies `problem` in a run, as JSON.

    For a problem of a user's own class, that is also what its methods do and its attributes hold,
    since its settings may be those of another one. What a `functools.cached_property` keeps does
    not count.
    """
    known = dict(problem.settings)
    if problem.dtype != np.float64:
        known["dtype"] = problem.dtype.name
    if type(problem).__module__.partition(".")[0] == "distsgd":
        return known
    return known | identified(f"the problem {problem.name}", problem)


def data_settings(data: Data) -> Settings:
    """Return what identifies `data`, ready for JSON."""
    return {"name": data.name, "digest": data.digest}
