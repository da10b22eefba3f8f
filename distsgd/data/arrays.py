"""Files of NumPy arrays: NPY, one array each, and NPZ, several by name. Nothing is unpickled."""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile

from distsgd.data.split import from_arrays
from distsgd.errors import ConfigError, check_name
from distsgd.samples.dataset import Data
from distsgd.samples.scaling import Scale


def npy(
    path: str | Path,
    label_path: str | Path,
    *,
    test_path: str | Path | None = None,
    test_label_path: str | Path | None = None,
    test: float = 0.2,
    seed: int = 0,
    scale: Scale = None,
) -> Data:
    """Read data from two NPY files, which ``numpy.save`` writes: samples, and their labels.

    Parameters
    ----------
    path : str or Path
        The samples, one row each.
    label_path : str or Path
        Their labels: numbers, or text, whose classes ``data.classes`` keeps.
    test_path, test_label_path : str or Path, optional
        Test samples and their labels. Then all of `path` is for training.
    test : float, default 0.2
        Share of the samples set aside for testing where there are none, >= 0 and < 1.
    seed : int, default 0
        Seed of the split, >= 0.
    scale : "standard", optional
        Scale the features to mean 0 and deviation 1, by what the training samples say.

    Returns
    -------
    Data
        What `distsgd.data.from_arrays` makes of the arrays.

    Raises
    ------
    ConfigError
        If a file is missing, no array, or holds objects, or if the arrays do not fit together.
    """
    paths = {"x": path, "y": label_path, "test_x": test_path, "test_y": test_label_path}
    arrays = {}
    for name, one in paths.items():
        if one is not None:
            with _opened(one, np.ndarray) as array:
                arrays[name] = array
    return _data(path, arrays, test=test, seed=seed, scale=scale)


def npz(
    path: str | Path,
    *,
    x: str = "x",
    y: str = "y",
    test_x: str = "test_x",
    test_y: str = "test_y",
    test: float = 0.2,
    seed: int = 0,
    scale: Scale = None,
) -> Data:
    """Read data from an NPZ file, which ``numpy.savez`` writes.

    Parameters
    ----------
    path : str or Path
        The file.
    x, y : str
        Names of the arrays of samples, one row each, and of labels, numbers or text.
    test_x, test_y : str
        Names of those of test samples. If the file has no "test_x" and "test_y" and no others are
        named, a share `test` is set aside.
    test : float, default 0.2
        That share, >= 0 and < 1.
    seed : int, default 0
        Seed of the split, >= 0.
    scale : "standard", optional
        Scale the features to mean 0 and deviation 1, by what the training samples say.

    Returns
    -------
    Data
        What `distsgd.data.from_arrays` makes of the arrays.

    Raises
    ------
    ConfigError
        If the file is missing, no NPZ file, lacks an array, or holds objects, or if the arrays do
        not fit together.
    """
    names = {"x": x, "y": y, "test_x": test_x, "test_y": test_y}
    with _opened(path, NpzFile) as file:
        for kind, name in names.copy().items():
            if kind == name and kind in {"test_x", "test_y"} and name not in file:
                del names[kind]
            else:
                check_name(f"array of {path}:", name, file.files)
        arrays = {kind: file[name] for kind, name in names.items()}
    return _data(path, arrays, test=test, seed=seed, scale=scale)


@contextlib.contextmanager
def _opened(path: str | Path, kind: type) -> Iterator[Any]:
    """Give what NumPy reads from a file, of that kind; what keeps it from it is a `ConfigError`."""
    try:
        with Path(path).open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if not isinstance(found, kind):
                raise ConfigError(f"{path} must be read by npy if it holds one array, and by npz if it holds several")
            yield found
    except ConfigError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        msg = f"{path} must be a file of numbers or text that numpy.save or numpy.savez wrote: {reason}"
        raise ConfigError(msg) from None


def _data(path: str | Path, arrays: dict[str, Any], **split: Any) -> Data:  # noqa: ANN401 # keywords of `from_arrays`
    try:
        return from_arrays(**arrays, **split, name=Path(path).name)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
