"""A PyTorch module as a function of one vector of parameters.

1. The module of the caller is copied, and the copy has no numbers of its own that are trained: it
   computes at the vector that it is told, in the tables of one process.
2. All of it runs on one thread, so that the bits are those of a worker, whatever the machine has.
3. The generators of PyTorch are left as they were found.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
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
        """Return the samples of a batch, int[b], and their labels."""
        # faster than an index in brackets
        chosen = torch.from_numpy(batch.astype(np.int64)).to(self.x.device)
        return self.x.index_select(0, chosen), self.y.index_select(0, chosen)

    def batches(self, batches: NDArray[Any]) -> tuple[Tensor, Tensor]:
        """Return the samples of many batches, int[m, b], and their labels."""
        x, y = self.batch(batches.reshape(-1))
        return x.view(*batches.shape, *x.shape[1:]), y.view(*batches.shape, *y.shape[1:])

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
    return torch.from_numpy(array if array.flags.carray else array.copy())


def numbers_of(tensor: Tensor) -> Vector:
    """Return the numbers of a tensor, which may be on the device, as a vector."""
    vector: Vector = tensor.detach().cpu().numpy().reshape(-1)
    return vector


class Model:
    """A module that computes at the vector it was last moved to.

    Where it is large, its parameters are views of that vector, and gradients are joined where they
    are wanted. Otherwise vectors are copied in and out, which takes less time.
    """

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
        self._is_large = self._can_view()
        like = next(iter(self._trained.values()))
        self._point, self._slope = (like.new_empty(blueprint.layers[-1].place.stop) for _ in range(2))
        self._read_from(self._point)
        if not self._is_large:
            for one, part in zip(self._trained.values(), self._parts(self._slope), strict=True):
                one.grad = part
        self.train()

    def train(self) -> None:
        """Go back into training, where modules that are frozen are evaluated all the same."""
        self.module.train()
        for one in self._frozen:
            one.eval()

    def move(self, x: Vector) -> None:
        """Compute at `x`, float[d], from now on."""
        vector, is_aligned = _tensor(x), x.ctypes.data % _ALIGNED_BYTES == 0
        if not (self._is_large and is_aligned):
            vector = self._point.copy_(vector)
        if self._is_large:
            self._read_from(vector)

    def gradient_into(self, x: Tensor, y: Tensor, out: Vector) -> None:
        """Write the gradient of the loss of these samples into `out`, float[d]."""
        value, into = self.loss(self.module(x), y), torch.from_numpy(out)
        if self._is_large:
            slopes = torch.autograd.grad(value, list(self._trained.values()), materialize_grads=True)
            torch.cat([slope.to_dense().reshape(-1) for slope in slopes], out=into)
        else:
            self._slope.zero_()
            value.backward()
            into.copy_(self._slope)

    def gradients_into(self, xs: Vector, x: Tensor, y: Tensor, out: Vector) -> None:
        """Write m gradients, each at its own point and samples, into `out`, float[m, d]."""

        def value(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            found: Tensor = self.loss(torch.func.functional_call(self.module, parameters, (x,)), y)
            return found

        parts = dict(zip(self._trained, self._parts(_tensor(xs).to(self._device)), strict=True))
        slopes = torch.func.vmap(torch.func.grad(value))(parts, x, y)
        torch.from_numpy(out).copy_(torch.cat([slope.reshape(len(xs), -1) for slope in slopes.values()], 1))

    def _parts(self, vectors: Tensor) -> list[Tensor]:
        """Return views of the parameters in a vector, or in many."""
        return [vectors[..., one.place].view(*vectors.shape[:-1], *one.shape) for one in self._layers]

    def _read_from(self, vector: Tensor) -> None:
        for one, part in zip(self._trained.values(), self._parts(vector), strict=True):
            one.data = part

    def _can_view(self) -> bool:
        itemsize = next(iter(self._trained.values())).itemsize
        is_aligned = all(one.first * itemsize % _ALIGNED_BYTES == 0 for one in self._layers)
        return self._device.type == "cpu" and is_aligned and self._layers[-1].place.stop >= _VIEWED

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
        one.manual_seed(key)  # that of a processor counts 32 bits: of many keys, some draw the same
    try:
        yield
    finally:
        for one, state in zip(generators, states, strict=True):
            one.set_state(state)
