"""Tables from whatever holds numbers, and their split into training and test."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distsgd.errors import ConfigError, check_number, check_seed, unknown_name
from distsgd.samples.dataset import TYPES, Data, Samples, shape_of
from distsgd.samples.scaling import Scale, scaled
from distsgd.sparse import Floats, Integers, Sparse, from_scipy, frozen

Labels: TypeAlias = tuple[Integers | Floats, tuple[str, ...]]
"""Labels as numbers, and the names of the classes if they were text."""


def from_arrays(
    x: Any,  # noqa: ANN401 # whatever NumPy or SciPy holds
    y: Any,  # noqa: ANN401 # whatever NumPy holds
    *,
    test_x: Any = None,  # noqa: ANN401 # like x
    test_y: Any = None,  # noqa: ANN401 # like y
    test: float = 0.2,
    seed: int = 0,
    name: str = "arrays",
    scale: Scale = None,
) -> Data:
    """Make data from lists, arrays or SciPy sparse matrices.

    Without test samples of their own, a share `test` of the samples is set aside. The split is
    stratified: samples are shuffled, sorted by label, and taken at even distances, so each class
    has the same share in both parts, and numbers to regress on have the same distribution.

    Parameters
    ----------
    x : array_like or scipy.sparse matrix or Sparse
        One row of numbers per sample, kept as float64. Arrays of three dimensions and more keep
        their type: images float32[n, c, h, w].
    y : array_like
        One number per sample; whole numbers are class labels. Labels of text are numbered in the
        order of the alphabet, and ``data.classes`` keeps their names. A single column will do.
    test_x, test_y : like `x` and `y`, default None
        Test samples. Then all of `x` is for training.
    test : float, default 0.2
        Share of the samples to set aside, >= 0 and < 1.
    seed : int, default 0
        Seed of the shuffle, >= 0.
    name : str, default "arrays"
        What reports call the data.
    scale : "standard", optional
        Scale the features, by what the training samples say: dense ones to mean 0 and deviation 1,
        sparse ones to a greatest value of 1. By default they stay as they are.

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
        raise ConfigError("test_x and test_y must be given together, or neither")
    rows, (labels, classes) = _table("x", x), _labels("y", y)
    if test_x is not None:
        others, (test_labels, _) = _table("test_x", test_x), _labels("test_y", test_y, classes)
        given = Data(name, rows, labels, others, test_labels, classes)
        train_x, aside_x = scaled(given.x, given.test_x, scale)
        return Data(name, train_x, labels, aside_x, test_labels, classes)
    everything = Data(name, rows, labels, _take(rows, np.arange(0)), labels[:0])
    train, aside = split(everything.y, test, seed)
    train_x, aside_x = scaled(_take(rows, train), _take(rows, aside), scale)
    return Data(name, train_x, frozen(labels[train]), aside_x, frozen(labels[aside]), classes)


def split(y: Integers | Floats, test: float, seed: int) -> tuple[Integers, Integers]:
    """Return the indices of the training and of the test samples, each ascending."""
    share = check_number("test", test, at_least=0.0, below=1.0)
    # the raw bits of a bit generator are guaranteed to be the same in every version of NumPy
    bits = np.random.PCG64(check_seed(seed)).random_raw(y.size)
    shuffled = np.argsort(bits, kind="stable")
    by_label = shuffled[np.argsort(y[shuffled], kind="stable")]
    is_aside = np.diff(np.ceil(np.arange(y.size + 1) * share)) > 0
    if is_aside.all():
        raise ConfigError(f"test must leave a sample of {y.size} for training, not {test!r}; lower it")
    return np.sort(by_label[~is_aside]), np.sort(by_label[is_aside])


def _take(x: Samples, index: Integers) -> Samples:
    return x.take(index) if isinstance(x, Sparse) else frozen(x[index])


def converted(name: str, values: Any) -> NDArray[Any]:  # noqa: ANN401 # whatever NumPy or a framework holds
    """Return `values` as an array, of the type that they have."""
    try:
        return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    except (TypeError, ValueError):
        raise ConfigError(f"{name} must be numbers, each sample of the same shape; pad or crop them") from None


