"""Columns of a table as numbers and labels; what is neither is an error that says where it stands.

1. A file of text is read as text. A column is numbers if each of its cells is one, ``true`` and
   ``false`` being 1 and 0; otherwise none of them may be.
2. A column of text is a label, or an error: which numbers stand for it is for the user to say.
"""

import contextlib
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from distsgd.data.split import from_arrays
from distsgd.errors import ConfigError, check_name, wrong_kind
from distsgd.samples.dataset import Data
from distsgd.sparse import Floats

_ENCODE = (
    "make numbers of it, for example a column of 0 and 1 per value with to_dummies of Polars or"
    " get_dummies of pandas, or leave it out of features"
)


class Table(NamedTuple):
    """A table, what errors call it, and the line of each row if it was a file of text."""

    columns: pl.DataFrame
    name: str
    lines: pl.Series | None = None

    def numbers(self, names: Sequence[str]) -> Floats:
        """Return columns as float64[n, features]."""
        return np.column_stack([self._checked(name, *self._parsed(name)).to_numpy() for name in names])

    def labels(self, name: str) -> Any:  # noqa: ANN401 # numbers or text, for `from_arrays`
        """Return a column as numbers, or as text if no cell is a number."""
        cells, numbers = self._parsed(name)
        is_text = numbers.null_count() == len(numbers) and not cells.has_nulls()
        return cells.to_list() if is_text else self._checked(name, cells, numbers).to_numpy()

    def _parsed(self, name: str) -> tuple[pl.Series, pl.Series]:
        """Return the cells of a column, stripped if they are text, and their numbers."""
        cells = self.columns[name]
        if cells.dtype in (pl.String, pl.Categorical, pl.Enum):
            cells = cells.cast(pl.String).str.strip_chars().replace("", None)
            numbers = cells.cast(pl.Float64, strict=False)
            if numbers.has_nulls():
                truths = {"true": 1.0, "false": 0.0}
                numbers = numbers.fill_null(cells.str.to_lowercase().replace_strict(truths, default=None))
            return cells, numbers
        if cells.dtype.is_numeric() or cells.dtype in (pl.Boolean, pl.Null):
            return cells, cells.cast(pl.Float64)
        raise ConfigError(f"{self.name}, column {name!r} holds {cells.dtype}; make numbers of it, or leave it out")

    def _checked(self, name: str, cells: pl.Series, numbers: pl.Series) -> pl.Series:
        """Return the numbers of a column, or raise a `ConfigError` for the first that is none."""
        is_empty = cells.is_null() | numbers.is_nan().fill_null(value=False)
        is_wrong = ~numbers.is_finite().fill_null(value=False)
        if is_empty.any():
            where = self._place(name, is_empty)
            raise ConfigError(f"{where} is empty or NaN; fill it in, or leave out the row or the column")
        if numbers.null_count() == len(numbers):
            raise ConfigError(f"{self._place(name, is_wrong)} is text, {cells[0]!r}, like the whole column; {_ENCODE}")
        if is_wrong.any():
            first = cells.filter(is_wrong)[0]
            raise ConfigError(f"{self._place(name, is_wrong)} must be a finite number like the others, not {first!r}")
        return numbers

    def _place(self, name: str, is_wrong: pl.Series) -> str:
        """Return where the first cell stands that is wrong."""
        row = is_wrong.arg_true()[0]
        where = f"row {row} (counted from 0)" if self.lines is None else f"line {self.lines[row]}"
        return f"{self.name}, {where}, column {name!r}"


def data_of(
    table: Table,
    aside: Table | None,
    label: str,
    features: Sequence[str] | None,
    **split: Any,  # noqa: ANN401 # keywords of `from_arrays`
) -> Data:
    """Return data whose labels are the column `label`; `aside` holds test samples, if any."""
    chosen = [name for name in table.columns.columns if name != label] if features is None else list(features)
    for one in (table,) if aside is None else (table, aside):
        for name in (label, *chosen):
            check_name(f"column of {one.name}:", name, one.columns.columns)
        if one.columns.is_empty():
            raise ConfigError(f"{one.name} must have at least one sample, but has none")
    if not chosen or label in chosen:
        msg = f"features must be one or more columns of {table.name} besides the label {label!r}, not {chosen}"
        raise ConfigError(msg)
    given = {} if aside is None else {"test_x": aside.numbers(chosen), "test_y": aside.labels(label)}
    return from_arrays(table.numbers(chosen), table.labels(label), **given, **split)


def read_csv(path: str | Path, separator: str) -> Table:
    """Return the table in a file of text; lines without any cell are left out."""
    if not isinstance(separator, str) or len(separator.encode()) != 1:
        raise ConfigError(f"separator must be a single byte such as ';', not {separator!r}")
    try:
        with _readable(path):
            text = pl.read_csv(path, separator=separator, infer_schema=False, glob=False)
            columns = text.rename(lambda name: name.strip())
    except ConfigError:
        _check_widths(Path(path), separator)
        raise
    is_row = ~text.select(pl.all_horizontal(pl.all().is_null())).to_series()
    breaks = text.select(pl.sum_horizontal(pl.all().str.count_matches("\n", literal=True))).to_series()
    lines = 2 + pl.int_range(len(text), eager=True) + breaks.cum_sum().shift(1, fill_value=0)  # the first one is names
    return Table(columns.filter(is_row), str(path), lines.filter(is_row))


def _check_widths(path: Path, separator: str) -> None:
    """Raise a `ConfigError` that names the first line with too many cells, as Polars does not."""
    with contextlib.suppress(OSError, csv.Error), path.open(newline="", errors="replace") as file:
        lines = csv.reader(file, delimiter=separator)
        n_names = len(next(lines, ()))
        for cells in lines:
            if len(cells) > n_names:
                raise ConfigError(f"{path}, line {lines.line_num} has {len(cells)} cells, and line 1 {n_names} names")


def read_parquet(path: str | Path) -> Table:
    """Return the table in a Parquet file."""
    with _readable(path):
        return Table(pl.read_parquet(path, glob=False), str(path))


@contextlib.contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    """Let what keeps a file from being read be a `ConfigError`."""
    if not Path(path).is_file():
        raise ConfigError(f"{path} must be a file that can be read, but there is none")
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise ConfigError(f"{path} must be a file that can be read: {reason}") from None


def from_frame(name: str, table: Any) -> Table:  # noqa: ANN401 # a table of Polars or pandas
    """Return a table of Polars, or one of pandas, whose columns then have names of text."""
    if isinstance(table, pl.DataFrame):
        return Table(table, name)
    if not (hasattr(table, "columns") and hasattr(table, "iloc")):
        raise wrong_kind(name, "a DataFrame of pandas or Polars", table)
    if not table.columns.is_unique:
        raise ConfigError(f"{name} must have columns of different names, not {list(table.columns)}")
    columns = [_series(str(label), table[label]) for label in table.columns]
    return Table(pl.DataFrame(columns), name)


def _series(name: str, column: Any) -> pl.Series:  # noqa: ANN401 # a Series of pandas
    """Return a column of pandas, without pyarrow, which its own way to Polars needs."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf":
        return pl.Series(name, column.to_numpy())
    return pl.Series(name, column.astype(object).where(column.notna(), None).tolist(), strict=False)
