"""Losses and metrics as Keras takes them: names, functions and objects."""

import functools
import math
from collections.abc import Callable
from types import ModuleType

from distsgd.errors import ConfigError, unknown_name, wrong_kind
from distsgd.problems.keras.backend import Tensor
from distsgd.problems.keras.model import KerasObject
from distsgd.samples.dataset import Data


def loss_of(loss: KerasObject) -> Callable[[Tensor, Tensor], Tensor]:
    """Return ``loss(targets, outputs)``, or raise a `ConfigError` unless it is one, or a name."""
    import keras  # noqa: PLC0415 # optional

    found: Callable[[Tensor, Tensor], Tensor] = _known(keras.losses, "loss", loss)
    reduction = getattr(found, "reduction", "mean")
    if reduction in {"sum", "none", None}:
        what = f"loss must be the mean over the batch, not have reduction={reduction!r}"
        raise ConfigError(f"{what}; make it with reduction='sum_over_batch_size'")
    return found


def metric_of(metric: KerasObject, data: Data) -> Callable[[], KerasObject] | None:
    """Return what makes a Keras metric, or raise a `ConfigError`.

    A function of (targets, outputs) becomes the mean of what it returns. None is the share of right
    classes, or stays None where targets are no classes.
    """
    import keras  # noqa: PLC0415 # optional

    if metric is None:
        return functools.partial(keras.metrics.MeanMetricWrapper, right_classes) if data.has_classes else None
    if isinstance(metric, str) and metric in {"accuracy", "acc"}:
        which = "'sparse_categorical_accuracy', 'categorical_accuracy' or 'binary_accuracy'"
        raise ConfigError(f"metric must say which accuracy: {which}, not {metric!r}")
    found = _known(keras.metrics, "metric", metric)
    if isinstance(found, keras.metrics.Metric):
        return functools.partial(type(found).from_config, _config(found))
    return functools.partial(keras.metrics.MeanMetricWrapper, found)


def right_classes(targets: Tensor, outputs: Tensor) -> Tensor:
    """Return for each sample whether its class is right; NaN without an output per class."""
    import keras  # noqa: PLC0415 # optional

    if len(outputs.shape) != 2 or outputs.shape[1] < 2:
        return keras.ops.full(len(targets), math.nan)
    return keras.ops.equal(keras.ops.argmax(outputs, axis=1), keras.ops.cast(targets, "int32"))


def identity_of(loss: KerasObject) -> KerasObject:
    """Return what a loss does, for a digest."""
    if not hasattr(loss, "get_config"):
        return loss
    return type(loss), _config(loss), getattr(loss, "fn", None)


def _config(part: KerasObject) -> dict[str, KerasObject]:
    """Return a config without the name, which Keras has numbered."""
    return {name: value for name, value in part.get_config().items() if name != "name"}


def _known(module: ModuleType, kind: str, given: KerasObject) -> KerasObject:
    """Return what Keras finds by a name, or what was given if it can be called."""
    try:
        found = module.get(given)
    except (TypeError, ValueError):
        found = None
    if found is not None:
        return found
    if isinstance(given, str):
        raise unknown_name(f"{kind} of Keras", given, (name for name in dir(module) if not name.startswith("_")))
    raise wrong_kind(kind, "'mean_squared_error'", given)
