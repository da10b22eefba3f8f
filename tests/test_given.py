import numpy as np
import pytest

from distsgd.data import Data, from_arrays
from distsgd.data.given import samples_of
from distsgd.errors import ConfigError

IMAGES = np.arange(4 * 3 * 3, dtype=np.float32).reshape(4, 1, 3, 3)
LABELS = np.array([0, 1, 1, 0], np.int32)


class Pairs:
    """A map-style dataset."""

    def __init__(self, items: list[object]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> object:
        return self.items[place]


def is_equal(one: Data, other: Data) -> bool:
    """Return whether all numbers and names are equal, and no array can be written."""
    arrays = (one.x, one.y, one.test_x, one.test_y)
    return one.digest == other.digest and one.classes == other.classes and not any(a.flags.writeable for a in arrays)  # type: ignore[union-attr] # dense here


EXPECTED = Data("arrays", IMAGES, LABELS, IMAGES[:0], LABELS[:0])
TESTED = Data("arrays", IMAGES, LABELS, IMAGES[:2], LABELS[:2])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((IMAGES, LABELS), EXPECTED),
        ([IMAGES[:, :, ::-1][:, :, ::-1], LABELS.astype(">i4")], EXPECTED),
        ((IMAGES, LABELS, IMAGES[:2], LABELS[:2]), TESTED),
        (Pairs(list(zip(IMAGES, LABELS, strict=True))), EXPECTED),
        (
            (Pairs(list(zip(IMAGES, LABELS, strict=True))), Pairs(list(zip(IMAGES[:2], LABELS[:2], strict=True)))),
            TESTED,
        ),
    ],
)
def test_numbers_keep_type_and_shape(given: object, expected: Data) -> None:
    """Arrays and map-style datasets become data with the same numbers, and none is set aside."""
    assert is_equal(samples_of(given), expected)


def test_data_stay_as_they_are() -> None:
    """Data are returned, and others get the name that they are given."""
    assert samples_of(EXPECTED) is EXPECTED
    assert samples_of((IMAGES, LABELS), name="mine").name == "mine"


def test_text_is_encoded_as_elsewhere() -> None:
    """Labels of text become the numbers that from_arrays gives them, in test samples too."""
    x, texts = np.ones((3, 2)), ["dog", "cat", "dog"]
    mine, theirs = samples_of((x, texts, x, texts)), from_arrays(x, texts, test_x=x, test_y=texts)
    assert mine.digest == theirs.digest
    assert mine.classes == theirs.classes == ("cat", "dog")
    read = samples_of(Pairs(list(zip(x, texts, strict=True))))
    assert read.y.tolist() == mine.y.tolist()
    with pytest.raises(ConfigError, match="unknown class in test_y: 'cow'"):
        samples_of((x, texts, x, ["dog", "cow", "dog"]))


def test_frames_are_arrays() -> None:
    """Frames of pandas and Polars are what NumPy makes of them, labels of text included."""
    pandas, polars = pytest.importorskip("pandas", reason="needs pandas"), pytest.importorskip("polars")
    columns, texts = {"a": [1.0, 2.0], "b": [3.0, 4.0]}, ["no", "yes"]
    for frame, series in ((pandas.DataFrame, pandas.Series), (polars.DataFrame, polars.Series)):
        data = samples_of((frame(columns), series(texts)))
        assert data.x.tolist() == [[1.0, 3.0], [2.0, 4.0]]  # type: ignore[union-attr] # dense
        assert (data.y.tolist(), data.classes) == ([0, 1], ("no", "yes"))


def test_tensors_of_torch_are_arrays() -> None:
    """Tensors, with a gradient or without, and datasets of PyTorch are what NumPy makes of them."""
    torch = pytest.importorskip("torch", reason="needs distsgd[torch]")
    x, y = torch.from_numpy(IMAGES.copy()), torch.from_numpy(LABELS.copy())
    assert is_equal(samples_of((x.clone().requires_grad_(), y)), EXPECTED)
    assert is_equal(samples_of(torch.utils.data.TensorDataset(x, y)), EXPECTED)
    with pytest.raises(ConfigError, match="an iterable must be read first"):
        samples_of(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y)))


def test_arrays_of_jax_are_arrays() -> None:
    """Arrays of JAX are what NumPy makes of them; a type of their own is refused."""
    jnp = pytest.importorskip("jax.numpy", reason="needs distsgd[jax]")
    assert is_equal(samples_of((jnp.asarray(IMAGES), jnp.asarray(LABELS))), EXPECTED)
    with pytest.raises(ConfigError, match=r"^x must be an array of bool, .*, not bfloat16"):
        samples_of((jnp.ones((4, 2), jnp.bfloat16), LABELS))


class Broken(Pairs):
    """A dataset whose items cannot be read."""

    def __getitem__(self, place: int) -> object:
        raise OSError(f"no file {place}")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (IMAGES, "data must be \\(x, y\\), .* not an object of the type ndarray; an iterable"),
        (3, "data must be \\(x, y\\), .*, not 3$"),
        ({"x": IMAGES}, "data must be .*, not an object of the type dict"),
        ((IMAGES,), "data must be .*, not 1 things"),
        (iter([(IMAGES, LABELS)]), "data must be .*; an iterable must be read first: give its dataset"),
        (([[1.0], [1.0, 2.0]], [0, 1]), "x must be numbers, each sample of the same shape; pad or crop"),
        ((IMAGES, [[0], [1, 2]]), "y must be numbers, each sample of the same shape"),
        ((IMAGES, 3), "y must be an array of .*, not int64\\[\\]"),
        ((IMAGES.astype(complex), LABELS), "x must be an array of .*, not complex128"),
        ((["a", "b"], [0, 1]), "x must be an array of .*, not <U1\\[2\\]"),
        ((IMAGES, LABELS[:3]), "y must have 4 labels, one per sample of x, not 3"),
        ((IMAGES[:0], LABELS[:0]), "x must have samples and features"),
        (Pairs([]), "data must have samples, but the dataset is empty"),
        (Pairs([1.0]), "data must be a dataset of pairs \\(x, y\\), but item 0 is 1.0"),
        (Pairs([(IMAGES[0], 1), (IMAGES[0][0], 1)]), "x must have one shape .* in sample 1 and \\(1, 3, 3\\)"),
        (Broken([0]), "data must be a dataset that can be read, but item 0 raised OSError: no file 0"),
    ],
)
def test_what_is_no_data_is_named(given: object, message: str) -> None:
    """Iterables, ragged samples and other things than numbers are refused in one sentence."""
    with pytest.raises(ConfigError, match=f"^{message}"):
        samples_of(given)


def test_a_split_keeps_images() -> None:
    """Images that are split keep their type and shape, and cannot be scaled as features are."""
    data = from_arrays(IMAGES, LABELS, test=0.5)
    assert (data.x.shape, data.test_x.shape) == ((2, 1, 3, 3), (2, 1, 3, 3))
    assert data.x.dtype == np.float32  # type: ignore[union-attr] # dense
    with pytest.raises(ConfigError, match=r"^scale must be None unless samples are rows of features"):
        from_arrays(IMAGES, LABELS, scale="standard")
