"""Data: bundled, from files, synthetic or the caller's own, always checked and split."""

from distsgd.data.dataset import Data
from distsgd.data.digits import digits
from distsgd.data.rows import Sparse
from distsgd.data.split import from_arrays
from distsgd.data.statistics import Statistics

__all__ = ["Data", "Sparse", "Statistics", "digits", "from_arrays"]
