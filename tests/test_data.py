import numpy as np
import pytest
import scipy.sparse
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from distsgd.data import Data, Sparse, digits, from_arrays, sparse
from distsgd.data.split import split
from distsgd.errors import ConfigError
from distsgd.kernels.draws.sampling import find_leaf, set_weight
from distsgd.samples import overlap as module
from distsgd.samples.overlap import statistics
from distsgd.sparse import explicit, from_scipy

X = [[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]]
Y = [0, 1, 0]
tables = arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(1, 6)), elements=st.sampled_from([0, 1, -2]))


def _rows_of(table: object) -> Sparse:
    return from_scipy(scipy.sparse.csr_matrix(table))


def test_digits_are_the_whole_collection() -> None:
    """The digits are 1,797 images of 64 pixels in [0, 1] in 10 classes, a fifth set aside."""
    data = digits()
    assert (data.x.shape, data.test_x.shape) == ((1437, 64), (360, 64))
    assert (data.x.min(), data.x.max()) == (0.0, 1.0)
    assert set(data.y) == set(data.test_y) == set(range(10))


def test_digits_are_always_the_same() -> None:
    """The split is fixed by its seed."""
    assert digits().digest == digits(seed=0).digest != digits(seed=1).digest


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=60), st.floats(0, 0.9), st.integers(0, 9))
def test_split_is_a_stratified_partition(labels: list[int], share: float, seed: int) -> None:
    """Every sample is in one part, and each class its share in the test part, give or take 1."""
    y = np.array(labels)
    assume(np.ceil(y.size * share) < y.size)
    train, aside = split(y, share, seed)
    assert sorted([*train, *aside]) == list(range(y.size))
    for label in set(labels):
        expected = share * np.count_nonzero(y == label)
        assert abs(np.count_nonzero(y[aside] == label) - expected) <= 1


def test_split_shuffles() -> None:
    """Another seed sets other samples aside."""
    y = np.zeros(100, dtype=np.int64)
    assert not np.array_equal(split(y, 0.2, 0)[1], split(y, 0.2, 1)[1])


def test_split_leaves_a_sample() -> None:
    """A share that would leave nothing to train on is refused."""
    with pytest.raises(ConfigError, match="test must leave a sample of 1 for training"):
        from_arrays([[1.0]], [1], test=0.5)


@settings(deadline=None)
@given(tables)
def test_sparse_rows_are_the_table(table: np.ndarray) -> None:
    """Rows, shapes, lengths and counts agree with the dense table."""
    rows = _rows_of(table)
    assert np.array_equal(rows.dense(), table)
    assert rows.shape == table.shape
    assert np.array_equal(rows.lengths, np.count_nonzero(table, axis=1))
    assert np.array_equal(rows.counts, np.count_nonzero(table, axis=0))


@settings(deadline=None)
@given(tables, st.lists(st.integers(0, 99), max_size=9))
def test_taking_rows_is_indexing(table: np.ndarray, chosen: list[int]) -> None:
    """Rows are taken in any order and more than once, as from the dense table."""
    index = np.array(chosen, dtype=np.int64) % len(table)
    assert np.array_equal(_rows_of(table).take(index).dense(), table[index])
    assert np.array_equal(explicit(table).take(index).dense(), table[index])


def test_entries_of_the_same_place_are_summed() -> None:
    """A SciPy matrix with duplicates means their sum, and the caller's matrix is left alone."""
    matrix = scipy.sparse.csr_matrix((np.ones(3), [1, 0, 1], [0, 3]), shape=(1, 2))
    assert from_scipy(matrix).dense().tolist() == [[1.0, 2.0]]
    assert matrix.nnz == 3


@pytest.mark.parametrize("make", [np.array, scipy.sparse.csr_matrix, scipy.sparse.coo_matrix])
def test_arrays_cannot_be_written(make: object) -> None:
    """Data are read-only, since their digest is computed once; the caller's array is not."""
    mine = np.array(X)
    data = from_arrays(make(mine), Y, test=0)  # type: ignore[operator] # each is a constructor
    held = data.x.values if isinstance(data.x, Sparse) else data.x
    with pytest.raises(ValueError, match="read-only"):
        held[0] = 5.0
    mine[0, 0] = 5.0


@pytest.mark.parametrize("is_sparse", [False, True])
def test_digest_changes_with_any_number(is_sparse: bool) -> None:
    """The digest depends on every value, label and shape, and on nothing else."""

    def digest(x: object, y: object = Y, name: str = "mine") -> str:
        table = scipy.sparse.csr_matrix(x) if is_sparse else x
        return from_arrays(table, y, test_x=table, test_y=y, name=name).digest

    same = digest(X)
    assert digest(X, name="other") == same
    others = [np.add(X, 1e-12), np.array(X)[:, ::-1], np.hstack([X, np.zeros((3, 1))])]
    assert len({same, digest(X, [0, 1, 1]), digest(X, [0.0, 1.0, 0.5]), *map(digest, others)}) == 6


