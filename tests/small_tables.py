"""Small tables with many zeros, and their sparse rows: what tests of sparse data share."""

import numpy as np
import scipy.sparse
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from distsgd.sparse import Sparse, from_scipy

tables = arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(1, 6)), elements=st.sampled_from([0, 1, -2]))


def rows_of(table: object) -> Sparse:
    """Return the sparse rows of a table."""
    return from_scipy(scipy.sparse.csr_matrix(table))
