"""What problems of frameworks have in common: a model as it was given, where every run starts."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from distsgd.problem import Layer, Problem, Settings, Vector
from distsgd.samples.dataset import Data


@dataclass(frozen=True, eq=False, repr=False)
class ModelProblem(Problem):
    """A model on data; a framework adds the loss, the gradient in place, and what it evaluates."""

    name: str = field()
    data: Data = field()
    is_random: bool = field()
    origin: Vector
    """The parameters that the model was given with."""
    blocks: tuple[Layer, ...]
    """Those that are trained, by the names that the framework has for them."""
    identity: Settings
    """What identifies the problem."""

    @property
    def dimension(self) -> int:
        """Number of parameters that are trained."""
        return self.origin.size

    @property
    def samples(self) -> int:
        """Number of training samples."""
        return self.data.samples

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the model's parameters."""
        return self.origin.dtype

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Names, shapes and places of the parameters."""
        return self.blocks

    @property
    def settings(self) -> Settings:
        """Data, digests of the code and of the starting point, and what else decides the bits."""
        return self.identity

    def start(self, seed: int) -> Vector:  # noqa: ARG002 # the caller has chosen the start
        """Return the parameters that the model was given with, float[d]."""
        return self.origin.copy()

    def gradient(self, x: ArrayLike, batch: ArrayLike, key: int = 0) -> Vector:
        """Return the mean gradient of the samples `batch`, int[b], float[d]."""
        out = np.empty_like(self.origin)
        self.gradient_into(np.ascontiguousarray(x, self.dtype), np.asarray(batch, np.uint32), out, key)
        return out
