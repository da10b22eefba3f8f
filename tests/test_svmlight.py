import bz2
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import dump_svmlight_file

from distsgd.data import Data, Sparse, svmlight
from distsgd.data.svmlight import _in_order
from distsgd.errors import ConfigError

LINES = b"1 1:0.5 3:2\n-1 2:1 # a comment\n# a whole line of it\n\n1 qid:7 3:-4\n"


def _whole(path: Path, **options: object) -> tuple[Sparse, np.ndarray]:
    data = svmlight(path, test=0, **options)  # type: ignore[arg-type] # tests pass what users might
    assert isinstance(data.x, Sparse)
    return data.x, data.y


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a file and returns its path."""

    def written(content: bytes, name: str = "data.svm") -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return written


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress])
def test_round_trip_with_scikit_learn(
    pack: Callable[[bytes], bytes], tmp_path: Path, write: Callable[..., Path]
) -> None:
    """What scikit-learn has written is read back bit for bit, plain or compressed."""
    draws = np.random.default_rng(0)
    # 6 digits, since scikit-learn writes 16 and a float64 needs 17
    table = draws.normal(size=(30, 7)).round(6) * (draws.random((30, 7)) < 0.4)
    table[0] = 1.0
    labels = draws.integers(0, 3, 30)
    dump_svmlight_file(table, labels, str(tmp_path / "plain"), zero_based=False)
    rows, read = _whole(write(pack((tmp_path / "plain").read_bytes())))
    assert np.array_equal(rows.dense(), table)
    assert np.array_equal(read, labels)


def test_comments_and_query_ids_are_skipped(write: Callable[..., Path]) -> None:
    """Comments, empty lines and query ids carry no data."""
    rows, labels = _whole(write(LINES))
    assert rows.dense().tolist() == [[0.5, 0.0, 2.0], [0.0, 1.0, 0.0], [0.0, 0.0, -4.0]]
    assert labels.tolist() == [1, -1, 1]


def test_columns_count_from_zero_when_a_zero_occurs(write: Callable[..., Path]) -> None:
    """A column 0 anywhere makes all columns count from 0, and the caller can decide instead."""
    assert _whole(write(b"1 0:1 2:1\n-1 1:1\n"))[0].features == 3
    assert _whole(write(b"1 1:1 2:1\n-1 1:1\n"))[0].features == 2
    assert _whole(write(b"1 1:1 2:1\n-1 1:1\n"), zero_based=True)[0].features == 3


def test_columns_in_any_order_are_sorted_and_summed(write: Callable[..., Path]) -> None:
    """Unsorted columns are sorted and values of the same column are summed."""
    rows, _ = _whole(write(b"1 3:1 1:2\n2 2:1 2:0.5\n"))
    assert rows.dense().tolist() == [[2.0, 0.0, 1.0], [0.0, 1.5, 0.0]]
    assert rows.columns.tolist() == [0, 2, 1]


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 99), st.floats(allow_nan=False, allow_infinity=False), max_size=9))
def test_order_keeps_every_bit(values: dict[int, float]) -> None:
    """Putting a line in order changes no value."""
    line = "1 " + " ".join(f"{column}:{value!r}" for column, value in reversed(values.items()))
    _, *pairs = _in_order(line.encode()).split()
    read = [pair.split(b":") for pair in pairs]
    assert [(int(column), float(value)) for column, value in read] == sorted(values.items())


def test_numbers_as_labels_stay_numbers(write: Callable[..., Path]) -> None:
    """Whole labels become classes, others stay float64."""
    assert _whole(write(LINES))[1].dtype == np.int64
    assert _whole(write(b"0.5 1:1\n2 1:1\n"))[1].dtype == np.float64


def test_a_test_file_has_the_columns_of_the_training_file(write: Callable[..., Path]) -> None:
    """With a test file all of the first file is for training, and both have the same columns."""
    data: Data = svmlight(write(LINES), test_path=write(b"1 2:1\n", "test.svm"))
    assert (data.x.shape, data.test_x.shape) == ((3, 3), (1, 3))


def test_split_sets_a_share_aside(write: Callable[..., Path]) -> None:
    """Without a test file a share of the samples is set aside."""
    data = svmlight(write(LINES * 10), test=0.3)
    assert (data.x.shape[0], data.test_x.shape[0]) == (21, 9)


@pytest.mark.parametrize(
    "broken",
    [
        b"1:2 2:3",
        b"x 1:2",
        b"1,2 1:2",
        b"1 1:abc",
        b"1 a:1",
        b"1 1 2:3",
        b"1 -3:1",
        b"1 99999999999:1",
        b"1 999999999999999999999999999:1",
        b"1 1:nan",
        b"1 1:1 2:inf",
        b"nan 1:1",
        b"\xff\xfe 1:3",
        b"1 2:1 2:x",
    ],
)
def test_a_broken_line_is_named(broken: bytes, write: Callable[..., Path]) -> None:
    """The message says which file and which line, counted from 1 with comments and empty lines."""
    path = write(LINES + broken + b"\n" + LINES)
    with pytest.raises(ConfigError, match=f"^{path}, line 6 must be a finite label"):
        svmlight(path)


def test_a_broken_line_of_the_test_file_is_named(write: Callable[..., Path]) -> None:
    """The file that is blamed is the one that is broken."""
    path = write(b"1 1:1\n1 1:x\n", "test.svm")
    with pytest.raises(ConfigError, match=f"^{path}, line 2 "):
        svmlight(write(LINES), test_path=path)


@pytest.mark.parametrize("content", [b"", b"# nothing\n\n", gzip.compress(b"", mtime=0)])
def test_a_file_without_samples_is_refused(content: bytes, write: Callable[..., Path]) -> None:
    """An empty file is an error and not empty data."""
    with pytest.raises(ConfigError, match="must have at least one sample"):
        svmlight(write(content))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_a_truncated_file_is_refused(pack: Callable[[bytes], bytes], write: Callable[..., Path]) -> None:
    """A compressed file that is cut off gives no part of its data."""
    with pytest.raises(ConfigError, match="is cut off after line"):
        svmlight(write(pack(LINES * 1000)[:-20]))


def test_a_damaged_file_is_refused(write: Callable[..., Path]) -> None:
    """A compressed file with a wrong checksum gives no data."""
    content = bytearray(gzip.compress(LINES * 10))
    content[-6] ^= 1
    with pytest.raises(ConfigError, match="must be a file that can be read"):
        svmlight(write(bytes(content)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A file that does not exist, or is a folder, is the caller's error."""
    with pytest.raises(ConfigError, match=r"none\.svm must be a file that can be read: No such file"):
        svmlight(tmp_path / "none.svm")
    with pytest.raises(ConfigError, match="must be a file that can be read: Is a directory"):
        svmlight(tmp_path)
