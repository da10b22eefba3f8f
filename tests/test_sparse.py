import numpy as np
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tables import rows_of, tables

from distsgd.sparse import explicit, from_scipy


@settings(deadline=None)
@given(tables)
def test_sparse_rows_are_the_table(table: np.ndarray) -> None:
    """Rows, shapes, lengths and counts agree with the dense table."""
    rows = rows_of(table)
    assert np.array_equal(rows.dense(), table)
    assert rows.shape == table.shape
    assert np.array_equal(rows.lengths, np.count_nonzero(table, axis=1))
    assert np.array_equal(rows.counts, np.count_nonzero(table, axis=0))


@settings(deadline=None)
@given(tables, st.lists(st.integers(0, 99), max_size=9))
def test_taking_rows_is_indexing(table: np.ndarray, chosen: list[int]) -> None:
    """Rows are taken in any order and more than once, as from the dense table."""
    index = np.array(chosen, dtype=np.int64) % len(table)
    assert np.array_equal(rows_of(table).take(index).dense(), table[index])
    assert np.array_equal(explicit(table).take(index).dense(), table[index])


def test_entries_of_the_same_place_are_summed() -> None:
    """A SciPy matrix with duplicates means their sum, and the caller's matrix is left alone."""
    matrix = scipy.sparse.csr_matrix((np.ones(3), [1, 0, 1], [0, 3]), shape=(1, 2))
    assert from_scipy(matrix).dense().tolist() == [[1.0, 2.0]]
    assert matrix.nnz == 3
