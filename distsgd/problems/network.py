r"""Multilayer perceptrons: rectified hidden layers, a softmax, and their backward pass.

.. math::
    a_0 = z, \quad a_{l+1} = \max(0, a_l W_l + b_l), \quad p = softmax(a_L W_L + b_L), \\
    F(x) = -\frac 1 n \sum_i \log p_{y_i} + \frac{l2}{2} |x|^2,

where x holds :math:`W_0, b_0, W_1, b_1, ...` one after the other, each in C order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import mul
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from distsgd.errors import ConfigError, check_count, check_number, check_room
from distsgd.kernels.draws.noise import fill_normal
from distsgd.kernels.draws.random import START
from distsgd.kernels.gradients.network import rectify, rectify_slopes, shift_logits, softmax_slopes, sum_slopes
from distsgd.problem import (
    MANY,
    Batches,
    Evaluation,
    Layer,
    Problem,
    Settings,
    check_point,
    check_points,
    chunks,
    data_settings,
    layers_of,
)
from distsgd.problems.labels import Classes, classes
from distsgd.samples.dataset import Data
from distsgd.sparse import Floats, Sparse

_LARGE = 100_000
"""Parameters from which on gradients are evaluated one at a time."""
_DENSE_BYTES = 1e9
"""Largest table that sparse data are turned into."""


class Affine(NamedTuple):
    """Where the weights and biases of an affine map stand in a parameter vector."""

    inputs: int
    outputs: int
    first: int
    """Where the weights begin."""
    middle: int
    """Where the biases begin."""
    end: int

    def shapes(self, number: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Return names and shapes of the weights and biases."""
        return (f"W_{number}", (self.inputs, self.outputs)), (f"b_{number}", (self.outputs,))

    def weights(self, xs: Floats) -> Floats:
        """Return a view, float64[m, inputs, outputs], of `xs`, float64[m, d]."""
        return xs[:, self.first : self.middle].reshape(len(xs), self.inputs, self.outputs)

    def biases(self, xs: Floats) -> Floats:
        """Return a view, float64[m, outputs], of `xs`, float64[m, d]."""
        return xs[:, self.middle : self.end]


