"""The contract of a problem: an objective, its gradients, and what compiled sparse loops need."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distsgd.errors import ConfigError
from distsgd.rules.identity import identified
from distsgd.samples.dataset import Data
from distsgd.sparse import Floats, Support

Settings: TypeAlias = Mapping[str, Any]
"""Names and numbers that identify a problem, ready for JSON."""
Batches: TypeAlias = NDArray[np.uint32]
"""Sample indices, one row per gradient, uint32[m, b]."""

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


class Problem(Protocol):
    """An objective over `samples` samples and its mini-batch gradients.

    Every array that is returned is a new one, and the same for the same arguments; none that is
    given is changed. `distsgd.fold.problem_check.check_problem` tries all of this before a run.
    """

    @property
    def name(self) -> str:
        """Name of the constructor in `distsgd.problems`."""

    @property
    def dimension(self) -> int:
        """Number of parameters. The papers' d."""

    @property
    def samples(self) -> int:
        """Number of training samples, from which streams draw."""

    @property
    def settings(self) -> Settings:
        """What identifies the problem: its name and numbers, and the digest of its data."""

    @property
    def data(self) -> Data | None:
        """The samples and their labels, None when samples are virtual."""

    @property
    def support(self) -> Support | None:
        """What sparse loops need, None when gradients are dense."""

    def start(self, seed: int) -> Floats:
        """Return the starting point, float64[d]."""

    def loss(self, x: ArrayLike) -> float:
        """Return the objective at `x`, float64[d]; not finite where the objective is not."""

    def gradient(self, x: ArrayLike, batch: ArrayLike) -> Floats:
        """Return the mean gradient of the samples `batch`, int[b], at `x`, float64[d]."""

    def gradients(self, xs: ArrayLike, batches: ArrayLike) -> Floats:
        """Return m gradients, float64[m, d], each at its own point: the bits of one at a time."""

    def evaluate(self, x: ArrayLike) -> Evaluation:
        """Return what is known of `x`, float64[d]."""

    def message_bytes(self, columns: int, batch: int) -> float:
        """Return the expected size [bytes] of a message that carries `columns` vectors."""


def check_point(x: ArrayLike, dimension: int) -> Floats:
    """Return `x` as float64[d], or raise a `ConfigError` that names the expected shape."""
    point = np.ascontiguousarray(x, dtype=np.float64)
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
    if type(problem).__module__.partition(".")[0] == "distsgd":
        return known
    return known | identified(f"the problem {problem.name}", problem)


def data_settings(data: Data) -> Settings:
    """Return what identifies `data`, ready for JSON."""
    return {"name": data.name, "digest": data.digest}


def dense_bytes(dimension: int, columns: int) -> float:
    """Return the size of `columns` whole vectors [bytes]."""
    return 8.0 * dimension * columns