def test_digest_depends_on_shapes() -> None:
    """The same numbers in the same order, shared out differently, have another digest."""
    wide = from_arrays([[1.5, 2.5], [3.5, 4.5]], [5.5, 6.5], test=0)
    tall = from_arrays([[1.5], [2.5], [3.5]], [4.5, 5.5, 6.5], test=0)
    assert wide.digest != tall.digest


def test_whole_labels_are_classes() -> None:
    """Whole labels become int64, any other number keeps them float64."""
    assert from_arrays(X, [1.0, 2.0, 3.0]).y.dtype == np.int64
    assert from_arrays(X, [True, False, True]).y.dtype == np.int64
    assert from_arrays(X, [1.0, 2.0, 3.5]).y.dtype == np.float64


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([[1.0, 2.0], [3.0]], [0, 1], "x must be rows of numbers, each with the same length"),
        ([["a"]], [0], "x must hold numbers, but column 0 has values such as 'a'; encode it"),
        ([], [], "x must be a table of samples and features, not of the shape \\(0,\\)"),
        ([[], []], [0, 1], "x must have samples and features"),
        (np.empty((0, 3)), [], "x must have samples and features"),
        ([[1.0], [np.nan]], [0, 1], "x must be finite, but x\\[1, 0\\] is nan"),
        ([[1.0], [np.inf]], [0, 1], "x must be finite, but x\\[1, 0\\] is inf"),
        ([[1.0], [2.0]], [0], "y must have 2 labels, one per row of x, not 1"),
        ([[1.0], [2.0]], [0, np.nan], "y must be finite, but y\\[1\\] is nan"),
        ([[1.0], [2.0]], ["a", None], "y must be .*, or text for each, but y\\[1\\] is None"),
        ([[1.0], [2.0]], [[0, 1], [1, 0]], "y must be one number .* give y.argmax\\(axis=1\\)"),
        (scipy.sparse.csr_matrix([[np.nan]]), [0], "x.values must be finite"),
    ],
)
def test_bad_samples_are_named(x: object, y: object, message: str) -> None:
    """Empty, ragged, missing or infinite numbers are the caller's error, in one sentence."""
    with pytest.raises(ConfigError, match=f"^{message}"):
        from_arrays(x, y)


def test_test_samples_must_fit() -> None:
    """Test samples have labels, and the features and the kind of the training samples."""
    with pytest.raises(ConfigError, match="must be given together"):
        from_arrays(X, Y, test_x=X)
    with pytest.raises(ConfigError, match="test_x must have 2 features like x, not 1"):
        from_arrays(X, Y, test_x=[[1.0]], test_y=[1])
    with pytest.raises(ConfigError, match="both be dense or both be sparse"):
        from_arrays(X, Y, test_x=scipy.sparse.csr_matrix(X), test_y=Y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": np.array([0, 9], np.uint32)}, "x.columns must be < 3"),
        ({"columns": np.array([1, 0], np.uint32)}, "x.columns must be distinct and ascend"),
        ({"columns": np.array([1, 1], np.uint32)}, "x.columns must be distinct and ascend"),
        ({"columns": np.array([1], np.uint32)}, "x.columns must have 2 entries"),
        ({"columns": np.array([0, 1], np.int32)}, "x.columns must be a contiguous"),
        ({"starts": np.array([0, 2, 1], np.uint64)}, "x.starts must ascend from 0"),
        ({"starts": np.array([1, 2, 2], np.uint64)}, "x.starts must ascend from 0"),
        ({"starts": np.array([], np.uint64)}, "x.starts must ascend from 0"),
    ],
)
def test_rows_that_would_corrupt_memory_are_refused(change: dict[str, object], message: str) -> None:
    """What compiled loops trust is checked when data are made."""
    good = Sparse(np.ones(2), np.array([0, 2], np.uint32), np.array([0, 2, 2], np.uint64), 3)
    labels, empty = np.zeros(2, np.int64), _rows_of(np.zeros((0, 3)))
    Data("mine", good, labels, empty, labels[:0])
    with pytest.raises(ConfigError, match=f"^{message}"):
        Data("mine", good._replace(**change), labels, empty, labels[:0])  # type: ignore[arg-type]


def test_lists_are_sent_to_the_function_that_converts() -> None:
    """Data takes arrays only, and says what makes them."""
    with pytest.raises(ConfigError, match="from_arrays converts lists"):
        Data("mine", X, Y, X, Y)  # type: ignore[arg-type] # what the test is about


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
    found = statistics(_rows_of(table))
    assert found[:3] == _brute_force(table)
    assert found.is_exact


