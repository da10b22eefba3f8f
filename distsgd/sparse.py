"""Sparse rows as flat arrays that compiled loops read, and what these need to step on them."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distsgd.errors import ConfigError

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]


class Sparse(NamedTuple):
    """Compressed sparse rows: row i holds the non-zeros ``starts[i]`` to ``starts[i + 1]``.

    The columns of a row are distinct and ascend. They are unsigned, since compiled code indexes
    faster without the wrap-around of negative numbers.
    """

    values: Floats
    """float64[nonzeros]"""
    columns: NDArray[np.uint32]
    """uint32[nonzeros]"""
    starts: NDArray[np.uint64]
    """uint64[n + 1]"""
    features: int
    """Number of columns of the table."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the table."""
        return self.starts.size - 1, self.features

    @property
    def lengths(self) -> Integers:
        """Non-zeros of each row, int64[n]."""
        starts = self.starts.astype(np.int64)
        return starts[1:] - starts[:-1]

    @property
    def counts(self) -> Integers:
        """Rows in which each column occurs, int64[features]. Hogwild!'s d_u."""
        return np.bincount(self.columns, minlength=self.features).astype(np.int64)

    def take(self, index: Integers) -> "Sparse":
        """Return the rows `index`, in that order."""
        lengths = self.lengths[index]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        first = self.starts.astype(np.int64)[index]
        at = np.arange(starts[-1]) + np.repeat(first - starts[:-1], lengths)
        return sparse_rows(self.values[at], self.columns[at], starts, self.features)

    def dense(self) -> Floats:
        """Return the whole table, float64[n, features]."""
        table = np.zeros(self.shape)
        table[np.repeat(np.arange(self.shape[0]), self.lengths), self.columns] = self.values
        return table


def explicit(table: Floats) -> Sparse:
    """Return a dense table as rows that store every entry, zeros included."""
    samples, features = table.shape
    columns = np.tile(np.arange(features, dtype=np.uint32), samples)
    return sparse_rows(table.reshape(-1), columns, np.arange(samples + 1) * features, features)


def from_scipy(matrix: Any, name: str = "x") -> Sparse:  # noqa: ANN401 # SciPy ships no types
    """Return a SciPy sparse matrix as rows; entries of the same place are summed."""
    table = matrix.tocsr(copy=True)
    table.sum_duplicates()
    if table.shape[1] > 2**32:
        raise ConfigError(f"{name} must have <= 2**32 columns, not {table.shape[1]}")
    if table.nnz and not 0 <= table.indices.min() <= table.indices.max() < table.shape[1]:
        raise ConfigError(f"{name} must have columns >= 0 and < {table.shape[1]}, not others")
    return sparse_rows(table.data, table.indices, table.indptr, int(table.shape[1]))


def sparse_rows(values: ArrayLike, columns: ArrayLike, starts: ArrayLike, features: int) -> Sparse:
    """Return rows whose arrays have the right types and cannot be written."""
    return Sparse(
        frozen(np.ascontiguousarray(values, dtype=np.float64)),
        frozen(np.ascontiguousarray(columns, dtype=np.uint32)),
        frozen(np.ascontiguousarray(starts, dtype=np.uint64)),
        features,
    )


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Return a view of `array` that cannot be written: a digest must stay true."""
    view = array.view()
    view.setflags(write=False)
    return view


class Support(NamedTuple):
    r"""What a compiled loop needs to step on the support of a sample alone.

    The gradient of sample i, with the margin :math:`m_i = \sum_u z_{iu} x_u`, is

    .. math:: (\nabla f_i)_u = slope(m_i, y_i) z_{iu} + shrink_u x_u \quad (u \in e_i).
    """

    rows: Sparse
    """The training samples z, each with its support e."""
    labels: Floats
    """float64[n]"""
    shrink: Floats
    """float64[d]: l2 n / d_u, where d_u counts the samples with feature u; 0 where d_u is 0.
    Without a regulariser it is empty, so that no kernel looks it up."""
    slope: Callable[[float, float], float]
    """Derivative of a sample's loss as a function of (margin, label): plain scalar Python, which
    `kernels.gradients.linear.compiled_slope` compiles once per process."""
