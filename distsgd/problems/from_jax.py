"""Problems of JAX: a loss over a tree of parameters, its gradients as vectors.

1. Gradients that are asked for together have the bits of single ones where nothing is convolved:
   XLA has convolutions of another kind, and slow ones, in loops. So a model is tried, and its
   gradients are evaluated one at a time if bits differ.
2. Calls have few sizes, since each is compiled: rows behind the last are not looked at, or in vain.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distsgd.data.given import samples_of
from distsgd.errors import ConfigError, raised, shown
from distsgd.problem import Batch, Evaluation, Exactness, Layer, Vector, data_settings, layers_of
from distsgd.problems.jax.programs import Array, Mean, Model, Program, Programs, Tree, compiled, words
from distsgd.problems.lazy import Lazy, framework, xla_threads
from distsgd.problems.model import ModelProblem
from distsgd.rules.identity import array_digest, identified
from distsgd.samples.dataset import Data, shape_of
from distsgd.sparse import Sparse

_SIZES = {False: (8, 16, 32, 64), True: tuple(range(4, 65, 4))}
"""Gradients of one call (rule 2), without `vmap` and with it: there each row takes time."""
_TOGETHER = 320_000
"""Numbers of gradients that are evaluated together: more do not stay in the cache."""
_BATCH = 32
"""Samples of the gradients that are tried: as many as runs have by default, so compiled already."""
_CHUNK = 512
"""Samples whose losses are evaluated together."""


@dataclass(frozen=True, eq=False)
class JaxProblem(ModelProblem):
    """A model of JAX on `data`; made by `from_jax`."""

    exactness: Exactness = field()
    sizes: tuple[int, ...]
    lazy: Lazy[Programs]

    @property
    def at_once(self) -> int:
        """Small gradients are evaluated together, since a call takes as long as some of them."""
        return max(self.sizes, default=1)

    @property
    def _programs(self) -> Programs:
        return self.lazy.value(self.data)

    def loss(self, x: ArrayLike) -> float:
        """Return the mean loss of the training samples."""
        return self._mean(self._programs.loss, x, self._programs.train)

    def gradient_into(self, x: Vector, batch: Batch, out: Vector, key: int = 0) -> None:
        """Write the gradient at `x` into `out`, both float[d]."""
        row = [x, batch, words(np.uint64(key))] if self.is_random else [x, batch]
        out[...] = self._programs.gradient(row, *self._programs.train)

    def gradients(self, xs: ArrayLike, batches: ArrayLike, keys: ArrayLike | None = None) -> Vector:
        """Return m gradients, each at its own point, float[m, d]."""
        points = np.asarray(xs, self.dtype)
        keyed = (words(np.asarray(keys, np.uint64)),) if self.is_random else ()
        rows, out = (points, np.asarray(batches, np.uint32), *keyed), np.empty_like(points)
        for first in range(0, len(out), self.at_once):
            part = slice(first, first + self.at_once)
            self._gradients_into([row[part] for row in rows], out[part])
        return out

    def _gradients_into(self, rows: list[NDArray[Any]], out: Vector) -> None:
        programs, n_rows = self._programs, len(out)
        if n_rows == 1:
            out[0] = programs.gradient([row[0] for row in rows], *programs.train)
            return
        size = next(size for size in self.sizes if size >= n_rows)  # rule 2
        filled = [_filled(row, size) for row in rows]
        out[...] = np.asarray(programs.gradients(filled, n_rows, *programs.train))[:n_rows]

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
            total += part.size * float(program([point, part], *samples))
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
        dataset of pairs ``(x, y)``, or what `distsgd.data` returns. They become arrays of JAX: as
        float64, int64 is shortened to 32 bits unless `jax_enable_x64` is set.
    metric : callable, optional
        ``metric(parameters, x, y)`` returns a mean over samples. That of the test samples is the
        accuracy of the history.
    vmap : bool, default False
        Evaluate gradients of many workers by `jax.vmap`, up to 320,000 numbers together. It is
        faster for small dense models, slower for convolutions, and has other bits than one at a
        time: replays are close then.
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
    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> import distsgd as ds
    >>> x = np.linspace(-1, 1, 100)[:, None]
    >>> def loss(parameters, x, y):
    ...     return ((x @ parameters["w"] + parameters["b"] - y) ** 2).mean()
    >>> line = {"w": jnp.zeros((1, 1)), "b": jnp.zeros(1)}
    >>> problem = ds.problems.from_jax(loss, line, (x, 3 * x + 1))
    >>> [layer.name for layer in problem.layers]
    ['b', 'w']
    """
    samples, tree = _samples(data), _arrays(parameters)
    model = Model(_function("loss", loss), _function("metric", metric or _no_metric), tree, vmap)
    jax, blocks, threads = framework("jax", "jax"), _layers(tree), xla_threads()
    origin = np.concatenate([leaf.reshape(-1) for leaf in jax.tree_util.tree_leaves(tree)])
    sizes = tuple(size for size in _SIZES[bool(vmap)] if size * origin.size <= _TOGETHER)
    is_exact = jax.default_backend() == "cpu" and not (vmap and sizes)
    identity = {
        "name": name,
        "data": data_settings(samples),
        "threads": threads,
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
        sizes=sizes,
        identity=identity,
        lazy=Lazy(compiled, model, threads),
    )
    _check_scalars(problem)
    is_tried = bool(sizes) and not vmap
    return dataclasses.replace(problem, sizes=()) if is_tried and not _has_bits_of_singles(problem) else problem


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
    row = [problem.origin, np.arange(2, dtype=np.uint32) % np.uint32(data.samples)]
    calls = [("loss", programs.loss, row), ("metric", programs.metric, row)]
    if problem.is_random:
        calls.append(("loss", programs.loss, [*row, words(np.uint64(0))]))
    for name, program, given in calls:
        what = f"{name} of x {shape_of(data.x, 1)} and y {shape_of(data.y, 1)} per sample"
        try:
            found = framework("jax", "jax").eval_shape(program, given, *programs.train)
        except Exception as error:  # noqa: BLE001 # the user's own code
            raise ConfigError(f"{what} raised {raised(error)}") from None
        if getattr(found, "shape", None) != () or found.dtype.kind != "f":
            raise ConfigError(f"{what} must return one number, the mean over the batch, not {found}")


def _has_bits_of_singles(problem: JaxProblem) -> bool:
    """Return whether gradients have the same bits together as one at a time (rule 1)."""
    rng, keys = np.random.default_rng(0), np.arange(2, dtype=np.uint64)
    points = (problem.origin + 0.1 * rng.standard_normal((2, problem.dimension))).astype(problem.dtype)
    batches = rng.integers(0, problem.samples, (2, _BATCH)).astype(np.uint32)
    singles = [problem.gradient(*row) for row in zip(points, batches, keys.tolist(), strict=True)]
    return np.array_equal(problem.gradients(points, batches, keys), singles, equal_nan=True)


def _filled(rows: NDArray[Any], size: int) -> NDArray[Any]:
    """Return `rows` and as many of zeros as are missing."""
    if len(rows) == size:
        return rows
    out = np.zeros((size, *rows.shape[1:]), rows.dtype)
    out[: len(rows)] = rows
    return out
