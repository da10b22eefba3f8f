r"""Linear models with sparse gradients: one margin per sample, one slope per margin.

.. math:: F(x) = \frac 1 n \sum_i loss(z_i^T x, y_i) + \frac{l2}{2} |x|^2.

As in Hogwild!, the regulariser is split over the samples so that a gradient touches the support of
its sample only. With :math:`d_u` the number of samples in which feature u is not zero,

.. math:: (\nabla f_i)_u = loss'(z_i^T x, y_i) z_{iu} + l2 \frac n {d_u} x_u \quad (u \in e_i).

Its mean over all samples is :math:`\nabla F` in every coordinate that occurs in some sample.

References
----------
Niu, Recht, Re and Wright, "Hogwild!: A Lock-Free Approach to Parallelizing Stochastic Gradient
Descent", NIPS 2011, equation (2.2).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from distsgd.errors import check_number
from distsgd.kernels.gradients.linear import batch_gradients, compiled_support, margins
from distsgd.problem import MANY, Evaluation, Problem, Settings, check_point, check_points, data_settings
from distsgd.problems.labels import numbers, signs
from distsgd.samples.dataset import Data
from distsgd.sparse import Floats, Sparse, Support, explicit


class MarginLoss(NamedTuple):
    """A sample's loss as a function of (margin, label)."""

    loss: Callable[[Floats, Floats], Floats]
    """float64[n], float64[n] -> float64[n]"""
    slope: Callable[[float, float], float]
    """Derivative by the margin: scalar, in terms that compiled code knows."""
    classifies: bool
    """Whether labels are -1 and 1 and the margin's sign is the prediction."""


def logistic_slope(margin: float, label: float) -> float:
    """Return -y / (1 + exp(y m)), without overflow."""
    agreement = label * margin
    if agreement > 0.0:
        decayed = math.exp(-agreement)
        return -label * decayed / (1.0 + decayed)
    return -label / (1.0 + math.exp(agreement))


def hinge_slope(margin: float, label: float) -> float:
    """Return -y where y m < 1, else 0."""
    return -label if label * margin < 1.0 else 0.0


def square_slope(margin: float, label: float) -> float:
    """Return m - y."""
    return margin - label


_LOGISTIC = MarginLoss(lambda m, y: np.logaddexp(0.0, -y * m), logistic_slope, classifies=True)
_HINGE = MarginLoss(lambda m, y: np.maximum(0.0, 1.0 - y * m), hinge_slope, classifies=True)
_SQUARE = MarginLoss(lambda m, y: (m - y) ** 2 / 2.0, square_slope, classifies=False)


@dataclass(frozen=True, eq=False)
class Linear(Problem):
    """A linear model on `data`; made by `logistic`, `svm` and `least_squares`."""

    name: str = field()
    data: Data = field()
    l2: float
    margin_loss: MarginLoss
    sparse: Support
    test_rows: Sparse
    test_labels: Floats

    at_once = MANY

    @property
    def dimension(self) -> int:
        """Number of features."""
        return self.data.features

    @property
    def samples(self) -> int:
        """Number of training samples."""
        return self.data.samples

    @property
    def settings(self) -> Settings:
        """Name, data and l2."""
        return {"name": self.name, "data": data_settings(self.data), "l2": self.l2}

    @property
    def support(self) -> Support | None:
        """What sparse loops need; None for dense data."""
        return self.sparse if isinstance(self.data.x, Sparse) else None

    def start(self, seed: int) -> Floats:  # noqa: ARG002 # a convex problem starts at 0
        """Return zeros, float64[d]."""
        return np.zeros(self.dimension)

    def loss(self, x: ArrayLike) -> float:
        """Return the mean loss of the training samples plus l2 / 2 |x|^2."""
        point = check_point(x, self.dimension)
        # a run that diverges has losses that are not finite, which is a result
        with np.errstate(over="ignore", invalid="ignore"):
            mean = self.margin_loss.loss(_margins(self.sparse.rows, point), self.sparse.labels).mean()
            return float(mean + self.l2 / 2.0 * (point @ point))

    def gradient(self, x: ArrayLike, batch: ArrayLike) -> Floats:
        """Return the mean gradient of the samples `batch`, int[b], float64[d]."""
        one: Floats = self.gradients(np.asarray(x)[None], np.asarray(batch)[None])[0]
        return one

    def gradients(self, xs: ArrayLike, batches: ArrayLike, keys: object = None) -> Floats:  # noqa: ARG002 # for random ones
        """Return m gradients, each at its own point, float64[m, d]."""
        points, chosen = check_points(xs, batches, self.dimension, self.samples)
        out = np.empty_like(points)
        support = compiled_support(self.sparse)
        batch_gradients(support, points, chosen, out)
        return out

    def evaluate(self, x: ArrayLike) -> Evaluation:
        """Return training loss, test loss and, for classes, test accuracy."""
        loss = self.loss(x)
        if not self.test_labels.size:
            return Evaluation(loss, math.nan, math.nan)
        with np.errstate(over="ignore", invalid="ignore"):
            margin = _margins(self.test_rows, np.asarray(x, dtype=np.float64))
            test_loss = float(self.margin_loss.loss(margin, self.test_labels).mean())
        if math.isnan(test_loss) or not self.margin_loss.classifies:
            return Evaluation(loss, test_loss, math.nan)
        return Evaluation(loss, test_loss, float(np.mean((margin > 0.0) == (self.test_labels > 0.0))))

    def message_bytes(self, columns: int, batch: int) -> float:
        """Return the expected size [bytes]: for sparse data 4 per index and 8 per number."""
        if self.support is None:
            return super().message_bytes(columns, batch)
        share = self.sparse.rows.counts / self.samples
        return float(np.sum(1.0 - (1.0 - share) ** batch)) * (8 * columns + 4)