@dataclass(frozen=True, eq=False)
class Network(Problem):
    """A network on `data`; made by `network`, and by `softmax` without hidden layers."""

    name: str = field()
    data: Data = field()
    l2: float
    affines: tuple[Affine, ...]
    table: Floats
    labels: Classes
    test_table: Floats
    test_labels: Classes

    @property
    def dimension(self) -> int:
        """Number of weights and biases."""
        return self.affines[-1].end

    @property
    def samples(self) -> int:
        """Number of training samples."""
        return self.data.samples

    @property
    def hidden(self) -> tuple[int, ...]:
        """Units of each hidden layer."""
        return tuple(layer.outputs for layer in self.affines[:-1])

    @property
    def settings(self) -> Settings:
        """Name, data, l2 and hidden layers."""
        settings = {"name": self.name, "data": data_settings(self.data), "l2": self.l2}
        return settings | ({"hidden": list(self.hidden)} if self.hidden else {})

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Weights and biases, as ``W_0, b_0, W_1, b_1`` and so on."""
        return layers_of({name: shape for n, one in enumerate(self.affines) for name, shape in one.shapes(n)})

    @property
    def at_once(self) -> int:
        """Large gradients are evaluated one at a time, since they do not stay near the cores."""
        return MANY if self.dimension < _LARGE else 1

    def start(self, seed: int) -> Floats:
        """Return random weights and zero biases, or all zeros without hidden layers, float64[d].

        The weights of a layer have the variance 2 / inputs (He et al. 2015).
        """
        x = np.zeros((1, self.dimension))
        if self.hidden:
            for number, layer in enumerate(self.affines):
                draws = np.empty(layer.inputs * layer.outputs)
                fill_normal(seed, START, number, draws)
                layer.weights(x)[0].flat = draws * math.sqrt(2.0 / layer.inputs)
        point: Floats = x[0]
        return point

    def loss(self, x: ArrayLike) -> float:
        """Return the mean cross-entropy of the training samples plus l2 / 2 |x|^2."""
        point = check_point(x, self.dimension)
        # a run that diverges has losses that are not finite, which is a result
        with np.errstate(over="ignore", invalid="ignore"):
            mean, _ = self._judge(point, self.table, self.labels)
            return float(mean + self.l2 / 2.0 * (point @ point))

    def gradient(self, x: ArrayLike, batch: ArrayLike) -> Floats:
        """Return the mean gradient of the samples `batch`, int[b], float64[d]."""
        one: Floats = self.gradients(np.asarray(x)[None], np.asarray(batch)[None])[0]
        return one

    def gradients(self, xs: ArrayLike, batches: ArrayLike, keys: object = None) -> Floats:  # noqa: ARG002 # for random ones
        """Return m gradients, each at its own point, float64[m, d]."""
        out = np.empty(np.shape(xs))
        self._gradients(xs, batches, out)
        return out

    def gradient_into(self, x: Floats, batch: ArrayLike, out: Floats, key: int = 0) -> None:  # noqa: ARG002 # as above
        """Write the gradient at `x` into `out`, both float64[d]."""
        self._gradients(x[None], np.asarray(batch)[None], out[None])

    def _gradients(self, xs: ArrayLike, batches: ArrayLike, out: Floats) -> None:
        points, chosen = check_points(xs, batches, self.dimension, self.samples)
        units = self.data.features + 2 * sum(layer.outputs for layer in self.affines)
        with np.errstate(over="ignore", invalid="ignore"):
            for part in chunks(len(points), 8.0 * chosen.shape[1] * units):
                self._backward(points[part], chosen[part], out[part])
            if self.l2 > 0.0:
                out += self.l2 * points

    def evaluate(self, x: ArrayLike) -> Evaluation:
        """Return training loss, test loss and test accuracy."""
        loss = self.loss(x)
        with np.errstate(over="ignore", invalid="ignore"):
            point = np.asarray(x, dtype=np.float64)
            return Evaluation(loss, *self._judge(point, self.test_table, self.test_labels))

    def _forward(self, xs: Floats, inputs: Floats) -> list[Floats]:
        """Return the inputs of every layer, and behind them the logits less their maximum."""
        units = [inputs]
        for layer in self.affines:
            units.append(np.matmul(units[-1], layer.weights(xs)))
            activate = shift_logits if layer is self.affines[-1] else rectify
            activate(layer.biases(xs), units[-1])
        return units

    def _backward(self, xs: Floats, batches: Batches, out: Floats) -> None:
        inputs = self.table.take(batches.reshape(-1), axis=0).reshape(*batches.shape, -1)
        *activations, slopes = self._forward(xs, inputs)
        np.exp(slopes, out=slopes)
        softmax_slopes(slopes, self.labels, batches)
        for layer, activation in zip(self.affines[::-1], activations[::-1], strict=True):
            sum_slopes(slopes, layer.biases(out))
            np.matmul(activation.transpose(0, 2, 1), slopes, out=layer.weights(out))
            if layer.first > 0:
                slopes = np.matmul(slopes, layer.weights(xs).transpose(0, 2, 1))
                rectify_slopes(activation, slopes)

    def _judge(self, x: Floats, table: Floats, labels: Classes) -> tuple[float, float]:
        """Return the mean cross-entropy and the accuracy on `table`; NaN when it is empty."""
        if not labels.size:
            return math.nan, math.nan
        total, n_right = 0.0, 0
        units = sum(layer.outputs for layer in self.affines)
        for part in chunks(len(table), 8.0 * units):
            logits = self._forward(x[None], table[None, part])[-1][0]
            n_right += int(np.count_nonzero(logits.argmax(axis=1) == labels[part]))
            chosen = np.take_along_axis(logits, labels[part, None].astype(np.int64), axis=1)[:, 0]
            total += float(np.sum(np.log(np.exp(logits).sum(axis=1)) - chosen))
        return total / len(table), math.nan if math.isnan(total) else n_right / len(table)


def network(data: Data, hidden: int | Sequence[int] = (64,), *, l2: float = 0.0) -> Network:
    """Multilayer perceptron with rectified hidden layers and a softmax output.

    Parameters
    ----------
    data : Data
        Labels are whole numbers, one per class. Sparse data are made dense.
    hidden : int or sequence of int, default (64,)
        Units of each hidden layer, from the inputs to the output.
    l2 : float, default 0.0
        Strength of the regulariser l2 / 2 |x|^2 on weights and biases, >= 0.

    Returns
    -------
    Network
        Starts at random weights that depend on the run's seed, and zero biases.

    Raises
    ------
    ConfigError
        If the labels are no classes, a layer has no units, `l2` is negative, or sparse data would
        not fit in 1 GB.

    References
    ----------
    He, Zhang, Ren and Sun, "Delving Deep into Rectifiers", ICCV 2015, equation (10).
    """
    units = [check_count("hidden", n) for n in np.atleast_1d(hidden).tolist()]
    if not units:
        raise ConfigError("hidden must name the units of at least one layer, not (); use softmax without one")
    return make_network("network", data, units, l2)


def make_network(name: str, data: Data, hidden: Sequence[int], l2: float) -> Network:
    """Return a network of any number of hidden layers, none included."""
    strength = check_number("l2", l2, at_least=0.0)
    labels, test_labels, n_classes = classes(name, data)
    tables = _dense(name, data.x), _dense(name, data.test_x)
    sizes = [data.features, *hidden, n_classes]
    check_room("the weights of hidden layers", sum(map(mul, sizes, sizes[1:])), 64)
    layers = _layers(sizes)
    return Network(name, data, strength, layers, tables[0], labels, tables[1], test_labels)


def _layers(units: Sequence[int]) -> tuple[Affine, ...]:
    layers, first = [], 0
    for inputs, outputs in pairwise(units):
        middle = first + inputs * outputs
        layers.append(Affine(inputs, outputs, first, middle, middle + outputs))
        first = middle + outputs
    return tuple(layers)


def _dense(name: str, x: Floats | Sparse) -> Floats:
    if not isinstance(x, Sparse):
        return x
    n_bytes = 8.0 * x.shape[0] * x.shape[1]
    if n_bytes > _DENSE_BYTES:
        raise ConfigError(
            f"{name} needs dense data, but these would take {n_bytes / 1e9:.1f} GB (limit 1 GB); "
            "use logistic, svm or least_squares, which keep them sparse"
        )
    return x.dense()
