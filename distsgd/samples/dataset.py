"""`Data`: training and test samples, checked once, so that no kernel has to."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.errors import ConfigError
from distsgd.samples.overlap import Statistics, statistics
from distsgd.samples.scaling import Scales, scales
from distsgd.sparse import Floats, Integers, Sparse


@dataclass(frozen=True, eq=False)
class Data:
    """Samples with a label each, split into training and test.

    `distsgd.data.from_arrays` makes one from lists, arrays and SciPy matrices.

    Parameters
    ----------
    name : str
        What reports call the data.
    x : float64[n, features] or Sparse
        One row per training sample.
    y : int64[n] or float64[n]
        Labels of the training samples: class labels, or numbers to regress on.
    test_x : float64[k, features] or Sparse
        Test samples, of the same kind as `x`; k may be 0.
    test_y : int64[k] or float64[k]
        Labels of the test samples.
    classes : tuple of str, default ()
        Names of the classes, where the labels were text: label i stands for the i-th.

    Raises
    ------
    ConfigError
        If an array is empty, not finite or not of these types, or if their lengths differ.
    """

    name: str
    x: Floats | Sparse
    y: Integers | Floats
    test_x: Floats | Sparse
    test_y: Integers | Floats
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_samples("x", self.x, "y", self.y)
        _check_samples("test_x", self.test_x, "test_y", self.test_y)
        if self.x.shape[0] == 0 or self.x.shape[1] == 0:
            raise ConfigError(f"x must have samples and features, not the shape {self.x.shape}")
        if isinstance(self.x, Sparse) != isinstance(self.test_x, Sparse):
            raise ConfigError("x and test_x must both be dense or both be sparse")
        if self.x.shape[1] != self.test_x.shape[1]:
            raise ConfigError(f"test_x must have {self.x.shape[1]} features like x, not {self.test_x.shape[1]}")

    @property
    def samples(self) -> int:
        """Number of training samples."""
        return int(self.x.shape[0])

    @property
    def features(self) -> int:
        """Number of columns of `x`."""
        return int(self.x.shape[1])

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
        return scales(self.x)

    @cached_property
    def statistics(self) -> Statistics:
        """Hogwild!'s Omega, Delta and rho of the training rows."""
        return statistics(self.x)


def _check_samples(name: str, x: Floats | Sparse, label: str, y: Integers | Floats) -> None:
    _check_sparse(name, x) if isinstance(x, Sparse) else _check_array(name, x, 2, ("float64",))
    _check_array(label, y, 1, ("float64", "int64"))
    if y.size != x.shape[0]:
        raise ConfigError(f"{label} must have {x.shape[0]} labels, one per row of {name}, not {y.size}")


def _check_array(name: str, array: NDArray[Any], dimensions: int, dtypes: tuple[str, ...]) -> None:
    kind = " or ".join(dtypes)
    if (
        not isinstance(array, np.ndarray)
        or array.dtype not in dtypes
        or array.ndim != dimensions
        or not array.flags.c_contiguous
    ):
        found = f"{array.dtype}{array.shape}" if isinstance(array, np.ndarray) else type(array)
        raise ConfigError(
            f"{name} must be a contiguous {dimensions}-dimensional array of {kind}, not {found}; "
            "distsgd.data.from_arrays converts lists, arrays and SciPy matrices"
        )
    check_finite(name, array)


def check_finite(name: str, array: NDArray[Any]) -> None:
    """Raise a `ConfigError` that names the first number of `array` that is NaN or infinite."""
    if not np.isfinite(array).all():
        place = tuple(np.argwhere(~np.isfinite(array))[0])
        at = ", ".join(map(str, place))
        raise ConfigError(f"{name} must be finite, but {name}[{at}] is {array[place]} (counted from 0)")


def _check_sparse(name: str, rows: Sparse) -> None:
    _check_array(f"{name}.values", rows.values, 1, ("float64",))
    _check_array(f"{name}.columns", rows.columns, 1, ("uint32",))
    _check_array(f"{name}.starts", rows.starts, 1, ("uint64",))
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