def array_of(name: str, values: Any) -> NDArray[Any]:  # noqa: ANN401 # as above
    """Return numbers as an array of the type that they have, which cannot be written."""
    array = converted(name, values)
    dtype = array.dtype.newbyteorder("=")
    if dtype not in TYPES or not array.ndim:
        raise ConfigError(f"{name} must be an array of {', '.join(TYPES)}, not {shape_of(array)}; convert it")
    return frozen(np.ascontiguousarray(array, dtype=dtype))


def _table(name: str, x: Any) -> Samples:  # noqa: ANN401 # whatever NumPy or SciPy holds
    if isinstance(x, Sparse):
        return x
    if hasattr(x, "tocsr"):
        return from_scipy(x, name)
    if getattr(x, "ndim", 0) > 2:
        return array_of(name, x)
    table = _numbers(x)
    if table is None:
        raise ConfigError(_why_no_table(name, x))
    if table.ndim < 2:
        column = f"; one feature is {name}.reshape(-1, 1)" if table.ndim == 1 else ""
        msg = f"{name} must be a table of samples and features, not of the shape {table.shape}"
        raise ConfigError(f"{msg}{column}")
    return table


def _why_no_table(name: str, x: Any) -> str:  # noqa: ANN401 # whatever NumPy does not hold
    """Return what is wrong with a table that has something else than numbers, or no columns."""
    msg = f"{name} must be rows of numbers, each with the same length"
    try:
        table = np.asarray(x, dtype=object)
    except ValueError:
        return msg
    if table.ndim != 2:
        return msg
    for place, column in enumerate(table.T):
        wrong = next((value for value in column if _numbers(value) is None), None)
        if wrong is not None:
            label = getattr(x, "columns", range(table.shape[1]))[place]
            return (
                f"{name} must hold numbers, but column {label!r} has values such as {wrong!r};"
                " encode it, for example with sklearn.preprocessing.OneHotEncoder, or leave it out"
            )
    return msg


def _labels(name: str, y: Any, known: Sequence[str] = ()) -> Labels:  # noqa: ANN401 # whatever NumPy holds
    """Return labels as numbers, and the names of their classes if they are text."""
    numbers = None if known else _numbers(y)
    if numbers is None:
        return encoded(name, _one_per_sample(name, np.array(y, dtype=object)), known)
    labels = _one_per_sample(name, numbers)
    # beyond 2**53 a float64 cannot tell whole numbers apart; NaN and infinity fail the bound too
    is_whole = np.all((abs(labels) < 2.0**53) & (labels == np.rint(labels)))
    return (frozen(labels.astype(np.int64)) if is_whole else labels), ()


def _one_per_sample(name: str, labels: NDArray[Any]) -> NDArray[Any]:
    """Return one label per sample; a table of a single column is one."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        return labels[:, 0]
    if labels.ndim == 1:
        return labels
    hint = f"; of a column per class, give {name}.argmax(axis=1)" if labels.ndim == 2 else ""
    raise ConfigError(f"{name} must be one number per sample, not of the shape {labels.shape}{hint}")


def encoded(name: str, labels: NDArray[Any], known: Sequence[str] = ()) -> Labels:
    """Return labels of text, object[n], as int64[n], and the names that the numbers stand for."""
    wrong = [place for place, label in enumerate(labels) if not isinstance(label, str)]
    if wrong:
        msg = f"{name} must be one number per sample, or text for each, but {name}[{wrong[0]}] is {labels[wrong[0]]!r}"
        raise ConfigError(msg)
    texts = labels.astype(np.str_)
    names = tuple(known) or tuple(np.unique(texts).tolist())
    unknown = sorted(set(texts.tolist()) - set(names))
    if unknown:
        raise unknown_name(f"class in {name}:", unknown[0], names)
    return frozen(np.searchsorted(names, texts).astype(np.int64)), names


def _numbers(values: Any) -> Floats | None:  # noqa: ANN401 # whatever NumPy holds
    try:
        return frozen(np.ascontiguousarray(values, dtype=np.float64))
    except (TypeError, ValueError):
        return None
