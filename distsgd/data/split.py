"""Tables from whatever holds numbers, and their split into training and test."""

from typing import Any

import numpy as np

from distsgd.data.dataset import Data
from distsgd.data.rows import Floats, Integers, Sparse, from_scipy, frozen
from distsgd.errors import ConfigError, check_number, check_seed


def from_arrays(
    x: Any,  # noqa: ANN401 # whatever NumPy or SciPy holds
    y: Any,  # noqa: ANN401 # whatever NumPy holds
    *,
    test_x: Any = None,  # noqa: ANN401 # like x
    test_y: Any = None,  # noqa: ANN401 # like y
    test: float = 0.2,
    seed: int = 0,
    name: str = "arrays",
) -> Data:
    """Make data from lists, arrays or SciPy sparse matrices.

    Without test samples of their own, a share `test` of the samples is set aside. The split is
    stratified: samples are shuffled, sorted by label, and taken at even distances, so each class
    has the same share in both parts, and numbers to regress on have the same distribution.

    Parameters
    ----------
    x : array_like or scipy.sparse matrix or Sparse
        One row of numbers per sample.
    y : array_like
        One number per sample; whole numbers are class labels.
    test_x, test_y : like `x` and `y`, default None
        Test samples. Then all of `x` is for training.
    test : float, default 0.2
        Share of the samples to set aside, >= 0 and < 1.
    seed : int, default 0
        Seed of the shuffle, >= 0.
    name : str, default "arrays"
        What reports call the data.

    Returns
    -------
    Data
        Its arrays cannot be written.

    Raises
    ------
    ConfigError
        If the samples are empty, ragged or not finite, or if their lengths differ.
    """
    if (test_x is None) != (test_y is None):
        msg = "test_x and test_y must be given together, or neither"
        raise ConfigError(msg)
    rows, labels = _table("x", x), _labels("y", y)
    if test_x is not None:
        return Data(name, rows, labels, _table("test_x", test_x), _labels("test_y", test_y))
    everything = Data(name, rows, labels, _take(rows, slice(0)), labels[:0])
    train, aside = split(everything.y, test, seed)
    train_y, aside_y = frozen(labels[train]), frozen(labels[aside])
    return Data(name, _take(rows, train), train_y, _take(rows, aside), aside_y)


def split(y: Integers | Floats, test: float, seed: int) -> tuple[Integers, Integers]:
    """Return the indices of the training and of the test samples, each ascending."""
    share = check_number("test", test, at_least=0.0, below=1.0)
    # the raw bits of a bit generator are guaranteed to be the same in every version of NumPy
    bits = np.random.PCG64(check_seed(seed)).random_raw(y.size)
    shuffled = np.argsort(bits, kind="stable")
    by_label = shuffled[np.argsort(y[shuffled], kind="stable")]
    is_aside = np.diff(np.ceil(np.arange(y.size + 1) * share)) > 0
    if is_aside.all():
        msg = f"test must leave a sample of {y.size} for training, not {test!r}; lower it"
        raise ConfigError(msg)
    return np.sort(by_label[~is_aside]), np.sort(by_label[is_aside])


def _take(x: Floats | Sparse, index: Any) -> Floats | Sparse:  # noqa: ANN401 # indices or a slice
    if isinstance(x, Sparse):
        return x.take(np.arange(x.shape[0])[index])
    return frozen(x[index])


def _table(name: str, x: Any) -> Floats | Sparse:  # noqa: ANN401 # whatever NumPy or SciPy holds
    if isinstance(x, Sparse):
        return x
    if hasattr(x, "tocsr"):
        return from_scipy(x, name)
    table = _numbers(name, x, "rows of numbers, each with the same length")
    if table.ndim != 2:
        msg = f"{name} must be a table of samples and features, not of the shape {table.shape}"
        raise ConfigError(msg)
    return table


def _labels(name: str, y: Any) -> Integers | Floats:  # noqa: ANN401 # whatever NumPy holds
    labels = _numbers(name, y, "one number per sample")
    # beyond 2**53 a float64 cannot tell whole numbers apart; NaN and infinity fail the bound too
    is_whole = np.all((abs(labels) < 2.0**53) & (labels == np.rint(labels)))
    return frozen(labels.astype(np.int64)) if is_whole else labels


def _numbers(name: str, values: Any, expected: str) -> Floats:  # noqa: ANN401 # whatever NumPy holds
    try:
        return frozen(np.ascontiguousarray(values, dtype=np.float64))
    except (TypeError, ValueError):
        msg = f"{name} must be {expected}"
        raise ConfigError(msg) from None
