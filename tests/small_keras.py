"""Small Keras models, and the problems made of them: what tests of Keras share."""

import os
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

import distsgd as ds
from distsgd.data import Data
from distsgd.data.given import samples_of
from distsgd.problems.from_keras import KerasProblem
from distsgd.problems.keras.model import KerasObject

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytest.importorskip("tensorflow", reason="needs distsgd[tensorflow]")
keras = pytest.importorskip("keras", reason="needs distsgd[tensorflow]")

QUIET = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
"""Keras asks TensorFlow for NumPy arrays in the way of NumPy 1."""
CLASSES = 3


def loss() -> KerasObject:
    """Return the cross-entropy of classes."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@cache
def tables() -> Data:
    """Return 40 samples of 5 features and 10 for tests, in three classes, float32."""
    draws = np.random.default_rng(0)
    x, y = draws.normal(size=(50, 5)).astype(np.float32), np.arange(50) % CLASSES
    return samples_of((x[:40], y[:40], x[40:], y[40:]))


def sequential(*layers: KerasObject, dtype: str = "float32") -> KerasObject:
    """Return a model over the tables that ends with the layers given and one output per class."""
    keras.utils.set_random_seed(1)
    hidden = keras.layers.Dense(8, "tanh", dtype=dtype)
    return keras.Sequential([keras.Input((5,)), hidden, *layers, keras.layers.Dense(CLASSES, dtype=dtype)])


def made(*layers: KerasObject, **settings: object) -> KerasProblem:
    """Return the problem of such a model."""
    return ds.problems.from_keras(sequential(*layers), tables(), loss(), **settings)


MODELS: dict[str, Callable[[], KerasProblem]] = {
    "plain": made,
    "dropout": lambda: made(keras.layers.Dropout(0.5)),
    "two dropouts": lambda: made(keras.layers.Dropout(0.5), keras.layers.GaussianNoise(0.1)),
    "frozen statistics": lambda: made(keras.layers.BatchNormalization(), buffers="frozen"),
    "statistics of batches": lambda: made(keras.layers.BatchNormalization(), buffers="batch"),
}
"""Problems by name."""
