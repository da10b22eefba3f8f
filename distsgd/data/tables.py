"""Data from tables with named columns: CSV and Parquet files, and frames of Polars or pandas."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distsgd.samples.dataset import Data
from distsgd.samples.scaling import Scale


def csv(
    path: str | Path,
    label: str,
    *,
    features: Sequence[str] | None = None,
    test_path: str | Path | None = None,
    test: float = 0.2,
    seed: int = 0,
    scale: Scale = None,
    separator: str = ",",
) -> Data:
    """Read data from a CSV file, whose first line names the columns; gzip is undone.

    A column is numbers; ``true`` and ``false`` are 1 and 0. Only labels may be text.

    Parameters
    ----------
    path : str or Path
        The samples, one per line.
    label : str
        The column with the labels. Text is numbered in the order of the alphabet, and
        ``data.classes`` keeps the names.
    features : sequence of str, optional
        The columns with the features, in this order; by default all others.
    test_path : str or Path, optional
        Test samples, with the same columns. Then all of `path` is for training.
    test : float, default 0.2
        Share of the samples set aside for testing where there is no `test_path`, >= 0 and < 1.
    seed : int, default 0
        Seed of the split, >= 0.
    scale : "standard", optional
        Scale the features to mean 0 and deviation 1, by what the training samples say.
    separator : str, default ","
        What stands between two cells, a single byte.

    Returns
    -------
    Data
        Dense; labels that are whole numbers are class labels.

    Raises
    ------
    ConfigError
        If a file is missing, empty or no CSV, has no such column, or a cell is empty, or text
        among numbers: it says the line and the column.
    """
    from distsgd.data import columns  # noqa: PLC0415 # Polars, which few need, starts threads

    train = columns.read_csv(path, separator)
    aside = None if test_path is None else columns.read_csv(test_path, separator)
    return columns.data_of(train, aside, label, features, test=test, seed=seed, scale=scale, name=Path(path).name)


def parquet(
    path: str | Path,
    label: str,
    *,
    features: Sequence[str] | None = None,
    test_path: str | Path | None = None,
    test: float = 0.2,
    seed: int = 0,
    scale: Scale = None,
) -> Data:
    """Read data from a Parquet file.

    Parameters
    ----------
    path : str or Path
        The samples, one per row.
    label : str
        The column with the labels: numbers, or text, whose names ``data.classes`` keeps.
    features : sequence of str, optional
        The columns with the features, in this order; by default all others.
    test_path : str or Path, optional
        Test samples, with the same columns. Then all of `path` is for training.
    test : float, default 0.2
        Share of the samples set aside for testing where there is no `test_path`, >= 0 and < 1.
    seed : int, default 0
        Seed of the split, >= 0.
    scale : "standard", optional
        Scale the features to mean 0 and deviation 1, by what the training samples say.

    Returns
    -------
    Data
        Dense; labels that are whole numbers are class labels.

    Raises
    ------
    ConfigError
        If a file is missing, empty or no Parquet file, has no such column, or a cell is empty or
        no number: it says the row and the column.
    """
    from distsgd.data import columns  # noqa: PLC0415 # Polars, which few need, starts threads

    train = columns.read_parquet(path)
    aside = None if test_path is None else columns.read_parquet(test_path)
    return columns.data_of(train, aside, label, features, test=test, seed=seed, scale=scale, name=Path(path).name)


def frame(
    table: Any,  # noqa: ANN401 # a DataFrame of Polars or pandas
    label: str,
    *,
    features: Sequence[str] | None = None,
    test_table: Any = None,  # noqa: ANN401 # as above
    test: float = 0.2,
    seed: int = 0,
    scale: Scale = None,
    name: str = "frame",
) -> Data:
    """Make data from a DataFrame of Polars or pandas.

    Parameters
    ----------
    table : DataFrame
        One row per sample.
    label : str
        The column with the labels: numbers, or text, whose names ``data.classes`` keeps. A column
        of pandas whose name is no text is called by what ``str`` makes of it.
    features : sequence of str, optional
        The columns with the features, in this order; by default all others.
    test_table : DataFrame, optional
        Test samples, with the same columns. Then all of `table` is for training.
    test : float, default 0.2
        Share of the samples set aside for testing where there is no `test_table`, >= 0 and < 1.
    seed : int, default 0
        Seed of the split, >= 0.
    scale : "standard", optional
        Scale the features to mean 0 and deviation 1, by what the training samples say.
    name : str, default "frame"
        What reports call the data.

    Returns
    -------
    Data
        Dense; labels that are whole numbers are class labels.

    Raises
    ------
    ConfigError
        If a table is none or empty, has no such column, or a cell is empty or no number: it says
        the row and the column.

    Examples
    --------
    >>> import polars
    >>> import distsgd as ds
    >>> table = polars.DataFrame({"length": [1.0, 2.0, 4.0, 5.0], "kind": ["a", "a", "b", "b"]})
    >>> data = ds.data.frame(table, "kind", test=0.0)
    >>> data.classes, data.y.tolist()
    (('a', 'b'), [0, 0, 1, 1])
    """
    from distsgd.data import columns  # noqa: PLC0415 # as above

    train = columns.from_frame("table", table)
    aside = None if test_table is None else columns.from_frame("test_table", test_table)
    return columns.data_of(train, aside, label, features, test=test, seed=seed, scale=scale, name=name)
