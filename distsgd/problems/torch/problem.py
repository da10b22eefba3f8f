"""The problem that `distsgd.problems.from_torch` makes of a module."""

import contextlib
import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from distsgd.problem import Evaluation, Exactness, Vector, check_point, data_settings, layers_of
from distsgd.problems.model import ModelProblem
from distsgd.problems.torch.checks import (
    Trial,
    check_device,
    check_function,
    check_loss,
    check_module,
    check_parameters,
    check_samples,
    check_vmap,
    some_samples,
    with_policy,
)
from distsgd.problems.torch.module import Blueprint, Loss, Model, Table, drawing, numbers_of, on_one_thread, table_of
from distsgd.rules.identity import digest, identified

_LARGE = 100_000
"""Parameters from which on vmapped gradients are slower than those of one at a time."""
_NUMBERS = ("_parameters", "_buffers", "_modules")
"""What of a module's attributes is no code: it is known by its numbers and names."""
_MANY, _FEW = 64, 4
"""Gradients that are vmapped together, and from how many on that is faster."""


@dataclass(frozen=True, eq=False)
class TorchProblem(ModelProblem):
    """A PyTorch module on data; made by `from_torch`."""

    blueprint: Blueprint
    metric: Loss
    is_vmapped: bool

    @property
    def exactness(self) -> Exactness:
        """One at a time, on one thread of a processor, gradients have the same bits."""
        return "bits" if self.blueprint.device == "cpu" and not self.is_vmapped else "close"

    @property
    def at_once(self) -> int:
        """Small gradients are evaluated together if they are vmapped."""
        return _MANY if self.is_vmapped and self.dimension < _LARGE else 1

    def loss(self, x: ArrayLike) -> float:
        """Return the mean loss of the training samples, in evaluation mode."""
        with self._evaluated(x):
            return self._judged(self._tables[0])[0]

    def evaluate(self, x: ArrayLike) -> Evaluation:
        """Return training loss, test loss and the metric of the test samples."""
        with self._evaluated(x):
            return Evaluation(self._judged(self._tables[0])[0], *self._judged(self._tables[1]))

    def gradient_into(self, x: Vector, batch: Any, out: Vector, key: int = 0) -> None:  # noqa: ANN401 # int[b]
        """Write the gradient at `x` into `out`, both float[d]."""
        draws = drawing(self._model.generators, key) if self.is_random else contextlib.nullcontext()
        with on_one_thread(), draws:
            self._model.move(x)
            self._model.gradient_into(*self._tables[0].batch(batch), out)

    def gradients(self, xs: ArrayLike, batches: ArrayLike, keys: Any = None) -> Vector:  # noqa: ANN401 # uint64[m]
        """Return m gradients, float[m, d], each at its own point; vmapped where that is faster."""
        points, chosen = np.asarray(xs, self.dtype), np.asarray(batches)
        if self.at_once == 1 or len(points) < _FEW:
            return super().gradients(points, chosen, keys)
        out = np.empty(points.shape, self.dtype)
        with on_one_thread():
            for first in range(0, len(points), _MANY):
                part = slice(first, first + _MANY)
                self._model.gradients_into(points[part], *self._tables[0].batches(chosen[part]), out[part])
        return out

    @contextlib.contextmanager
    def _evaluated(self, x: ArrayLike) -> Any:  # noqa: ANN401 # a context
        self._model.move(check_point(x, self.dimension, self.dtype))
        with on_one_thread(), self._model.evaluated(self._tables[0]):
            yield

    def _judged(self, table: Table) -> tuple[float, float]:
        """Return the mean loss and the mean metric of the samples, NaN if there are none."""
        if not len(table.x):
            return math.nan, math.nan
        total = np.zeros(2)
        for x, y in table.chunks():
            outputs = self._model.module(x)
            total += len(x) * np.array([float(self._model.loss(outputs, y)), float(self.metric(outputs, y))])
        loss, metric = (total / len(table.x)).tolist()
        return loss, math.nan if math.isnan(loss) else metric

    @cached_property
    def _model(self) -> Model:
        return Model(self.blueprint)

    @cached_property
    def _tables(self) -> tuple[Table, Table]:
        data, kind = self.data, (self.dtype, self.blueprint.device)
        return table_of(data.x, data.y, *kind), table_of(data.test_x, data.test_y, *kind)

    def __getstate__(self) -> dict[str, Any]:
        """Return all but what each process makes for itself."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


def accuracy(outputs: Any, targets: Tensor) -> float:  # noqa: ANN401 # whatever the module returns
    """Return the share of samples whose class has the largest output, NaN without classes."""
    is_classified = isinstance(outputs, Tensor) and outputs.ndim == 2 and targets.ndim == 1
    if not is_classified or targets.is_floating_point():
        return math.nan
    return float((outputs.argmax(1) == targets).double().mean())


def make_problem(
    module: Any,  # noqa: ANN401 # what is given is checked here
    data: Any,  # noqa: ANN401 # as above
    loss: Any,  # noqa: ANN401 # as above
    metric: Any,  # noqa: ANN401 # as above
    *,
    vmap: bool,
    buffers: str | None,
    device: str | None,
) -> TorchProblem:
    """Return the problem that `distsgd.problems.from_torch` describes, or raise a `ConfigError`."""
    own, known = check_module(module), check_samples(data)
    judge = accuracy if metric is None else check_function("metric", metric, "torch.nn.functional.mse_loss")
    trained = check_parameters(own)
    place = check_device(next(iter(trained.values())).device if device is None else device)
    origin = np.concatenate([numbers_of(one) for one in trained.values()])
    layers = layers_of({name: tuple(one.shape) for name, one in trained.items()})
    for one in trained.values():
        one.data = one.new_empty(0)
    # a process that forks must not begin to use a GPU, as it would for what it unpickles
    blueprint = Blueprint(own.cpu(), check_loss(loss), layers, place, (), ())
    samples = some_samples(known, origin.dtype, place)
    with on_one_thread():
        blueprint = with_policy(blueprint, Trial.of(blueprint, origin, samples).changing(), buffers)
        is_random = Trial.of(blueprint, origin, samples).is_random(buffers, judge)
    settings = {
        "name": type(module).__name__,
        "data": data_settings(known),
        "start": digest([origin, *map(numbers_of, (*own.parameters(), *own.buffers()))]),
        "buffers": buffers,
        "vmap": vmap,
        "device": place,
        "torch": str(torch.__version__),
        **identified("the module, its loss or its metric", (_code(own), layers, blueprint.loss, judge)),
    }
    problem = TorchProblem(type(module).__name__, known, is_random, origin, layers, settings, blueprint, judge, vmap)
    if vmap:
        check_vmap(problem)
    return problem


def _code(module: nn.Module) -> list[Any]:
    """Return what a module does, without its numbers."""
    return [
        (name, type(one), {key: value for key, value in vars(one).items() if key not in _NUMBERS})
        for name, one in module.train().named_modules(remove_duplicate=False)
    ]
