"""Problems of JAX: a loss over a tree of parameters, its gradients as vectors.

1. What is compiled takes one flat vector, so that it crosses between NumPy and JAX in one piece.
   Samples stay on the device: a batch crosses as their indices.
2. Gradients that are asked for together are one call of a loop over the program of a single one,
   which has the bits of single calls; or, with `vmap`, one call of a program of its own.
3. Calls have few sizes, since each is compiled: the largest first, single ones last.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distsgd.data.given import samples_of
from distsgd.errors import ConfigError, raised, shown
from distsgd.problem import Batch, Evaluation, Exactness, Layer, Problem, Settings, Vector, data_settings, layers_of
from distsgd.problems.lazy import Lazy, framework
from distsgd.rules.identity import array_digest, identified
from distsgd.samples.dataset import Data, shape_of
from distsgd.sparse import Sparse

Mean: TypeAlias = Callable[..., Any]
"""A function of (parameters, x, y), perhaps of a key too, that returns a mean over the batch."""
Array: TypeAlias = Any
"""An array of JAX, or of NumPy where it is about to be one."""
Tree: TypeAlias = Any
"""A tree of such arrays."""
Program: TypeAlias = Callable[..., Array]
"""What JAX has compiled: a function of a row (point, batch, perhaps a key), and of all samples."""

_SIZES = (64, 8)
"""Gradients of one call (rule 3)."""
_TOGETHER = 320_000
"""Numbers of gradients that are evaluated together: more do not stay in the cache."""
_CHUNK = 512
"""Samples whose losses are evaluated together."""


class _Model(NamedTuple):
    """What the user gave, as far as it is compiled."""

    loss: Mean
    metric: Mean
    tree: Tree
    vmap: bool

    @property
    def is_random(self) -> bool:
        """Whether the loss takes a key."""
        return "key" in inspect.signature(self.loss).parameters


class _Programs(NamedTuple):
    """What JAX has compiled, and the samples on its device."""

    gradient: Program
    gradients: Program
    loss: Program
    metric: Program
    train: tuple[Array, Array]
    test: tuple[Array, Array]


@dataclass(frozen=True, eq=False)
class JaxProblem(Problem):
    """A model of JAX on `data`; made by `from_jax`."""

    name: str = field()
    data: Data = field()
    is_random: bool = field()
    exactness: Exactness = field()
    origin: Vector
    blocks: tuple[Layer, ...]
    n_together: int
    identity: Settings
    lazy: Lazy[_Programs]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the parameters that were given."""
        return self.origin.dtype

    @property
    def dimension(self) -> int:
        """Number of parameters, all layers together."""
        return self.origin.size

    @property
    def samples(self) -> int:
        """Number of training samples."""
        return self.data.samples

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The leaves of the tree, named by their paths, as in ``dense.w``."""
        return self.blocks

    @property
    def at_once(self) -> int:
        """Small gradients are evaluated together, since a call takes as long as one of them."""
        return self.n_together

    @property
    def settings(self) -> Settings:
        """Name, data, layers, starting point, what loss and metric do, and the version of JAX."""
        return self.identity

    @property
    def _programs(self) -> _Programs:
        return self.lazy.value(self.data)

    def start(self, seed: int) -> Vector:  # noqa: ARG002 # the user has drawn them
        """Return the parameters that were given, float[d]."""
        return self.origin.copy()

    def loss(self, x: ArrayLike) -> float:
        """Return the mean loss of the training samples."""
        return self._mean(self._programs.loss, x, self._programs.train)

    def gradient(self, x: ArrayLike, batch: ArrayLike, key: int = 0) -> Vector:
        """Return the gradient of the samples `batch`, int[b], float[d]; `key` if it is random."""
        out = np.empty_like(self.origin)
        self.gradient_into(np.asarray(x, self.dtype), np.asarray(batch, np.uint32), out, key)
        return out

    def gradient_into(self, x: Vector, batch: Batch, out: Vector, key: int = 0) -> None:
        """Write the gradient at `x` into `out`, both float[d]."""
        row = (x, batch, _words(np.uint64(key))) if self.is_random else (x, batch)
        out[...] = self._programs.gradient(row, *self._programs.train)

    def gradients(self, xs: ArrayLike, batches: ArrayLike, keys: ArrayLike | None = None) -> Vector:
        """Return m gradients, each at its own point, float[m, d]."""
        points, programs = np.asarray(xs, self.dtype), self._programs
        words = (_words(np.asarray(keys, np.uint64)),) if self.is_random else ()
        rows, out = (points, np.asarray(batches, np.uint32), *words), np.empty_like(points)
        for program, part in self._calls(len(points)):
            out[part] = program(tuple(row[part] for row in rows), *programs.train)
        return out

    def _calls(self, n_gradients: int) -> Iterator[tuple[Program, slice | int]]:
        """Yield a program and the rows that it is called with (rule 3)."""
        first = 0
        for size in _SIZES:
            while size <= min(self.n_together, n_gradients - first):
                yield self._programs.gradients, slice(first, first + size)
                first += size
        for row in range(first, n_gradients):
            yield self._programs.gradient, row

    def evaluate(self, x: ArrayLike) -> Evaluation:
        """Return training loss, test loss, and the mean of the metric as accuracy."""
        loss, programs = self.loss(x), self._programs
        if not len(self.data.test_y):
            return Evaluation(loss, math.nan, math.nan)
        return Evaluation(loss, *(self._mean(one, x, programs.test) for one in (programs.loss, programs.metric)))

    def _mean(self, program: Program, x: ArrayLike, samples: tuple[Array, Array]) -> float:
        point, n, total = np.asarray(x, self.dtype), len(samples[1]), 0.0
        for first in range(0, n, _CHUNK):
            part = np.arange(first, min(first + _CHUNK, n), dtype=np.uint32)
            total += part.size * float(program((point, part), *samples))
        return total / n


def from_jax(
    loss: Mean,
    parameters: Tree,
    data: Any,  # noqa: ANN401 # whatever holds numbers
    *,
    metric: Mean | None = None,
    vmap: bool = False,
    name: str = "jax",
) -> JaxProblem:
    r"""Your own model in JAX: its loss, which JAX derives by the parameters and compiles.

    .. math:: F(p) = loss(p, x, y), \quad g_B = \nabla_p loss(p, x_B, y_B)

    over all samples, and over those of a batch B.

    Parameters
    ----------
    loss : callable
        ``loss(parameters, x, y)`` returns a scalar: the mean over samples `x`, [b, ...], with
        labels `y`, [b, ...]. One that draws, for dropout and the like, takes a `key` too: one of
        `jax.random` that depends on (seed, worker, step), and None where the loss is evaluated,
        which is to draw nothing.
    parameters : pytree
        The starting point of every run: arrays of float32, or all of float64 if `jax_enable_x64`
        is set. Without it NumPy's float64 becomes float32, as everywhere in JAX.
    data : Data, tuple or map-style dataset
        Samples of any shape: ``(x, y)`` or ``(x, y, test_x, test_y)`` of arrays or tensors, a
        dataset of pairs ``(x, y)``, or what `distsgd.data` returns.
    metric : callable, optional
        ``metric(parameters, x, y)`` returns a mean over samples. That of the test samples is the
        accuracy of the history.
    vmap : bool, default False
        Evaluate gradients of many workers by `jax.vmap`, up to 320,000 numbers together. That is
        faster for small models, and has other bits than one at a time: replays are close then.
    name : str, default "jax"
        What reports call the problem.

    Returns
    -------
    JaxProblem
        Its layers are named by their place in the tree, as in ``dense.w``. On a processor, without
        `vmap`, a gradient has the same bits whenever it is asked for.

    Raises
    ------
    ConfigError
        If JAX is not installed, `parameters` are no arrays of one such type, `loss` raises or
        returns no scalar, or samples are sparse or differ in shape.

    Examples
    --------
    >>> import numpy as np
    >>> import distsgd as ds
    >>> x = np.linspace(-1, 1, 100)[:, None]
    >>> def loss(parameters, x, y):
    ...     return ((x @ parameters["w"] + parameters["b"] - y) ** 2).mean()
    >>> line = {"w": np.zeros((1, 1)), "b": np.zeros(1)}
    >>> problem = ds.problems.from_jax(loss, line, (x, 3 * x + 1))
    >>> [layer.name for layer in problem.layers]
    ['b', 'w']
    """
    samples, tree = _samples(data), _arrays(parameters)
    model = _Model(_function("loss", loss), _function("metric", metric or _no_metric), tree, vmap)
    jax, blocks = framework("jax", "jax"), _layers(tree)
    origin = np.concatenate([leaf.reshape(-1) for leaf in jax.tree_util.tree_leaves(tree)])
    n_together = next((size for size in _SIZES if size * origin.size <= _TOGETHER), 1)
    is_exact = jax.default_backend() == "cpu" and not (vmap and n_together > 1)
    identity = {
        "name": name,
        "data": data_settings(samples),
        "layers": {layer.name: list(layer.shape) for layer in blocks},
        "start": array_digest(origin),
        "vmap": vmap,
        "jax": jax.__version__,
    } | identified(f"the loss of {name}", (loss, metric))
    problem = JaxProblem(
        name=name,
        data=samples,
        is_random=model.is_random,
        exactness="bits" if is_exact else "close",
        origin=origin,
        blocks=blocks,
        n_together=n_together,
        identity=identity,
        lazy=Lazy(_programs, model),
    )
    _check_scalars(problem)
    return problem


def _samples(data: Any) -> Data:  # noqa: ANN401 # whatever holds numbers
    samples = samples_of(data)
    if isinstance(samples.x, Sparse):
        raise ConfigError(f"data of from_jax must be dense, but those of {samples.name} are sparse; give x.dense()")
    return samples


def _function(name: str, given: object) -> Mean:
    if not callable(given):
        raise ConfigError(f"{name} must be a function of (parameters, x, y), not {shown(given)}")
    return given


def _no_metric(*_: object) -> float:
    return math.nan


def _arrays(parameters: Tree) -> Tree:
    """Return a tree of NumPy's arrays, of the types that JAX would have."""
    jax = framework("jax", "jax")

    def array(path: Tree, leaf: object) -> NDArray[Any]:
        try:
            return np.array(jax.numpy.asarray(leaf))
        except TypeError:
            place = jax.tree_util.keystr(path)
            raise ConfigError(f"parameters must be a tree of arrays, but {place} is {shown(leaf)}") from None

    tree = jax.tree_util.tree_map_with_path(array, parameters)
    leaves = jax.tree_util.tree_leaves(tree)
    if not any(leaf.size for leaf in leaves):
        raise ConfigError("parameters must have at least one number; give the arrays that the loss is derived by")
    types = sorted({leaf.dtype.name for leaf in leaves})
    if types not in (["float32"], ["float64"]):
        what = f"parameters must be arrays of float32, or all of float64, not of {' and '.join(types)}"
        raise ConfigError(f"{what}; convert them, and keep in the loss what is not trained")
    return tree


