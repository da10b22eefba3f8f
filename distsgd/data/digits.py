"""The default data: small, real, and installed with scikit-learn."""

from distsgd.data.split import from_arrays
from distsgd.samples.dataset import Data


def digits(*, test: float = 0.2, seed: int = 0) -> Data:
    """Handwritten digits: 1,797 real images of 8 x 8 pixels, 10 classes.

    The test set of the "Optical Recognition of Handwritten Digits" collection, which scikit-learn
    bundles: nothing is downloaded. Pixels are divided by 16, so they lie in [0, 1].

    Parameters
    ----------
    test : float, default 0.2
        Share of the images set aside for testing, the same in each class, >= 0 and < 1.
    seed : int, default 0
        Seed of the split, >= 0.

    Returns
    -------
    Data
        64 features; with the defaults 1,437 training and 360 test images.

    References
    ----------
    Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998.
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415 # costs most of a second

    pixels, labels = load_digits(return_X_y=True)
    return from_arrays(pixels / 16.0, labels, test=test, seed=seed, name="digits")
