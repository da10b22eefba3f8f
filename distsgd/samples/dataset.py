"""`Data`: training and test samples, checked once, so that no kernel has to."""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distsgd.errors import ConfigError
from distsgd.samples.overlap import Statistics, statistics
from distsgd.samples.scaling import Scales, scales
from distsgd.sparse import Sparse

Samples: TypeAlias = NDArray[Any] | Sparse
"""Sparse rows, or an array whose first axis counts samples."""

TYPES = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float32", "float64")
"""What samples and labels may be."""


@dataclass(frozen=True, eq=False)
class Data:
    """Samples with a label each, split into training and test.

    `distsgd.data.from_arrays` makes one from lists, arrays and SciPy matrices. The problems of
    distsgd take tables of float64 and one label per sample; those that are made of a model of
    one's own take whatever it does: images float32[n, c, h, w], tokens int64[n, t].

    Parameters
    ----------
    name : str
        What reports call the data.
    x : bool, int, uint, float32 or float64[n, ...], or Sparse
        The training samples, along the first axis.
    y : bool, int, uint, float32 or float64[n, ...]
        Labels of the training samples: class labels, or whatever the loss takes.
    test_x : like `x`
        Test samples, of the type and shape of those of `x`; there may be none.
    test_y : like `y`
        Labels of the test samples, of the shape of those of `y`.
    classes : tuple of str, default ()
        Names of the classes, where the labels were text: label i stands for the i-th.

    Raises
    ------
    ConfigError
        If an array is empty, not finite or not of these types, or if their lengths differ.
    """

    name: str
    x: Samples
    y: NDArray[Any]
    test_x: Samples
    test_y: NDArray[Any]
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_samples("x", self.x, "y", self.y)
        _check_samples("test_x", self.test_x, "test_y", self.test_y)
        if 0 in self.x.shape:
            raise ConfigError(f"x must have samples and features, not the shape {self.x.shape}")
        if isinstance(self.x, Sparse) != isinstance(self.test_x, Sparse):
            raise ConfigError("x and test_x must both be dense or both be sparse")
        each, other = shape_of(self.x, 1), shape_of(self.test_x, 1)
        if each != other:
            raise ConfigError(f"test_x must have samples like x, each {each}, not {other}")
        if self.y.shape[1:] != self.test_y.shape[1:]:
            shape, given = self.y.shape[1:], self.test_y.shape[1:]
            raise ConfigError(f"test_y must have labels like y, each of the shape {shape}, not {given}")

    @property
    def samples(self) -> int:
        """Number of training samples."""
        return int(self.x.shape[0])

    @property
    def features(self) -> int:
        """Numbers of each sample: columns of a table, pixels of an image."""
        return math.prod(self.x.shape[1:])

    @property
    def is_table(self) -> bool:
        """Whether samples are rows of features, rather than images, tokens and the like."""
        return isinstance(self.x, Sparse) or (self.x.ndim == 2 and self.x.dtype.kind == "f")

    @property
    def has_classes(self) -> bool:
        """Whether a label is one whole number, the class of its sample."""
        return self.y.ndim == 1 and self.y.dtype.kind != "f"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of every number, as hexadecimal digits: equal content, equal digest."""
        content = hashlib.sha256()
        for table in (self.x, self.y, self.test_x, self.test_y):
            arrays = (*table[:3], np.array([table.features])) if isinstance(table, Sparse) else (table,)
            for array in arrays:
                content.update(f"{array.dtype}{array.shape}".encode())
                content.update(array.data)
        return content.hexdigest()

    @cached_property
    def scales(self) -> Scales:
        """How far the scales of the features of the training samples are apart."""
        self._check_table("scales")
        return scales(self.x)

    @cached_property
    def statistics(self) -> Statistics:
        """Hogwild!'s Omega, Delta and rho of the training rows."""
        self._check_table("statistics")
        return statistics(self.x)

    def _check_table(self, wanted: str) -> None:
        if not self.is_table:
            what = f"{wanted} are known of tables of features, but x of {self.name} is {shape_of(self.x)}"
            raise ConfigError(f"{what}; give x.reshape(len(x), -1) of float32 or float64")


def shape_of(samples: Samples, axis: int = 0) -> str:
    """Return type and shape, the latter from an axis on, as in ``float32[100, 28, 28]``."""
    dtype = samples.values.dtype if isinstance(samples, Sparse) else samples.dtype
    return f"{dtype}[{', '.join(map(str, samples.shape[axis:]))}]"


def _check_samples(name: str, x: Samples, label: str, y: NDArray[Any]) -> None:
    _check_sparse(name, x) if isinstance(x, Sparse) else _check_array(name, x, TYPES)
    _check_array(label, y, TYPES)
    if len(y) != x.shape[0]:
        raise ConfigError(f"{label} must have {x.shape[0]} labels, one per sample of {name}, not {len(y)}")


def _check_array(name: str, array: NDArray[Any], types: tuple[str, ...], dimensions: int | None = None) -> None:
    is_array = isinstance(array, np.ndarray) and array.dtype in types and array.flags.c_contiguous
    if not is_array or not array.ndim or dimensions not in {None, array.ndim}:
        found = shape_of(array) if isinstance(array, np.ndarray) else type(array)
        kind = f"{dimensions}-dimensional array of {types[0]}" if dimensions else f"array of {', '.join(types)}"
        raise ConfigError(
            f"{name} must be a contiguous {kind}, not {found}; "
            "distsgd.data.from_arrays converts lists, arrays and SciPy matrices"
        )
    check_finite(name, array)


def check_finite(name: str, array: NDArray[Any]) -> None:
    """Raise a `ConfigError` that names the first number of `array` that is NaN or infinite."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        place = tuple(np.argwhere(~np.isfinite(array))[0])
        at = ", ".join(map(str, place))
        raise ConfigError(f"{name} must be finite, but {name}[{at}] is {array[place]} (counted from 0)")


def _check_sparse(name: str, rows: Sparse) -> None:
    _check_array(f"{name}.values", rows.values, ("float64",), 1)
    _check_array(f"{name}.columns", rows.columns, ("uint32",), 1)
    _check_array(f"{name}.starts", rows.starts, ("uint64",), 1)
    starts, nonzeros = rows.starts, rows.values.size
    if not starts.size or starts[0] or starts[-1] != nonzeros or (starts[1:] < starts[:-1]).any():
        raise ConfigError(f"{name}.starts must ascend from 0 to the number of values, {nonzeros}")
    if rows.columns.size != nonzeros:
        found = rows.columns.size
        raise ConfigError(f"{name}.columns must have {nonzeros} entries like {name}.values, not {found}")
    _check_columns(name, rows)


def _check_columns(name: str, rows: Sparse) -> None:
    if rows.columns.size and rows.columns.max() >= rows.features:
        raise ConfigError(f"{name}.columns must be < {rows.features} (features), not {rows.columns.max()}")
    ascends = rows.columns[1:] > rows.columns[:-1]
    inner = rows.starts[(rows.starts > 0) & (rows.starts < rows.values.size)].astype(np.int64)
    ascends[inner - 1] = True
    if not ascends.all():
        place = np.searchsorted(rows.starts, np.argmin(ascends), side="right") - 1
        raise ConfigError(f"{name}.columns must be distinct and ascend within each row; row {place} does not")
