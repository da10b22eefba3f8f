"""The scales of features: how far they are apart, and how to bring them together."""

from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from distsgd.errors import ConfigError, check_name
from distsgd.sparse import Floats, Sparse, frozen

Scale: TypeAlias = Literal["standard"] | None
"""How features are scaled: not at all, or to a standard deviation of 1."""

FEW = 10
"""A feature that is in fewer samples has no scale that could be told."""


class Scales(NamedTuple):
    """The features with the largest and the smallest scale, and the ratio of these."""

    ratio: float
    largest: int
    smallest: int


def scales(x: Floats | Sparse) -> Scales:
    """Return how far the scales of the features are apart.

    The scale of a feature is the root mean square of its values that are not 0, so that a rare
    feature is no small one. Those in fewer than 10 samples are left out.
    """
    counts, squares = _squares(x)
    known = np.flatnonzero((counts >= FEW) & (squares > 0.0))
    if not known.size:
        return Scales(1.0, 0, 0)
    scale = np.sqrt(squares[known] / counts[known])
    ends = int(scale.argmax()), int(scale.argmin())
    ratio = float(scale[ends[0]] / scale[ends[1]])
    return Scales(ratio, int(known[ends[0]]), int(known[ends[1]]))


def _squares(x: Floats | Sparse) -> tuple[Floats, Floats]:
    """Return how many values of each feature are not 0, and the sum of their squares."""
    with np.errstate(over="ignore", under="ignore"):
        if not isinstance(x, Sparse):
            return np.count_nonzero(x, axis=0).astype(np.float64), np.einsum("ij,ij->j", x, x, dtype=np.float64)
        weights = np.bincount(x.columns, weights=x.values**2, minlength=x.features)
        return x.counts.astype(np.float64), weights.astype(np.float64)


def scaled(x: Floats | Sparse, test_x: Floats | Sparse, scale: Scale) -> tuple[Floats | Sparse, Floats | Sparse]:
    """Return training and test samples whose features have the scale that is asked for.

    "standard" is fitted on the training samples: for dense ones mean 0 and deviation 1; sparse ones
    are divided by the greatest value of each feature, so that they stay sparse. Another name is a
    `ConfigError`, and so are samples that are no table.
    """
    if scale is None:
        return x, test_x
    check_name("scale", scale, ("standard",))
    if not isinstance(x, Sparse) and x.ndim > 2:
        raise ConfigError(
            f"scale must be None unless samples are rows of features, not each of the shape {x.shape[1:]}"
        )
    if isinstance(x, Sparse) and isinstance(test_x, Sparse):
        largest = np.zeros(x.features)
        np.maximum.at(largest, x.columns, np.abs(x.values))
        largest[largest == 0.0] = 1.0  # a feature of the test samples alone
        return _divided(x, largest), _divided(test_x, largest)
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415 # costs most of a second

    scaler = StandardScaler().fit(x)
    tables = (scaler.transform(table) if len(table) else table for table in (x, test_x))
    train, test = (frozen(np.ascontiguousarray(table)) for table in tables)
    return train, test


def _divided(x: Sparse, largest: Floats) -> Sparse:
    return x._replace(values=frozen(x.values / largest[x.columns]))
