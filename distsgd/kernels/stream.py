"""The samples of a worker's steps."""

import numpy as np
from numpy.typing import NDArray

from distsgd.kernels import compiled
from distsgd.kernels.random import SAMPLES, Integer, below, draw, stream_key


@compiled
def fill_batches(
    seed: Integer,
    samples: Integer,
    workers: NDArray[np.int64],
    steps: NDArray[np.int64],
    out: NDArray[np.uint32],
) -> None:
    """Write the batch of ``workers[j]`` at ``steps[j]`` into the row j of `out`, uint32[m, b].

    Sample i of step k is draw k b + i of the worker's stream, reduced to [0, samples).
    """
    n_steps, batch = out.shape
    for j in range(n_steps):
        key = stream_key(seed, SAMPLES, workers[j])
        first = np.uint64(steps[j]) * np.uint64(batch)
        for i in range(batch):
            out[j, i] = below(draw(key, first + np.uint64(i)), samples)
