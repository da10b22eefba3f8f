"""What JAX compiles of a model.

1. What is compiled takes one flat vector, so that it crosses between NumPy and JAX in one piece.
   Samples stay on the device: a batch crosses as their indices.
2. Gradients that are asked for together are one call: of a loop over the program of a single one,
   or of a program of its own, by `vmap`.
"""

import inspect
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distsgd.problems.lazy import framework
from distsgd.samples.dataset import Data

Mean: TypeAlias = Callable[..., Any]
"""A function of (parameters, x, y), perhaps of a key too, that returns a mean over the batch."""
Array: TypeAlias = Any
"""An array of JAX, or of NumPy where it is about to be one."""
Tree: TypeAlias = Any
"""A tree of such arrays."""
Program: TypeAlias = Callable[..., Array]
"""What JAX has compiled: a function of a row (point, batch, perhaps a key), and of all samples."""


class Model(NamedTuple):
    """What the user gave, as far as it is compiled."""

    loss: Mean
    metric: Mean
    tree: Tree
    vmap: bool

    @property
    def is_random(self) -> bool:
        """Whether the loss takes a key."""
        return "key" in inspect.signature(self.loss).parameters


class Programs(NamedTuple):
    """What JAX has compiled, and the samples on its device."""

    gradient: Program
    gradients: Program
    loss: Program
    metric: Program
    train: tuple[Array, Array]
    test: tuple[Array, Array]


def compiled(model: Model, threads: int, data: Data) -> Programs:
    """Compile what is called; in each process, at its first use.

    It has as many threads as the program in which the problem was made, since bits depend on them.
    """
    if "jax" not in sys.modules:  # in a worker, whose launcher asks libraries for one
        os.environ["NPROC"] = str(threads)
    jax, flatten = framework("jax", "jax"), framework("jax.flatten_util", "jax")
    is_double = any(leaf.dtype == np.float64 for leaf in jax.tree_util.tree_leaves(model.tree))
    if is_double and not jax.config.jax_enable_x64:  # as where the problem was made
        jax.config.update("jax_enable_x64", True)
    unravel = flatten.ravel_pytree(model.tree)[1]

    def loss(row: Tree, x: Array, y: Array) -> Array:
        point, batch, *key = row
        given = {"key": jax.random.wrap_key_data(key[0]) if key else None} if model.is_random else {}
        return model.loss(unravel(point), x[batch], y[batch], **given)

    def metric(row: Tree, x: Array, y: Array) -> Array:
        point, batch = row
        return jax.numpy.asarray(model.metric(unravel(point), x[batch], y[batch]))

    def gradient(row: Tree, x: Array, y: Array) -> Array:
        return jax.grad(lambda point: loss([point, *row[1:]], x, y))(row[0])

    def gradients(rows: Tree, n_rows: int, x: Array, y: Array) -> Array:
        def fill(number: Array, out: Array) -> Array:
            return out.at[number].set(gradient([row[number] for row in rows], x, y))

        if model.vmap:
            return jax.vmap(lambda *row: gradient(row, x, y))(*rows)
        return jax.lax.fori_loop(0, n_rows, fill, jax.numpy.zeros_like(rows[0]))  # rule 2

    samples = (tuple(map(jax.numpy.asarray, pair)) for pair in ((data.x, data.y), (data.test_x, data.test_y)))
    return Programs(*map(jax.jit, (gradient, gradients, loss, metric)), *samples)


def words(keys: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint32]:
    """Return keys as JAX has them, uint32[..., 2], the high word first."""
    return np.stack([keys >> np.uint64(32), keys & np.uint64(2**32 - 1)], axis=-1).astype(np.uint32)
