"""A PyTorch module as a function of one vector of parameters.

1. The module of the caller is copied, and the copy has no numbers of its own that are trained: it
   computes at the vector that it is told, in the tables of one process.
2. All of it runs on one thread, so that the bits are those of a worker, whatever the machine has.
3. The generators of PyTorch are left as they were found.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distsgd.problem import Layer, Vector

Loss: TypeAlias = Callable[[Any, Tensor], Any]
"""Of outputs and targets."""

_VIEWED = 100_000
"""Parameters from which on a copy of the vector takes longer than views of it."""
_ALIGNED_BYTES = 16
"""MKL's products of a matrix and a vector have other bits where the matrix stands in between."""
_CHUNK = 256
"""Samples that are evaluated together."""


class Blueprint(NamedTuple):
    """What a process makes a model of."""

    module: nn.Module
    """Its trained parameters are empty (rule 1)."""
    loss: Loss
    layers: tuple[Layer, ...]
    device: str
    frozen: tuple[str, ...]
    """Modules that are never in training."""
    normalised: tuple[str, ...]
    """Modules that take the statistics of a batch in training, of the training set otherwise."""


class Table(NamedTuple):
    """Samples and their labels, on the device."""

    x: Tensor
    y: Tensor

    def batch(self, batch: NDArray[Any]) -> tuple[Tensor, Tensor]:
        """Return the samples of a batch, int[b], or of many, int[m, b], and their labels."""
        # faster than an index in brackets
        chosen = torch.from_numpy(batch.astype(np.int64).reshape(-1)).to(self.x.device)
        x, y = (one.index_select(0, chosen).view(*batch.shape, *one.shape[1:]) for one in self)
        return x, y

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all samples in chunks of nearly one size, so that each counts alike."""
        n_chunks = -(-len(self.x) // _CHUNK)
        return zip(self.x.tensor_split(n_chunks), self.y.tensor_split(n_chunks), strict=True)


def table_of(x: Any, y: NDArray[Any], dtype: np.dtype[Any], device: str) -> Table:  # noqa: ANN401 # an array
    """Return samples with floats of the module's type, and whole labels as losses take them."""
    labels = y.astype(np.int64, copy=False) if y.dtype.kind in "iu" else y
    arrays = (one.astype(dtype, copy=False) if one.dtype.kind == "f" else one for one in (x, labels))
    return Table(*(_tensor(one).to(device) for one in arrays))


def _tensor(array: NDArray[Any]) -> Tensor:
    """Return a tensor on the memory of an array, or of a copy if PyTorch may not write there."""
    return torch.from_numpy(np.require(array, requirements=("C", "W")))


class Model:
    """A module that computes at the vector it was last moved to."""

    def __init__(self, blueprint: Blueprint) -> None:
        self.module = copy.deepcopy(blueprint.module).to(blueprint.device)
        self._frozen = [self.module.get_submodule(name) for name in blueprint.frozen]
        self._normalised: list[Any] = [self.module.get_submodule(name) for name in blueprint.normalised]
        self._layers, self._device = blueprint.layers, torch.device(blueprint.device)
        self._trained = {name: one for name, one in self.module.named_parameters() if one.requires_grad}
        self.loss = copy.deepcopy(blueprint.loss)
        if isinstance(self.loss, nn.Module):
            self.loss.to(self._device)
        self.generators = generators_of(self._device)
        self._blocks = self._own_blocks()
        self.train()

    @property
    def names(self) -> list[str]:
        """Names of the parameters that are trained."""
        return list(self._trained)

    def train(self) -> None:
        """Go back into training, where modules that are frozen are evaluated all the same."""
        self.module.train()
        for one in self._frozen:
            one.eval()

    def move(self, x: Vector) -> None:
        """Compute at `x`, float[d], from now on."""
        if self._blocks:
            for block, layer in zip(self._blocks, self._layers, strict=True):
                block[...] = x[layer.place]
        else:
            vector = _tensor(x if x.ctypes.data % _ALIGNED_BYTES == 0 else x.copy()).to(self._device)
            for one, layer in zip(self._trained.values(), self._layers, strict=True):
                one.data = vector[layer.place].view(layer.shape)

    def slopes(self, x: Tensor, y: Tensor) -> Sequence[Tensor]:
        """Return the gradient of the loss of these samples, one tensor per parameter."""
        value = self.loss(self.module(x), y)
        return torch.autograd.grad(value, list(self._trained.values()), materialize_grads=True)

    def many_slopes(self, xs: Vector, x: Tensor, y: Tensor) -> Sequence[Tensor]:
        """Return m gradients, each at its own point, float[d], and of its own samples."""

        def value(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            found: Tensor = self.loss(torch.func.functional_call(self.module, parameters, (x,)), y)
            return found

        points = _tensor(xs).to(self._device)
        parts = {
            name: points[:, layer.place].view(-1, *layer.shape)
            for name, layer in zip(self._trained, self._layers, strict=True)
        }
        return list(torch.func.vmap(torch.func.grad(value))(parts, x, y).values())

    @contextlib.contextmanager
    def evaluated(self, samples: Table) -> Iterator[None]:
        """Evaluate instead of train, with the statistics of these samples where they are needed."""
        self.module.eval()
        try:
            with torch.no_grad():
                if self._normalised:
                    self._measure(samples)
                yield
        finally:
            self.train()

    def _measure(self, samples: Table) -> None:
        for one in self._normalised:
            one.track_running_stats = True
            one.reset_running_stats()
            one.train()
        for x, _ in samples.chunks():
            self.module(x)
        for one in self._normalised:
            one.track_running_stats = False
            one.eval()

    def _own_blocks(self) -> list[NDArray[Any]]:
        """Return own memory of the parameters, as vectors; nothing if they are views of a point."""
        itemsize = next(iter(self._trained.values())).itemsize
        is_aligned = all(layer.first * itemsize % _ALIGNED_BYTES == 0 for layer in self._layers)
        if self._device.type != "cpu" or (is_aligned and self._layers[-1].place.stop >= _VIEWED):
            return []
        for one, layer in zip(self._trained.values(), self._layers, strict=True):
            one.data = one.new_empty(layer.shape)
        return [one.detach().numpy().reshape(-1) for one in self._trained.values()]


def join(slopes: Sequence[Tensor], out: Vector) -> None:
    """Write gradients into `out`, float[d] or float[m, d], the parameters one behind the other."""
    parts, into = [slope.reshape(*out.shape[:-1], -1) for slope in slopes], torch.from_numpy(out)
    if parts[0].device == into.device:
        torch.cat(parts, -1, out=into)
    else:
        into.copy_(torch.cat(parts, -1))


def generators_of(device: torch.device) -> list[torch.Generator]:
    """Return what modules on this device draw from."""
    if device.type != "cuda":
        return [torch.default_generator]
    return [torch.default_generator, torch.cuda.default_generators[device.index or 0]]


@contextlib.contextmanager
def on_one_thread() -> Iterator[None]:
    """Have PyTorch compute on one thread (rule 2)."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


@contextlib.contextmanager
def drawing(generators: list[torch.Generator], key: int) -> Iterator[None]:
    """Have random layers draw from a key (rule 3)."""
    states = [one.get_state() for one in generators]
    for one in generators:
        one.manual_seed(key)
    try:
        yield
    finally:
        for one, state in zip(generators, states, strict=True):
            one.set_state(state)
