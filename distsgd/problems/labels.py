"""Labels as losses want them: signs for two classes, 0 to c - 1 for more."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distsgd.errors import ConfigError, wrong_kind
from distsgd.samples.dataset import Data, shape_of
from distsgd.sparse import Floats, Sparse

Classes: TypeAlias = NDArray[np.uint32]


def numbers(name: str, data: Data) -> tuple[Floats, Floats]:
    """Return the training and test labels as they are, float64."""
    _check_data(name, data)
    return data.y.astype(np.float64), data.test_y.astype(np.float64)


def signs(name: str, data: Data) -> tuple[Floats, Floats]:
    """Return the training and test labels as -1.0 for the smaller and 1.0 for the greater value."""
    _check_data(name, data)
    known = np.unique(data.y)
    if known.size != 2:
        advice = "use softmax for classes, least_squares for numbers" if known.size > 2 else "add samples"
        raise ConfigError(f"{name} needs labels with 2 values, but {data.name} has {known.size}; {advice}")
    train, test = _positions(name, data, known)
    return 2.0 * train - 1.0, 2.0 * test - 1.0


def classes(name: str, data: Data) -> tuple[Classes, Classes, int]:
    """Return the training and test labels as 0 to c - 1, in the order of their values, and c."""
    _check_data(name, data)
    known = np.unique(data.y)
    if not data.has_classes:
        raise ConfigError(f"{name} needs whole numbers as labels, but {data.name} has others; use least_squares")
    if known.size < 2:
        raise ConfigError(f"{name} needs labels of at least 2 classes, but {data.name} has {known.size}")
    train, test = _positions(name, data, known)
    return train.astype(np.uint32), test.astype(np.uint32), known.size


def _check_data(name: str, data: object) -> None:
    if not isinstance(data, Data):
        example = "distsgd.data.from_arrays(x, y)"
        raise wrong_kind(f"data of {name}", example, data)
    is_table = isinstance(data.x, Sparse) or (data.x.ndim == 2 and data.x.dtype == np.float64)
    if not is_table or data.y.ndim != 1:
        raise ConfigError(
            f"{name} needs a table of float64 and one label per sample, but {data.name} has x {shape_of(data.x)} and"
            f" y {shape_of(data.y)}; give from_arrays(x.reshape(len(x), -1), y), or a model of your own to from_torch,"
            " from_jax or from_keras"
        )


def _positions(name: str, data: Data, known: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    unknown = np.setdiff1d(data.test_y, known)
    if unknown.size:
        raise ConfigError(f"{name} needs test labels that occur in training, but {data.name} has {unknown[0]}")
    return np.searchsorted(known, data.y), np.searchsorted(known, data.test_y)
