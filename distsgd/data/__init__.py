"""Data: bundled, from files, synthetic or the caller's own, always checked and split."""

from distsgd.data.arrays import npy, npz
from distsgd.data.digits import digits
from distsgd.data.split import from_arrays
from distsgd.data.svmlight import svmlight
from distsgd.data.synthetic import sparse
from distsgd.data.tables import csv, frame, parquet
from distsgd.samples.dataset import Data
from distsgd.samples.overlap import Statistics
from distsgd.sparse import Sparse

__all__ = ["Data", "Sparse", "Statistics", "csv", "digits", "frame", "from_arrays"]
__all__ += ["npy", "npz", "parquet", "sparse", "svmlight"]
