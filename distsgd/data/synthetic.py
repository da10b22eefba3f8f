"""Synthetic sparse data with the shape of text: few features are in most samples, most in few."""

import numpy as np
from numpy.typing import NDArray

from distsgd.data.split import from_arrays
from distsgd.errors import ConfigError, check_count, check_number, check_room, check_seed
from distsgd.kernels.draws.noise import fill_normal, fill_uniform
from distsgd.kernels.draws.random import FLIPS, ROWS, VALUES, WEIGHTS
from distsgd.kernels.draws.sampling import fill_columns
from distsgd.samples.dataset import Data
from distsgd.sparse import Floats, Integers, Sparse, sparse_rows


def sparse(  # noqa: PLR0917 # the numbers that shape the data, in their published order
    samples: int,
    features: int,
    nonzeros: int,
    popularity: float = 1.1,
    noise: float = 0.1,
    seed: int = 0,
    *,
    test_samples: int | None = None,
) -> Data:
    r"""Synthetic sparse classification with a power law of feature popularity.

    A sample has `nonzeros` distinct features, drawn one after the other with probability
    proportional to :math:`(1 + u)^{-popularity}` among those left, so feature 0 is the most
    popular. Its values are standard normal, scaled to norm 1. Its label is the sign of its inner
    product with a planted standard normal vector, flipped with probability `noise`.

    Hogwild!'s text benchmark RCV1 has 781,265 samples, 47,236 features and about 75 non-zeros.

    Parameters
    ----------
    samples : int
        Training samples, >= 1. The test samples come on top.
    features : int
        Columns, >= 1 and <= 2**32.
    nonzeros : int
        Non-zeros of each sample, >= 1 and <= `features`.
    popularity : float, default 1.1
        Exponent of the power law, >= 0; 0 makes all features equally popular.
    noise : float, default 0.1
        Probability that a label is flipped, >= 0 and <= 0.5.
    seed : int, default 0
        Seed, >= 0 and < 2**63. Equal arguments give equal data, on every machine.
    test_samples : int, default a quarter of `samples`
        Test samples, >= 0.

    Returns
    -------
    Data
        Sparse, with labels -1 and 1. ``data.statistics`` are Hogwild!'s Omega, Delta and rho.

    Raises
    ------
    ConfigError
        If a number is out of its bounds.
    """
    n = check_count("samples", samples)
    aside = n // 4 if test_samples is None else check_count("test_samples", test_samples, at_least=0)
    check_count("nonzeros", nonzeros)
    check_seed(seed)
    check_number("noise", noise, at_least=0.0, below=np.nextafter(0.5, 1.0))
    check_room("samples * nonzeros", float(n + aside) * nonzeros, 20)
    tree = _popularity_tree(features, popularity)
    if nonzeros > features:
        raise ConfigError(f"nonzeros must be <= features ({features}), not {nonzeros}")
    x = _rows(n + aside, features, nonzeros, seed, tree)
    y = _labels(x, noise, seed)
    train, rest = np.arange(n), np.arange(n, n + aside)
    return from_arrays(x.take(train), y[train], test_x=x.take(rest), test_y=y[rest], name="sparse")


def _popularity_tree(features: int, popularity: float) -> Floats:
    """Return a binary tree of sums over the features' weights, as `kernels.sampling` wants it."""
    count = check_count("features", features)
    check_number("features", features, below=2.0**32 + 1)
    check_room("features", count, 48)
    exponent = check_number("popularity", popularity, at_least=0.0)
    leaves = 2 ** (count - 1).bit_length()
    tree = np.zeros(2 * leaves)
    tree[leaves : leaves + count] = (1.0 + np.arange(count)) ** -exponent
    if tree[leaves + count - 1] < np.finfo(np.float64).tiny:
        raise ConfigError(f"popularity must leave all {count} features a chance, not {popularity!r}; lower it")
    width = leaves
    while width > 1:
        width //= 2
        tree[width : 2 * width] = tree[2 * width : 4 * width].reshape(-1, 2).sum(axis=1)
    return tree


def _rows(n: int, features: int, nonzeros: int, seed: int, tree: Floats) -> Sparse:
    columns = np.empty((n, nonzeros), dtype=np.uint32)
    fill_columns(seed, ROWS, tree, columns)
    values = np.empty(n * nonzeros)
    fill_normal(seed, VALUES, 0, values)
    table = values.reshape(n, nonzeros)
    table /= np.sqrt(np.sum(table * table, axis=1, keepdims=True))
    return sparse_rows(values, columns.reshape(-1), np.arange(n + 1) * nonzeros, features)


def _labels(x: Sparse, noise: float, seed: int) -> Integers:
    n = x.shape[0]
    planted, chance = np.empty(x.features), np.empty(n)
    fill_normal(seed, WEIGHTS, 0, planted)
    fill_uniform(seed, FLIPS, 0, chance)
    margins = (x.values * planted[x.columns]).reshape(n, -1).sum(axis=1)
    labels: NDArray[np.int64] = np.where((margins > 0.0) != (chance < noise), 1, -1)
    return labels
