"""Files in the svmlight format: one sample per line, a label and its non-zeros.

scikit-learn parses. When it fails, or finds a number that is not finite, the file is read once more
with every line put in order first: that is slow, forgives columns that do not ascend, and knows the
line that cannot be forgiven.
"""

import bz2
import gzip
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np

from distsgd.data.split import from_arrays
from distsgd.errors import ConfigError
from distsgd.samples.dataset import Data
from distsgd.samples.scaling import Scale

_MOST_COLUMNS = 2**31 - 1
"""The parser's bound, above which it fails."""

ZeroBased: TypeAlias = bool | Literal["auto"]


def svmlight(
    path: str | Path,
    *,
    test_path: str | Path | None = None,
    test: float = 0.2,
    seed: int = 0,
    zero_based: ZeroBased = "auto",
    scale: Scale = None,
) -> Data:
    """Read data from a file in the svmlight (LIBSVM) format, compressed with gzip, bzip2 or not.

    A line is ``label column:value column:value ...``; what follows ``#`` is a comment, and a
    ``qid:`` is ignored. Columns need not ascend, and values of the same column are summed.

    Parameters
    ----------
    path : str or Path
        The samples.
    test_path : str or Path, default None
        Test samples. Then all of `path` is for training.
    test : float, default 0.2
        Share of the samples set aside for testing where there is no `test_path`, >= 0 and < 1.
    seed : int, default 0
        Seed of the split, >= 0.
    zero_based : bool or "auto", default "auto"
        Whether columns count from 0 or from 1. "auto" means from 1, unless a column 0 occurs.
    scale : "standard", optional
        Divide each feature by its greatest value among the training samples.

    Returns
    -------
    Data
        Sparse; labels that are whole numbers are class labels.

    Raises
    ------
    ConfigError
        If a file is missing, cut off or empty, or has a line that cannot be read: it says which.
    """
    paths = [Path(path)] if test_path is None else [Path(path), Path(test_path)]
    x, y, *others = _load(paths, zero_based)
    for one, labels in zip(paths, [y, *others[1::2]], strict=True):
        if not labels.size:
            raise ConfigError(f"{one} must have at least one sample, but has none")
    aside = dict(zip(("test_x", "test_y"), others, strict=False))
    return from_arrays(x, y, **aside, test=test, seed=seed, name=paths[0].name, scale=scale)


def _load(paths: Sequence[Path], zero_based: ZeroBased) -> list[Any]:
    """Return the matrix and the labels of each file, one after the other."""
    tables = _parsed([_Lines(path, bytes) for path in paths], zero_based)
    numbers = [*(matrix.data for matrix in tables[::2]), *tables[1::2]]
    if tables and all(np.isfinite(one).all() for one in numbers):
        return tables
    files = [_Lines(path, _in_order) for path in paths]
    tables = _parsed(files, zero_based)
    if not tables:
        broken = next(one for one in reversed(files) if one.number)
        first = int(zero_based is False)
        raise ConfigError(
            f"{broken.path}, line {broken.number} must be a finite label and column:value pairs, "
            f"columns from {first} to {_MOST_COLUMNS} and finite values, not {broken.start!r}"
        )
    return tables


def _parsed(files: Sequence["_Lines"], zero_based: ZeroBased) -> list[Any]:
    """Return the tables of files, or nothing if a line cannot be read."""
    from sklearn.datasets import load_svmlight_files  # noqa: PLC0415 # costs most of a second

    try:
        tables: list[Any] = load_svmlight_files(files, zero_based=zero_based)
    except ConfigError:
        raise
    except (ValueError, OverflowError):
        return []
    return tables


class _Lines:
    """The lines of a file, counted while a parser reads them, so that an error can name one."""

    def __init__(self, path: Path, prepare: Callable[[bytes], bytes]) -> None:
        self.path = path
        self.number = 0
        self.start = ""
        self._prepare = prepare

    def __iter__(self) -> Iterator[bytes]:
        try:
            with _open(self.path) as file:
                for line in file:
                    self.number += 1
                    self.start = line[:60].decode(errors="replace").rstrip()
                    yield self._prepare(line)
        except EOFError:
            raise ConfigError(f"{self.path} is cut off after line {self.number}; copy or download it again") from None
        except (OSError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"{self.path} must be a file that can be read: {reason}") from None

    def read(self) -> bytes:
        """Return nothing: scikit-learn takes for a file what has this method, and only iterates."""
        return b""


def _open(path: Path) -> BinaryIO:
    """Open by the content's first bytes, since a name may lie about the compression."""
    with path.open("rb") as file:
        magic = file.read(3)
    if magic.startswith(b"\x1f\x8b"):
        return gzip.open(path)  # type: ignore[return-value] # a binary stream that is no BinaryIO
    if magic == b"BZh":
        return bz2.open(path)  # type: ignore[return-value] # as above
    return path.open("rb")


def _in_order(line: bytes) -> bytes:
    """Return a line with ascending, distinct columns; raise ValueError if it is broken."""
    label, *pairs = line.split(b"#", 1)[0].split() or [b""]
    if not label:
        return b""
    values: dict[int, float] = {}
    if pairs and pairs[0].startswith(b"qid:"):
        del pairs[0]
    for pair in pairs:
        column, value = pair.split(b":", 1)
        values[int(column)] = values.get(int(column), 0.0) + float(value)
    if not all(map(math.isfinite, [float(label), *values.values()])):
        raise ValueError(line)
    return b" ".join([label, *(b"%d:%r" % (column, values[column]) for column in sorted(values))])