def _layers(tree: Tree) -> tuple[Layer, ...]:
    util = framework("jax.tree_util", "jax")
    paths, leaves = zip(*util.tree_flatten_with_path(tree)[0], strict=True)
    names = [util.keystr(path, simple=True, separator=".") or "x" for path in paths]
    if len(set(names)) < len(names):  # a key has a point in it
        names = [util.keystr(path) for path in paths]
    return layers_of(dict(zip(names, (leaf.shape for leaf in leaves), strict=True)))


def _check_scalars(problem: JaxProblem) -> None:
    """Trace loss and metric with a batch of two samples; nothing is compiled."""
    programs, data = problem.lazy.value(problem.data), problem.data
    row: tuple[Any, ...] = problem.origin, np.arange(2, dtype=np.uint32) % np.uint32(data.samples)
    calls = [("loss", programs.loss, row), ("metric", programs.metric, row)]
    if problem.is_random:
        calls.append(("loss", programs.loss, (*row, _words(np.uint64(0)))))
    for name, program, given in calls:
        what = f"{name} of x {shape_of(data.x, 1)} and y {shape_of(data.y, 1)} per sample"
        try:
            found = framework("jax", "jax").eval_shape(program, given, *programs.train)
        except Exception as error:  # noqa: BLE001 # the user's own code
            raise ConfigError(f"{what} raised {raised(error)}") from None
        if getattr(found, "shape", None) != () or found.dtype.kind != "f":
            raise ConfigError(f"{what} must return one number, the mean over the batch, not {found}")


