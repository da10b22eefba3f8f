"""What is checked of a Keras model, its loss and its data, before it is a problem."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.errors import ConfigError
from distsgd.problem import Vector
from distsgd.problems.keras.backend import Tensor
from distsgd.problems.keras.model import KerasObject
from distsgd.problems.keras.work import Work
from distsgd.samples.dataset import shape_of

POLICIES = ("frozen", "batch")
"""What may become of statistics that training changes."""
_TRIED = 4
"""Samples that are tried."""
_MOST_TEXT = 300


def check_variables(work: Work) -> None:
    """Raise a `ConfigError` unless there are trainable variables, all of one type that we have."""
    kinds = sorted({one.dtype for one in work.trainable})
    if not kinds:
        raise ConfigError("model must have trainable variables, but has none; add a layer, or set trainable=True")
    if len(kinds) > 1 or kinds[0] not in {"float32", "float64"}:
        what = f"model must have trainable variables of one type, float32 or float64, not {', '.join(kinds)}"
        raise ConfigError(f"{what}; set keras.config.set_floatx, or the dtype of its layers")


def check_model(work: Work, origin: Vector, buffers: str | None) -> None:
    """Raise a `ConfigError` unless model, loss and the first samples fit together."""
    inputs, targets = work.samples(slice(0, _TRIED))
    given = f"the first samples of data, {shape_of(inputs)}"
    outputs, _, scope = _called(
        f"model refuses {given}", lambda: work.forward(origin, work.states(0), inputs, training=True)
    )
    if not hasattr(outputs, "shape"):
        raise ConfigError(f"model must have one output, not {len(outputs)}; make a model of the output to train")
    changed = scope.state_mapping.keys()
    if changed - {id(one) for one in work.model.variables}:
        what = "model draws random numbers that do not depend on the seed of a run"
        raise ConfigError(f"{what}; give each layer that draws a keras.random.SeedGenerator of its own")
    check_buffers(work, [one for one in work.model.non_trainable_weights if id(one) in changed], buffers)
    _check_targets(work, targets, outputs)
    _check_loss(work, targets, outputs)


def check_buffers(work: Work, changed: list[KerasObject], buffers: str | None) -> None:
    """Raise a `ConfigError` that names layers, if training changes variables without a policy."""
    own = [id(one) for one in work.moments]
    left = [one for one in changed if id(one) not in own]
    if buffers == "frozen" or not left:
        return
    names = ", ".join(sorted({one.path.rpartition("/")[0] for one in left}))
    if buffers == "batch":
        what = "can be taken from batches of BatchNormalization only, but training changes other variables too"
        raise ConfigError(f"buffers='batch': statistics {what}, of {names}; say buffers='frozen'")
    what = "model has layers whose statistics change in training, which workers would not share"
    raise ConfigError(
        f"{what}: {names}; say buffers='batch' (those of the batch in training, of the training set in"
        " evaluation) or buffers='frozen' (those it has)"
    )


def _check_targets(work: Work, targets: NDArray[Any], outputs: Tensor) -> None:
    """Refuse numbers and classes without an output, which losses broadcast or ignore."""
    shape = tuple(outputs.shape)
    if targets.dtype.kind == "f" and np.any(targets % 1.0) and _inner(targets.shape) != _inner(shape):
        what = f"targets {shape_of(targets)} do not fit outputs {_described(outputs)}"
        raise ConfigError(f"{what}: numbers need a model with an output for each")
    if targets.dtype.kind not in "iu" or targets.shape != shape[:-1] or shape[-1] < 2:
        return
    wrong = work.targets[(work.targets < 0) | (work.targets >= shape[-1])]
    wrong = wrong[wrong != getattr(work.loss, "ignore_class", None)]
    if wrong.size:
        raise ConfigError(
            f"data must have labels from 0 to {shape[-1] - 1}, one per output of the model, not {wrong[0]}"
        )


def _inner(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:-1] if shape[-1] == 1 else shape


def _described(outputs: Tensor) -> str:
    import keras  # noqa: PLC0415 # optional

    return f"{keras.backend.standardize_dtype(outputs.dtype)}{list(outputs.shape)}"


def _check_loss(work: Work, targets: NDArray[Any], outputs: Tensor) -> None:
    """Refuse a loss that does not fit, or that grows with the batch."""
    what = f"loss refuses outputs {_described(outputs)} and targets {shape_of(targets)}"
    twice = np.concatenate([targets, targets]), work.ops.concatenate([outputs, outputs])
    once = float(_called(what, lambda: work.mean_loss(targets, outputs)))
    again = float(_called(what, lambda: work.mean_loss(*twice)))
    if abs(again - once) > 1e-3 * abs(once):
        grows = f"grows from {once:.4g} to {again:.4g} when a batch is repeated"
        raise ConfigError(f"loss must be the mean over the batch, but {grows}; is it a sum?")


def _called(what: str, function: Callable[[], Any]) -> Any:  # noqa: ANN401 # what it returns
    """Return what a function of Keras or of the user does, or raise its error as a sentence."""
    try:
        return function()
    except Exception as error:
        text = " ".join(str(error).partition("Arguments received")[0].split())
        raise ConfigError(f"{what}: {type(error).__name__}: {text[:_MOST_TEXT]}") from error
