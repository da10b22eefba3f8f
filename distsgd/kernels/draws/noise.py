"""Normal numbers as a function of a key: noise that belongs to a batch, and random weights."""

import numpy as np
from numpy.typing import NDArray

from distsgd.kernels import compiled
from distsgd.kernels.draws.random import NOISE, Integer, draw, mix, normal_quantile, stream_key, uniform


@compiled
def normal(key: Integer, n: Integer) -> float:
    """Return the n-th standard normal number of the stream `key`."""
    return normal_quantile(uniform(draw(key, n)))


@compiled
def fill_normal(seed: Integer, purpose: Integer, stream: Integer, out: NDArray[np.float64]) -> None:
    """Write standard normal numbers into `out`, float64[k]."""
    key = stream_key(seed, purpose, stream)
    for i in range(out.size):
        out[i] = normal(key, i)


@compiled
def fill_uniform(seed: Integer, purpose: Integer, stream: Integer, out: NDArray[np.float64]) -> None:
    """Write uniform numbers from (0, 1) into `out`, float64[k]."""
    key = stream_key(seed, purpose, stream)
    for i in range(out.size):
        out[i] = uniform(draw(key, i))


@compiled
def batch_key(batch: NDArray[np.integer]) -> np.uint64:
    """Return the uint64 key of a batch: a hash of its sample indices, in their order."""
    key = stream_key(0, NOISE, batch.size)
    for sample in batch:
        key = mix(draw(key, sample))
    return key


@compiled
def add_noise(scale: float, batches: NDArray[np.integer], out: NDArray[np.float64]) -> None:
    """Add `scale` times the standard normal numbers of the batch j to the row j of `out`."""
    m, dimension = out.shape
    for j in range(m):
        key = batch_key(batches[j])
        for i in range(dimension):
            out[j, i] += scale * normal(key, i)
