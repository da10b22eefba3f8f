"""Small PyTorch modules that tests train."""

from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs distsgd[torch]")

RATE = 0.125
"""A power of two: PyTorch rounds it to float32, and our rules do not."""

BATCH = np.arange(32, dtype=np.uint32)


def perceptron(*units: int) -> "torch.nn.Module":
    """Return a perceptron with rectified hidden layers, the same in every process."""
    torch.manual_seed(1)
    layers = [part for sizes in pairwise(units) for part in (torch.nn.Linear(*sizes), torch.nn.ReLU())]
    return torch.nn.Sequential(*layers[:-1])


def with_batch_norm() -> "torch.nn.Module":
    """Return a perceptron with a batch normalisation."""
    hidden, _, output = perceptron(6, 5, 3)
    return torch.nn.Sequential(hidden, torch.nn.BatchNorm1d(5), torch.nn.ReLU(), output)


def flowers(n_samples: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Return samples of six features and three classes."""
    draws = np.random.default_rng(0)
    return draws.normal(size=(n_samples, 6)), np.arange(n_samples) % 3


def near(problem: object, n_points: int = 1) -> np.ndarray:
    """Return points near the start of a problem, float[n, d]."""
    start = problem.start(0)
    noise = np.random.default_rng(2).normal(size=(n_points, start.size))
    return (start + 0.1 * noise).astype(start.dtype)
