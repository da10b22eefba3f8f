from itertools import product

import numpy as np
import pytest
import scipy.sparse
from small_tables import rows_of

from distsgd.data import Data, Sparse, from_arrays
from distsgd.data.partition import Partition
from distsgd.errors import ConfigError
from distsgd.problems import least_squares, logistic, network, softmax

X = [[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]]
Y = [0, 1, 0]


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
        ([[1.0], [2.0]], [0], "y must have 2 labels, one per sample of x, not 1"),
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
    with pytest.raises(ConfigError, match="test_x must have samples like x, each float64\\[2\\], not float64\\[1\\]"):
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
    labels, empty = np.zeros(2, np.int64), rows_of(np.zeros((0, 3)))
    Data("mine", good, labels, empty, labels[:0])
    with pytest.raises(ConfigError, match=f"^{message}"):
        Data("mine", good._replace(**change), labels, empty, labels[:0])  # type: ignore[arg-type]


IMAGES = np.arange(4 * 2 * 3 * 3, dtype=np.float32).reshape(4, 2, 3, 3)
EMPTY = IMAGES[:0]
LABELS = np.array([0, 1, 1, 0], np.uint8)


@pytest.mark.parametrize("kind", ["bool", "int8", "uint16", "int64", "float32", "float64"])
@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 2, 3), (4, 2, 3, 3)])
def test_data_have_any_shape_and_type(kind: str, shape: tuple[int, ...]) -> None:
    """Samples and labels are arrays of any inner shape, whose numbers are counted and digested."""
    x = (np.arange(np.prod(shape)) == 0).astype(kind).reshape(shape)
    data = Data("mine", x, x, x[:0], x[:0])
    assert (data.samples, data.features) == (4, x[0].size)
    assert data.is_table == (len(shape) == 2 and kind.startswith("float"))
    assert data.has_classes == (len(shape) == 1 and not kind.startswith("float"))
    assert data.digest != Data("mine", x, x[::-1].copy(), x[:0], x[:0]).digest


def test_the_digest_of_a_table_stays() -> None:
    """A digest is that of the bytes of earlier versions, so that saved runs are found again."""
    expected = "ea1c8e7fcaeba4ba525c69b76f535110469171bc0135e23742b3db849003c1f3"
    assert from_arrays(X, Y, test=0).digest == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": IMAGES.astype(np.float16)}, "x must be a contiguous array of bool, .*, not float16\\[4, 2, 3, 3\\]"),
        ({"x": IMAGES.swapaxes(1, 2)}, "x must be a contiguous array"),
        ({"x": np.float32(1.0)}, "x must be a contiguous array"),
        ({"x": np.full_like(IMAGES, np.inf)}, "x must be finite, but x\\[0, 0, 0, 0\\] is inf"),
        ({"x": IMAGES[..., :0]}, "x must have samples and features, not the shape \\(4, 2, 3, 0\\)"),
        ({"x": IMAGES[:3]}, "y must have 3 labels, one per sample of x, not 4"),
        ({"test_x": EMPTY[:, 0]}, "test_x must have samples like x, each float32\\[2, 3, 3\\], not float32\\[3, 3\\]"),
        ({"test_x": EMPTY.astype(float)}, "test_x must have samples like x, each float32.*, not float64"),
        ({"test_y": LABELS[:0, None]}, "test_y must have labels like y, each of the shape \\(\\), not \\(1,\\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change: dict[str, object], message: str) -> None:
    """An array of another type, order or shape than the others is refused in one sentence."""
    good = {"x": IMAGES, "y": LABELS, "test_x": EMPTY, "test_y": LABELS[:0]}
    Data("images", **good)  # type: ignore[arg-type] # arrays, as their names say
    with pytest.raises(ConfigError, match=f"^{message}"):
        Data("images", **good | change)  # type: ignore[arg-type] # what the test is about


def test_what_needs_a_table_says_so() -> None:
    """Scales, statistics, skewed parts and the problems of distsgd name the shape that they got."""
    images = Data("images", IMAGES, LABELS, EMPTY, LABELS[:0])
    pixels = Data("pixels", IMAGES.reshape(4, -1).astype(np.float64), IMAGES, EMPTY.reshape(0, 18).astype(float), EMPTY)
    for wanted in ("scales", "statistics"):
        with pytest.raises(ConfigError, match=f"^{wanted} are known .* float32\\[4, 2, 3, 3\\]; give x.reshape"):
            getattr(images, wanted)
    with pytest.raises(ConfigError, match=r"^skewed parts need class labels"):
        Partition("skewed", concentration=1.0).divide(pixels, 2, 0)
    for make, data in product((logistic, least_squares, softmax, network), (images, pixels)):
        with pytest.raises(ConfigError, match=r"needs a table of float64 and one label .*x.reshape\(len\(x\), -1\)"):
            make(data)


def test_parts_and_classes_know_no_shape() -> None:
    """Images are divided among workers by the classes of their labels, as rows are."""
    images = Data("images", IMAGES, LABELS, EMPTY, LABELS[:0])
    parts = Partition("skewed", concentration=1.0).divide(images, 2, 0)
    assert parts is not None
    assert sorted(parts.members) == [0, 1, 2, 3]


def test_lists_are_sent_to_the_function_that_converts() -> None:
    """Data takes arrays only, and says what makes them."""
    with pytest.raises(ConfigError, match="from_arrays converts lists"):
        Data("mine", X, Y, X, Y)  # type: ignore[arg-type] # what the test is about
