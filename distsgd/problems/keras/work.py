"""A Keras model at work in one process: its gradients and its evaluations.

1. Variables are never written: a `keras.StatelessScope` maps them to what a call is to read.
2. A random layer draws from a `keras.random.SeedGenerator` of its own, whose state is set from the
   key of a gradient. What draws from elsewhere is refused (`distsgd.problems.from_keras`).
3. In evaluations nothing is random, and statistics are those that the policy for buffers names.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.problem import Batch, Evaluation, Layer, Vector, layers_of
from distsgd.problems.keras.backend import Tensor, compiled, drawing, slope
from distsgd.problems.keras.model import Description, KerasObject, Weights, layers_of_model, numbers_of, rebuilt
from distsgd.samples.dataset import Data

JUDGED = 1024
"""Samples that are evaluated together, at most."""
_WORD, _ODD = 2**31, 0x9E3779B1
"""Words of a seed are below the first, as PyTorch takes them; the second tells layers apart."""


class Recipe(NamedTuple):
    """What a model at work is made of, but for its weights and its samples."""

    description: Description
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Callable[[], KerasObject] | None
    buffers: str | None


class Work:
    """A copy of a model, with samples, loss and metric, that computes."""

    def __init__(self, recipe: Recipe, weights: Weights, data: Data) -> None:
        import keras  # noqa: PLC0415 # optional

        self._scope, self.ops = keras.StatelessScope, keras.ops
        self.loss, self._metric = recipe.loss, recipe.metric and recipe.metric()
        self._x, self._y, self._test = np.asarray(data.x), data.y, (np.asarray(data.test_x), data.test_y)
        self.model = rebuilt(recipe.description, weights, self._x[:1])
        self.trainable = self.model.trainable_variables
        known = {id(one) for one in self.model.weights}
        self.seeds = list({id(one): one for one in self.model.variables if id(one) not in known}.values())
        norms = [one for one in layers_of_model(self.model) if isinstance(one, keras.layers.BatchNormalization)]
        if recipe.buffers == "frozen":
            for layer in norms:
                layer.trainable = False  # how Keras is told to use statistics as they are, in training too
        self._norms = norms if recipe.buffers == "batch" else []

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The variables that are trained, under their paths in the model."""
        first = f"{self.model.name}/"
        return layers_of({one.path.removeprefix(first): tuple(one.shape) for one in self.trainable})

    @property
    def targets(self) -> NDArray[Any]:
        """The targets of all training samples."""
        return self._y

    def samples(self, chosen: Any) -> tuple[NDArray[Any], NDArray[Any]]:  # noqa: ANN401 # a slice, or indices
        """Return training samples and targets, numbers with a fraction in the model's type."""
        return self._cast(self._x[chosen]), self._cast(self._y[chosen])

    def gradient(self, x: Vector, batch: Batch, key: int) -> Tensor:
        """Return the mean gradient of the samples `batch` at `x`."""
        with drawing(key):
            return self._slope(x, self.states(key), self.samples(batch))

    def evaluate(self, x: Vector) -> Evaluation:
        """Return training loss, test loss and metric."""
        statistics = self._statistics(x)
        loss, penalty = self._judge(x, statistics, self._x, self._y)
        if not len(self._test[1]):
            return Evaluation(loss + penalty, math.nan, math.nan)
        if self._metric is None:
            return Evaluation(loss + penalty, self._judge(x, statistics, *self._test)[0], math.nan)
        self._metric.reset_state()
        test_loss, _ = self._judge(x, statistics, *self._test, self._metric)
        return Evaluation(loss + penalty, test_loss, float(self._metric.result()))

    def training_loss(self, x: Vector) -> float:
        """Return the mean loss of the training samples, plus the regularisers."""
        return sum(self._judge(x, self._statistics(x), self._x, self._y), 0.0)

    def states(self, key: int) -> NDArray[Any]:
        """Return the states of the random layers, int[n, 2], one more word apart each (rule 2)."""
        words = [[(key + n * _ODD) % _WORD, (key >> 31) % _WORD] for n in range(len(self.seeds))]
        return np.array(words, self.seeds[0].dtype if self.seeds else "int32").reshape(-1, 2)

    def forward(
        self, x: Tensor, states: Tensor, inputs: Tensor, *, training: bool, statistics: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor, KerasObject]:
        """Return the outputs, the sum of the regularisers, and the scope with what has changed."""
        parts = self.ops.split(x, [layer.first for layer in self.layers[1:]])
        pairs = [(one, self.ops.reshape(part, one.shape)) for one, part in zip(self.trainable, parts, strict=True)]
        pairs += [(one, states[n]) for n, one in enumerate(self.seeds)]
        pairs += zip(self.moments, statistics, strict=False)
        with self._scope(pairs, collect_losses=True) as scope:
            outputs = self.model(inputs, training=training)
            penalty = sum(self.model.losses)
        return outputs, penalty, scope

    def mean_loss(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """Return the mean of a loss, which Keras' functions give for each sample."""
        return self.ops.mean(self.loss(targets, outputs))

    def _cast(self, numbers: NDArray[Any]) -> NDArray[Any]:
        return numbers.astype(self.trainable[0].dtype, copy=False) if numbers.dtype.kind == "f" else numbers

    @property
    def moments(self) -> list[KerasObject]:
        """The statistics that evaluations take from the training set."""
        return [one for layer in self._norms for one in (layer.moving_mean, layer.moving_variance)]

    @cached_property
    def _slope(self) -> Callable[..., Tensor]:
        def objective(x: Tensor, states: Tensor, samples: tuple[Tensor, Tensor]) -> Tensor:
            outputs, penalty, _ = self.forward(x, states, samples[0], training=True)
            return self.mean_loss(samples[1], outputs) + penalty

        return slope(objective)

    @cached_property
    def _judged(self) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
        def judged(x: Tensor, states: Tensor, statistics: list[Tensor], samples: tuple[Tensor, Tensor]) -> Tensor:
            outputs, penalty, _ = self.forward(x, states, samples[0], training=False, statistics=statistics)
            return self.mean_loss(samples[1], outputs), penalty, outputs

        return compiled(judged)

    @cached_property
    def _observed(self) -> Callable[..., list[Tensor]]:
        def observed(x: Tensor, states: Tensor, zeros: list[Tensor], samples: tuple[Tensor, Tensor]) -> list[Tensor]:
            _, _, scope = self.forward(x, states, samples[0], training=True, statistics=zeros)
            return [scope.get_current_value(one) for one in self.moments]

        return compiled(observed)

    def _judge(
        self, x: Vector, statistics: list[KerasObject], xs: NDArray[Any], ys: NDArray[Any], metric: KerasObject = None
    ) -> tuple[float, float]:
        """Return the mean loss of samples, and the sum of the regularisers; tell the metric."""
        total, penalty = 0.0, 0.0
        for part in _parts(len(xs)):
            samples = self._cast(xs[part]), self._cast(ys[part])
            loss, penalty, outputs = self._judged(x, self.states(0), statistics, samples)
            total += float(loss) * len(samples[0])
            if metric is not None:
                metric.update_state(samples[1], outputs)
        return total / len(xs), float(penalty)

    def _statistics(self, x: Vector) -> list[NDArray[Any]]:
        """Return means and variances of the training samples: the means of those of their parts.

        A layer keeps ``momentum * old + (1 - momentum) * new``, where the old one is zero here.
        """
        zeros = [np.zeros(one.shape, one.dtype) for one in self.moments]
        shares = [1.0 - layer.momentum for layer in self._norms for _ in range(2)]
        sums = zeros
        for part in _parts(len(self._x)) if zeros else []:
            samples = self.samples(part)
            with drawing(0):
                seen = self._observed(x, self.states(0), zeros, samples)
            sums = [one + len(samples[0]) * numbers_of(new) for one, new in zip(sums, seen, strict=True)]
        return [one / (share * len(self._x)) for one, share in zip(sums, shares, strict=True)]


def _parts(n_samples: int) -> Iterator[slice]:
    """Yield slices of samples that are evaluated together, nearly equal ones."""
    ends = np.linspace(0, n_samples, -(-n_samples // JUDGED) + 1).astype(int).tolist()
    return (slice(*one) for one in pairwise(ends))
