"""The quadratic: the problem whose convergence under delay is known in closed form."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from distsgd.errors import ConfigError, check_number
from distsgd.kernels.draws.noise import add_noise
from distsgd.problem import MANY, Evaluation, Problem, Settings, check_point, check_points
from distsgd.sparse import Floats


@dataclass(frozen=True, eq=False)
class Quadratic(Problem):
    """A separable quadratic; made by `quadratic`."""

    curvature: Floats
    noise: float
    origin: Floats

    name = "quadratic"
    samples = 2**32
    """Samples are virtual: each is a key of its own noise."""
    at_once = MANY

    @property
    def dimension(self) -> int:
        """Number of coordinates."""
        return self.curvature.size

    @property
    def settings(self) -> Settings:
        """Name, curvature, noise and starting point."""
        return {
            "name": self.name,
            "curvature": self.curvature.tolist(),
            "noise": self.noise,
            "start": self.origin.tolist(),
        }

    def start(self, seed: int) -> Floats:  # noqa: ARG002 # the caller has chosen the start
        """Return the starting point, float64[d]."""
        return self.origin.copy()

    def loss(self, x: ArrayLike) -> float:
        """Return sum(curvature x^2) / 2."""
        point = check_point(x, self.dimension)
        # a run that diverges has losses that are not finite, which is a result
        with np.errstate(over="ignore", invalid="ignore"):
            return float(np.sum(self.curvature * point * point) / 2.0)

    def gradient(self, x: ArrayLike, batch: ArrayLike) -> Floats:
        """Return the gradient at `x` with the noise of `batch`, float64[d]."""
        one: Floats = self.gradients(np.asarray(x)[None], np.asarray(batch)[None])[0]
        return one

    def gradients(self, xs: ArrayLike, batches: ArrayLike, keys: object = None) -> Floats:  # noqa: ARG002 # for random ones
        """Return m gradients, each at its own point, float64[m, d]."""
        points, chosen = check_points(xs, batches, self.dimension, self.samples)
        with np.errstate(over="ignore", invalid="ignore"):
            out: Floats = self.curvature * points
        if self.noise > 0.0:
            add_noise(self.noise, chosen, out)
        return out

    def evaluate(self, x: ArrayLike) -> Evaluation:
        """Return the loss; there is nothing to test on."""
        return Evaluation(self.loss(x), math.nan, math.nan)


def quadratic(curvature: ArrayLike, noise: float = 0.0, start: ArrayLike | None = None) -> Quadratic:
    r"""Separable quadratic :math:`F(x) = \sum_j h_j x_j^2 / 2` with gradient noise.

    A gradient is :math:`h x + \sigma \xi` with :math:`\xi_j \sim N(0, 1)` independent in each
    coordinate, of the same size whatever the batch. The noise is a function of the sample indices
    of the batch, so a worker's step has the same noise under every engine.

    Parameters
    ----------
    curvature : float64[d]
        The papers' h, one number >= 0 per coordinate.
    noise : float, default 0.0
        Standard deviation of the noise, >= 0. The papers' :math:`\sigma`.
    start : float64[d], default ones
        Starting point.

    Returns
    -------
    Quadratic
        It has 2**32 virtual samples.

    Raises
    ------
    ConfigError
        If a number is not finite or negative where it must not be, or if lengths differ.
    """
    h = _vector("curvature", curvature)
    if h.min() < 0.0:
        raise ConfigError(f"curvature must be >= 0 in every coordinate, not {h.min()}")
    origin = np.ones(h.size) if start is None else _vector("start", start)
    if origin.size != h.size:
        raise ConfigError(f"start must have {h.size} numbers, one per curvature, not {origin.size}")
    return Quadratic(h, check_number("noise", noise, at_least=0.0), origin)


def _vector(name: str, values: Any) -> Floats:  # noqa: ANN401 # whatever NumPy holds
    try:
        vector = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        vector = np.empty((0, 0))
    if vector.ndim != 1 or vector.size == 0 or not np.isfinite(vector).all():
        raise ConfigError(f"{name} must be a list of finite numbers, one per coordinate, not {values!r}")
    return vector
