"""What a caller gives `from_torch` is checked, and tried on a few samples, before it is a problem.

All that is tried is tried on a copy.
"""

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedParameter

from distsgd.data.given import samples_of
from distsgd.errors import ConfigError, check_name, raised, shown, wrong_kind
from distsgd.problem import Problem, Vector
from distsgd.problems.torch.module import Blueprint, Loss, Model, Table, drawing, numbers_of, table_of
from distsgd.samples.dataset import Data
from distsgd.sparse import Sparse

BUFFERS = ("frozen", "batch")
"""Policies for buffers that change in training."""
_SAMPLES = 4
"""Samples of a trial, besides that of the last class."""
_MOST_NAMED = 3
_TYPES = (torch.float32, torch.float64)


def check_samples(data: Any) -> Data:  # noqa: ANN401 # whatever holds samples
    """Return the samples, arrays of any shape."""
    known = samples_of(data)
    if isinstance(known.x, Sparse):
        raise ConfigError(f"from_torch needs dense samples, but those of {known.name} are sparse; give x.dense()")
    return known


def some_samples(data: Data, dtype: np.dtype[Any], device: str) -> Table:
    """Return the samples of a trial."""
    last = int(data.y.argmax()) // math.prod(data.y.shape[1:])
    chosen = [*range(min(_SAMPLES, data.samples)), last]
    x: Any = data.x  # no sparse rows, as `check_samples` says
    return table_of(x[chosen], data.y[chosen], dtype, device)


def check_module(module: Any) -> nn.Module:  # noqa: ANN401 # perhaps no module
    """Return a copy of the module, which is all that is worked with."""
    if not isinstance(module, nn.Module):
        raise wrong_kind("module", "torch.nn.Linear(64, 10)", module)
    own: nn.Module = _told("module must be one that can be copied", copy.deepcopy, module)
    return own