def logistic(data: Data, l2: float = 0.0) -> Linear:
    r"""Logistic regression: loss :math:`\log(1 + e^{-y m})` of the margin :math:`m = z^T x`.

    Parameters
    ----------
    data : Data
        Labels have two values of any kind; the smaller one is -1, the greater one 1.
    l2 : float, default 0.0
        Strength of the regulariser l2 / 2 :math:`|x|^2`, >= 0.

    Returns
    -------
    Linear
        Starts at 0. Gradients live on the support of the batch when the data are sparse.

    Raises
    ------
    ConfigError
        If the labels do not have two values, or `l2` is negative.
    """
    return _linear("logistic", data, l2, _LOGISTIC, signs("logistic", data))


def svm(data: Data, l2: float) -> Linear:
    r"""Support vector machine, Hogwild!'s sparse problem: loss :math:`\max(0, 1 - y m)`.

    Parameters
    ----------
    data : Data
        Labels have two values of any kind; the smaller one is -1, the greater one 1.
    l2 : float
        Strength of the regulariser l2 / 2 :math:`|x|^2`, >= 0. In the paper's sum over n samples,
        :math:`\lambda |x|^2` with :math:`\mu = 2 \lambda = l2 \cdot n`.

    Returns
    -------
    Linear
        Starts at 0. Gradients live on the support of the batch when the data are sparse.

    Raises
    ------
    ConfigError
        If the labels do not have two values, or `l2` is negative.

    Notes
    -----
    Difference from the authors' program: it shrinks the touched coordinates after the step on the
    hinge, at the new values; here both parts of the gradient are taken at the point that was read.

    References
    ----------
    Niu, Recht, Re and Wright, "Hogwild!: A Lock-Free Approach to Parallelizing Stochastic Gradient
    Descent", NIPS 2011, equation (2.2).
    """
    return _linear("svm", data, l2, _HINGE, signs("svm", data))


def least_squares(data: Data, l2: float = 0.0) -> Linear:
    r"""Linear regression: loss :math:`(m - y)^2 / 2` of the margin :math:`m = z^T x`.

    Parameters
    ----------
    data : Data
        Labels are any numbers.
    l2 : float, default 0.0
        Strength of the regulariser l2 / 2 :math:`|x|^2`, >= 0.

    Returns
    -------
    Linear
        Starts at 0. Gradients live on the support of the batch when the data are sparse.

    Raises
    ------
    ConfigError
        If `l2` is negative.
    """
    return _linear("least_squares", data, l2, _SQUARE, numbers("least_squares", data))


def _linear(name: str, data: Data, l2: float, margin_loss: MarginLoss, labels: tuple[Floats, Floats]) -> Linear:
    strength = check_number("l2", l2, at_least=0.0)
    rows, shrink = _rows(data.x), np.zeros(data.features)
    counts = rows.counts
    # the ratio first: where a feature is in every sample it is 1, and the share is l2 exactly
    np.divide(data.samples, counts, out=shrink, where=counts > 0)
    support = Support(rows, labels[0], strength * shrink if l2 else shrink[:0], margin_loss.slope)
    return Linear(name, data, strength, margin_loss, support, _rows(data.test_x), labels[1])


def _rows(x: Floats | Sparse) -> Sparse:
    return x if isinstance(x, Sparse) else explicit(x)


def _margins(rows: Sparse, point: Floats) -> Floats:
    out = np.empty(rows.shape[0])
    margins(rows, point, out)
    return out
