"""Problems that are made of a Keras model, a loss and data."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from distsgd.data.given import samples_of
from distsgd.errors import ConfigError, check_name
from distsgd.problem import Batch, Evaluation, Vector, data_settings
from distsgd.problems.keras.backend import Backend
from distsgd.problems.keras.check import POLICIES, check_model, check_variables
from distsgd.problems.keras.losses import identity_of, loss_of, metric_of
from distsgd.problems.keras.model import KerasObject, Weights, described, numbers_of
from distsgd.problems.keras.work import Recipe, Work
from distsgd.problems.lazy import Lazy
from distsgd.problems.model import ModelProblem
from distsgd.rules.identity import digest, identified
from distsgd.samples.dataset import Data
from distsgd.sparse import Sparse


@dataclass(frozen=True, eq=False, repr=False)
class KerasProblem(ModelProblem):
    """A Keras model, a loss and data; made by `from_keras`."""

    weights: Weights
    """The start of all variables, those that are not trained too."""
    work: Lazy[Work]

    def loss(self, x: ArrayLike) -> float:
        """Return the mean loss of the training samples plus the model's regularisers."""
        return self._at_work.training_loss(self._point(x))

    def gradient_into(self, x: Vector, batch: Batch, out: Vector, key: int = 0) -> None:
        """Write the gradient at `x` into `out`, both float[d]."""
        out[...] = self._at_work.gradient(x, batch, int(key))

    def evaluate(self, x: ArrayLike) -> Evaluation:
        """Return training loss, test loss and the metric of the test samples."""
        return self._at_work.evaluate(self._point(x))

    @property
    def _at_work(self) -> Work:
        return self.work.value(self.weights, self.data)

    def _point(self, x: ArrayLike) -> Vector:
        return np.ascontiguousarray(x, self.dtype)


def from_keras(
    model: KerasObject,
    data: Any,  # noqa: ANN401 # whatever holds samples
    loss: KerasObject,
    *,
    metric: KerasObject = None,
    buffers: str | None = None,
) -> KerasProblem:
    """Model of Keras with a loss, trained on data of your own, with any backend of Keras.

    The gradient of a batch is that of the mean loss in training mode, plus the regularisers of the
    model's layers. A run starts at the weights that the model has, whatever its seed; the model
    itself is never changed. Variables that are not trainable stay as they are.

    Random layers, such as Dropout, draw from (seed, worker, step) and from nothing else. Gradients
    have equal bits on one machine and version. With TensorFlow and JAX the number of threads counts
    too: it is a part of the problem's settings, and every worker takes as many. One is best where
    workers share a machine: ``tf.config.threading.set_intra_op_parallelism_threads(1)`` before the
    model is made, or ``NPROC=1`` in the environment of JAX.

    Parameters
    ----------
    model : keras.Model
        Sequential, functional, or a class of your own with ``get_config``. One that is not built
        is built for the samples, with new weights.
    data : tuple, dataset or Data
        Arrays or tensors ``(x, y)`` or ``(x, y, test_x, test_y)`` of any shape, the samples along
        the first axis; a dataset with a length, of pairs; or `Data`.
    loss : str, callable or keras.losses.Loss
        Name, function or object of ``(targets, outputs)``. What a function gives for each sample is
        averaged.
    metric : str, callable or keras.metrics.Metric, optional
        What evaluations report as accuracy, of the test samples. By default the share of classes
        that are right, where targets are classes and the model has an output for each.
    buffers : {"frozen", "batch"}, optional
        What becomes of statistics that training changes, such as those of BatchNormalization:
        "frozen", they stay as they are, in training too; "batch", training takes those of the
        batch, and an evaluation those of the training set (the mean over parts of at most 1,024
        samples). Without a policy such layers are refused.

    Returns
    -------
    KerasProblem
        Its layers are called like the model's variables, as in ``dense/kernel``; layers that Keras
        has named itself are numbered from 0.

    Raises
    ------
    ConfigError
        If Keras is missing; if model, loss and data do not fit together; if the loss is not a mean;
        or if training changes variables and no policy is named.

    Examples
    --------
    >>> import keras  # doctest: +SKIP
    >>> import numpy as np
    >>> import distsgd as ds
    >>> layers = [keras.layers.Dense(32, "relu"), keras.layers.Dense(1)]  # doctest: +SKIP
    >>> x = np.random.default_rng(0).normal(size=(100, 8))
    >>> data = (x, x[:, :1] ** 2)
    >>> problem = ds.problems.from_keras(keras.Sequential(layers), data, "mse")  # doctest: +SKIP
    >>> downpour = ds.algorithms.downpour(0.1)
    >>> ds.simulate(downpour, problem, ds.Fleet(workers=4), epochs=5).status  # doctest: +SKIP
    'done'
    """
    _check_installed()
    if buffers is not None:
        check_name("buffers", buffers, POLICIES)
    backend, samples = Backend.current(), _dense(samples_of(data))
    description, weights = described(model)
    recipe = Recipe(description, loss_of(loss), metric_of(metric, samples), buffers)
    lazy = Lazy(_work, backend, Lazy(Recipe, *recipe))
    work = lazy.value(weights, samples)
    check_variables(work)
    weights = tuple(map(numbers_of, work.model.weights))  # those of a model that was not built, too
    origin = np.concatenate([numbers_of(one).ravel() for one in work.trainable])
    check_model(work, origin, buffers)
    identity = (description.own, identity_of(recipe.loss), recipe.metric)
    settings = {
        "name": KerasProblem.name,
        "data": data_settings(samples),
        "model": digest(description.config),
        "weights": digest(weights),
        "buffers": buffers,
        "keras": backend.settings,
    } | identified("the problem of from_keras", identity)
    return KerasProblem("from_keras", samples, bool(work.seeds), origin, work.layers, settings, weights, lazy)


def _work(backend: Backend, recipe: Lazy[Recipe], weights: Weights, data: Data) -> Work:
    """Return the model at work in this process; a recipe that is read imports Keras."""
    backend.enter()
    return Work(recipe.value(), weights, data)


def _check_installed() -> None:
    try:
        import keras  # noqa: F401, PLC0415 # optional
    except ImportError as error:
        what = f"from_keras needs Keras with one of its backends, but {error.name} is not installed"
        raise ConfigError(f"{what}; run: pip install 'distsgd[tensorflow]'") from None


def _dense(data: Data) -> Data:
    if isinstance(data.x, Sparse):
        raise ConfigError(f"from_keras needs dense samples, but those of {data.name} are sparse; give x.dense()")
    return data