def test_statistics_say_when_rho_is_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that is cut short says so, with the rows it has seen, and never overestimates."""
    table = np.kron(np.eye(10), np.array([[1, 0], [1, 1], [0, 1]]))
    exact = statistics(_rows_of(table))
    monkeypatch.setattr(module, "_WORK", 0.0)
    cut = statistics(_rows_of(table))
    assert exact.is_exact
    assert cut.rho <= exact.rho
    assert (cut.is_exact, cut.rows_searched) == (False, 1)


def test_dense_rows_overlap_in_everything() -> None:
    """Every gradient of dense data touches every coordinate."""
    assert from_arrays(X, Y, test=0).statistics[:3] == (2, 1.0, 1.0)


@pytest.mark.jit_off
@pytest.mark.bounds
def test_synthetic_rows_have_their_shape() -> None:
    """Rows have distinct ascending columns, norm 1, and labels -1 and 1."""
    data = sparse(40, 30, 5, test_samples=8)
    assert isinstance(data.x, Sparse)
    assert (data.x.shape, data.test_x.shape) == ((40, 30), (8, 30))
    assert (data.x.lengths == 5).all()
    assert np.linalg.norm(data.x.dense(), axis=1) == pytest.approx(np.ones(40))
    assert set(data.y) == {-1, 1}


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 20), st.data())
def test_synthetic_rows_for_any_bounds(features: int, more: st.DataObject) -> None:
    """Every number of non-zeros up to all features can be drawn, at any popularity."""
    nonzeros = more.draw(st.integers(1, features))
    popularity = more.draw(st.floats(0, 100))
    rows = sparse(3, features, nonzeros, popularity, seed=more.draw(st.integers(0, 99))).x
    assert isinstance(rows, Sparse)
    assert (rows.counts <= 3).all()
    assert rows.lengths.tolist() == [nonzeros] * 3


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=8, max_size=8).filter(any), st.floats(0, 1))
@example([1, 2, 0, 0, 0, 0, 0, 0], 1.0)
def test_a_leaf_without_weight_is_never_drawn(weights: list[int], share: float) -> None:
    """The drawn leaf has a weight, and the weights up to it reach the share, 0 and 1 included."""
    tree = np.zeros(16)
    for leaf, weight in enumerate(weights):
        set_weight(tree, leaf, float(weight))
    drawn = find_leaf(tree, share)
    assert weights[drawn] > 0
    assert sum(weights[:drawn]) <= share * sum(weights) <= sum(weights[: drawn + 1])


def test_popularity_is_a_power_law() -> None:
    """With one feature per sample, counts follow the exponent; equal weights are uniform."""
    for exponent in (0.0, 1.1):
        rows = sparse(200_000, 50, 1, exponent, test_samples=0).x
        assert isinstance(rows, Sparse)
        slope = np.polyfit(np.log(1 + np.arange(50)), np.log(rows.counts), 1)[0]
        assert slope == pytest.approx(-exponent, abs=0.03)


def test_noise_is_the_share_of_flipped_labels() -> None:
    """Noise flips that share of the labels and changes nothing else."""
    clean, noisy = (sparse(20_000, 100, 5, noise=noise) for noise in (0.0, 0.2))
    assert isinstance(clean.x, Sparse)
    assert isinstance(noisy.x, Sparse)
    assert np.array_equal(clean.x.values, noisy.x.values)
    assert np.mean(clean.y != noisy.y) == pytest.approx(0.2, abs=0.01)


def test_synthetic_data_are_a_function_of_their_arguments() -> None:
    """The same seed gives the same bits, another seed others; labels of both kinds are balanced."""
    first = sparse(500, 100, 5, seed=1)
    assert first.digest == sparse(500, 100, 5, seed=1).digest != sparse(500, 100, 5, seed=2).digest
    assert abs(np.mean(first.y)) < 0.2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"samples": 0}, "samples"),
        ({"features": 0}, "features"),
        ({"nonzeros": 0}, "nonzeros"),
        ({"nonzeros": 11}, "nonzeros"),
        ({"popularity": -1.0}, "popularity"),
        ({"popularity": 1e9}, "popularity"),
        ({"noise": 0.6}, "noise"),
        ({"noise": float("nan")}, "noise"),
        ({"seed": -1}, "seed"),
        ({"test_samples": -1}, "test_samples"),
    ],
)
def test_bad_shapes_are_named(change: dict[str, float], named: str) -> None:
    """A number out of its bounds is the caller's error, and the message names it."""
    with pytest.raises(ConfigError, match=f"^{named} must"):
        sparse(**({"samples": 10, "features": 10, "nonzeros": 2} | change))  # type: ignore[arg-type]