def check_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name."""
    every = dict(module.named_parameters())
    trained = {name: one for name, one in every.items() if one.requires_grad}
    if not trained:
        found = f"all {len(every)} are frozen; let some have requires_grad=True" if every else "it has none"
        raise ConfigError(f"module must have parameters that are trained, but {found}")
    for name, one in trained.items():
        if isinstance(one, UninitializedParameter):
            raise ConfigError(f"module must know its shapes, but {name} does not yet; call the module on a batch once")
        if one.dtype not in _TYPES or one.layout != torch.strided or one.is_meta:
            found = "without numbers" if one.is_meta else f"{_name(one.layout)} {_name(one.dtype)}"
            advice = "use module.float() or module.double()"
            raise ConfigError(f"parameters must be dense float32 or float64, but {name} is {found}; {advice}")
    kinds = {_name(one.dtype): name for name, one in trained.items()}
    if len(kinds) > 1:
        found = " and ".join(f"{name} is {kind}" for kind, name in kinds.items())
        raise ConfigError(f"parameters must be of one type, but {found}; use module.float() or module.double()")
    return trained


def check_loss(loss: Any) -> Loss:  # noqa: ANN401 # perhaps no loss
    """Return the loss: itself, or that of its name."""
    if isinstance(loss, str):
        every = {name: one for name, one in vars(nn.functional).items() if _is_loss(name, one)}
        check_name("loss", loss, every)
        found: Loss = every[loss]
        return found
    return check_function("loss", loss, "'cross_entropy'")


def _is_loss(name: str, function: object) -> bool:
    is_public = inspect.isfunction(function) and not name.startswith("_")
    return is_public and "reduction" in inspect.signature(function).parameters  # type: ignore[arg-type] # a function


def check_function(name: str, function: Any, example: str) -> Loss:  # noqa: ANN401 # perhaps no function
    """Return a function of outputs and targets."""
    if not callable(function) or inspect.isclass(function):
        raise wrong_kind(name, example, function)
    return function  # type: ignore[no-any-return] # whatever can be called


def check_device(device: object) -> str:
    """Return the name of a device that is there."""
    try:
        return str(torch.empty(0, device=str(device)).device)
    except (AssertionError, RuntimeError) as error:
        why = str(error).partition("\n")[0].partition(". ")[0]
        raise ConfigError(f"device must be one that is there, such as 'cpu', not {shown(str(device))}: {why}") from None


class Trial(NamedTuple):
    """A model at its starting point, and a few samples."""

    model: Model
    point: Vector
    samples: Table

    @classmethod
    def of(cls, blueprint: Blueprint, origin: Vector, samples: Table) -> "Trial":
        """Return a trial of what `blueprint` describes."""
        model = Model(blueprint)
        model.move(origin)
        return cls(model, origin, samples)

    def value(self, n_times: int = 1) -> Tensor:
        """Return the loss of the samples, each so many times, if it is one number."""
        x, y = (torch.cat([one] * n_times) for one in self.samples)
        outputs = _told(f"module must take samples {_described(x)}", self.model.module, x)
        what = f"loss must take outputs {_described(outputs)} and targets {_described(y)}"
        value = _told(what, self.model.loss, outputs, y)
        if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
            found = f"returned {_described(value)}"
            raise ConfigError(f"loss must be one number, the mean over the batch, but {found}; use reduction='mean'")
        return value

    def changing(self) -> dict[str, nn.Module]:
        """Return the modules with buffers that training changes, by name."""
        module = self.model.module
        before = {name: numbers_of(one).tobytes() for name, one in module.named_buffers()}
        with drawing(self.model.generators, 0):
            self.value()
        changed = [name for name, one in module.named_buffers() if before.get(name) != numbers_of(one).tobytes()]
        owners = dict.fromkeys(name.rpartition(".")[0] for name in changed)
        return {name: module.get_submodule(name) for name in owners}

    def is_random(self, buffers: str | None, metric: Loss) -> bool:
        """Return whether training draws random numbers; refuse what cannot be used."""
        changing = self.changing()
        if changing:
            what = f"buffers={buffers!r} must keep buffers as they are"
            raise ConfigError(f"{what}, but a step changes those of {_listed(changing)}")
        with drawing(self.model.generators, 0):
            before = [one.get_state() for one in self.model.generators]
            _told("loss must be differentiable", self.model.gradient_into, *self.samples, self.point.copy())
            after = [one.get_state() for one in self.model.generators]
        with self.model.evaluated(self.samples):
            self._check_mean()
            outputs = self.model.module(self.samples.x)
            _told("metric must return one number", lambda: float(metric(outputs, self.samples.y)))
        # a draw moves the generator on
        return not all(map(torch.equal, before, after))

    def _check_mean(self) -> None:
        """Refuse a sum over the batch: repeated twice, a batch has the same mean."""
        once, twice = (float(self.value(n_times)) for n_times in (1, 2))
        if math.isfinite(once) and not math.isclose(once, twice, rel_tol=1e-3, abs_tol=1e-6):
            is_sum = math.isclose(2.0 * once, twice, rel_tol=1e-3)
            advice = "use reduction='mean'" if is_sum else "is the first axis the batch everywhere, as by batch_first?"
            found = f"repeated twice, the same batch has {twice:.4g} instead of {once:.4g}"
            raise ConfigError(f"loss must be the mean over the batch, but {found}; {advice}")


def with_policy(blueprint: Blueprint, changing: Mapping[str, nn.Module], buffers: str | None) -> Blueprint:
    """Return a blueprint whose buffers do not change in training, as a policy says."""
    if buffers is None and changing:
        raise ConfigError(
            f"module changes buffers in training, which no worker would average: {_listed(changing)}; say"
            " buffers='frozen' for statistics as given, or buffers='batch' for those of the batch, and in evaluation"
            " those of the training set"
        )
    if buffers is not None:
        check_name("policy for buffers", buffers, BUFFERS)
    if buffers != "batch":
        return blueprint._replace(frozen=tuple(changing))
    others = {name: one for name, one in changing.items() if not isinstance(one, _BatchNorm)}
    if others:
        raise ConfigError(f"buffers='batch' is for batch normalisation, not for {_listed(others)}; use 'frozen'")
    for name in changing:
        one: Any = blueprint.module.get_submodule(name)
        one.momentum, one.track_running_stats = None, False  # a mean over the training set, when it is asked for
    return blueprint._replace(normalised=tuple(changing))


def check_vmap(problem: Problem) -> None:
    """Refuse a module whose gradients cannot be evaluated together."""
    if problem.is_random:
        raise ConfigError("vmap=True must not draw random numbers, for a draw would depend on the others; leave it out")
    points = np.stack([problem.start(0)] * problem.at_once)
    batches = np.zeros((len(points), 2), np.int64)
    _told("vmap=True needs a module that torch.func.vmap can take", problem.gradients, points, batches)


def _listed(modules: Mapping[str, nn.Module]) -> str:
    names = [f"{name or 'itself'} ({type(one).__name__})" for name, one in modules.items()]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _told(what: str, function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401 # the user's own code
    try:
        return function(*arguments)
    except Exception as error:
        raise ConfigError(f"{what}, but raised {raised(error)}") from error


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return shown(value)
    return f"{_name(value.dtype)}[{', '.join(map(str, value.shape))}]"


def _name(value: object) -> str:
    return str(value).removeprefix("torch.")
