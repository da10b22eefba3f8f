import numpy as np
import pytest
from hypothesis import given, settings
from small_tables import rows_of, tables

from distsgd.data import from_arrays
from distsgd.samples import overlap as module
from distsgd.samples.overlap import statistics

X = [[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]]
Y = [0, 1, 0]


def _brute_force(table: np.ndarray) -> tuple[int, float, float]:
    edges = [set(np.flatnonzero(row)) for row in table]
    n = len(edges)
    delta = max(sum(v in e for e in edges) for v in range(table.shape[1])) / n
    rho = max(sum(bool(e & other) for other in edges) for e in edges) / n
    return max(map(len, edges)), delta, rho


@settings(deadline=None)
@given(tables)
def test_statistics_are_their_definitions(table: np.ndarray) -> None:
    """Omega, Delta and rho equal Hogwild!'s definitions, counted one edge at a time."""
    found = statistics(rows_of(table))
    assert found[:3] == _brute_force(table)
    assert found.is_exact


def test_statistics_say_when_rho_is_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that is cut short says so, with the rows it has seen, and never overestimates."""
    table = np.kron(np.eye(10), np.array([[1, 0], [1, 1], [0, 1]]))
    exact = statistics(rows_of(table))
    monkeypatch.setattr(module, "_WORK", 0.0)
    cut = statistics(rows_of(table))
    assert exact.is_exact
    assert cut.rho <= exact.rho
    assert (cut.is_exact, cut.rows_searched) == (False, 1)


def test_dense_rows_overlap_in_everything() -> None:
    """Every gradient of dense data touches every coordinate."""
    assert from_arrays(X, Y, test=0).statistics[:3] == (2, 1.0, 1.0)
