"""Data as users of a framework have them: arrays, tensors, frames, map-style datasets."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from distsgd.data.split import Labels, array_of, converted, encoded
from distsgd.errors import ConfigError, raised, shown
from distsgd.samples.dataset import Data

_EXPECTED = "(x, y), (x, y, test_x, test_y), a map-style dataset of pairs (x, y), two of these, or Data"
_TEXT = "OTU"
"""Kinds of NumPy's types that hold text."""


def samples_of(data: Any, *, name: str = "arrays") -> Data:  # noqa: ANN401 # whatever holds numbers
    """Return data of any shape; nothing is set aside, and every number keeps its type.

    What is no `Data` yet is two things ``(x, y)`` or four ``(x, y, test_x, test_y)`` that NumPy
    understands, or a map-style dataset: an object with a length whose items are pairs ``(x, y)``.
    A pair of datasets is one for training and one for testing. Labels of text are numbered.
    """
    if isinstance(data, Data):
        return data
    x, y, *test = _parts(data)
    table, (labels, classes) = array_of("x", x), _labels("y", y)
    if not test:
        return Data(name, table, labels, table[:0], labels[:0], classes)
    return Data(name, table, labels, array_of("test_x", test[0]), _labels("test_y", test[1], classes)[0], classes)


def _parts(data: Any) -> tuple[Any, ...]:  # noqa: ANN401 # as above
    """Return samples and labels, for training and perhaps for testing."""
    if _is_dataset(data):
        return _read(data)
    if isinstance(data, (tuple, list)):
        if len(data) == 2 and all(map(_is_dataset, data)):
            return *_read(data[0]), *_read(data[1])
        if len(data) in {2, 4}:
            return tuple(data)
        raise ConfigError(f"data must be {_EXPECTED}, not {len(data)} things")
    hint = "; an iterable must be read first: give its dataset, or arrays" if isinstance(data, Iterable) else ""
    raise ConfigError(f"data must be {_EXPECTED}, not {shown(data)}{hint}")


def _is_dataset(data: object) -> bool:
    has_items = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    return has_items and not hasattr(data, "__array__") and not isinstance(data, (tuple, list, str, bytes, Mapping))


def _read(dataset: Any) -> tuple[Any, Any]:  # noqa: ANN401 # of any framework
    pairs = [_pair(dataset, place) for place in range(len(dataset))]
    if not pairs:
        raise ConfigError("data must have samples, but the dataset is empty")
    xs, ys = zip(*pairs, strict=True)
    return _stacked("x", xs), _stacked("y", ys)


def _pair(dataset: Any, place: int) -> tuple[Any, Any]:  # noqa: ANN401 # as above
    try:
        pair = dataset[place]
    except Exception as error:  # noqa: BLE001 # the user's own code
        raise ConfigError(f"data must be a dataset that can be read, but item {place} raised {raised(error)}") from None
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ConfigError(f"data must be a dataset of pairs (x, y), but item {place} is {shown(pair)}")
    return pair[0], pair[1]


def _stacked(name: str, values: tuple[Any, ...]) -> Any:  # noqa: ANN401 # numbers, or text
    arrays = [np.asarray(value) for value in values]
    for place, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            what = f"{name} must have one shape in each sample, but has {array.shape} in sample {place}"
            raise ConfigError(f"{what} and {arrays[0].shape} in the first; pad or crop it")
    return np.stack(arrays)


def _labels(name: str, y: Any, known: tuple[str, ...] = ()) -> Labels:  # noqa: ANN401 # as above
    array = converted(name, y)
    is_text = array.dtype.kind in _TEXT
    return encoded(name, array.astype(object), known) if is_text else (array_of(name, array), ())