def _programs(model: _Model, data: Data) -> _Programs:
    """Compile what is called; in each process, at its first use."""
    jax, flatten = framework("jax", "jax"), framework("jax.flatten_util", "jax")
    is_double = any(leaf.dtype == np.float64 for leaf in jax.tree_util.tree_leaves(model.tree))
    if is_double and not jax.config.jax_enable_x64:  # as where the problem was made
        jax.config.update("jax_enable_x64", True)
    unravel = flatten.ravel_pytree(model.tree)[1]

    def loss(row: Tree, x: Array, y: Array) -> Array:
        point, batch, *words = row
        key = {"key": jax.random.wrap_key_data(words[0]) if words else None} if model.is_random else {}
        return model.loss(unravel(point), x[batch], y[batch], **key)

    def metric(row: Tree, x: Array, y: Array) -> Array:
        point, batch = row
        return jax.numpy.asarray(model.metric(unravel(point), x[batch], y[batch]))

    def gradient(row: Tree, x: Array, y: Array) -> Array:
        return jax.grad(lambda point: loss((point, *row[1:]), x, y))(row[0])

    def gradients(rows: Tree, x: Array, y: Array) -> Array:
        each = functools.partial(gradient, x=x, y=y)
        return jax.vmap(each)(rows) if model.vmap else jax.lax.map(each, rows)  # rule 2

    samples = (tuple(map(jax.numpy.asarray, pair)) for pair in ((data.x, data.y), (data.test_x, data.test_y)))
    return _Programs(*map(jax.jit, (gradient, gradients, loss, metric)), *samples)


def _words(keys: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint32]:
    """Return keys as JAX has them, uint32[..., 2], the high word first."""
    return np.stack([keys >> np.uint64(32), keys & np.uint64(2**32 - 1)], axis=-1).astype(np.uint32)
