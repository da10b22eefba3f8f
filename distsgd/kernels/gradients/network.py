"""What a network does between its matrix products, in one pass over the memory each.

The exponential of the softmax is left to NumPy, which is faster at it.
"""

import numpy as np
from numpy.typing import NDArray

from distsgd.kernels import compiled


@compiled
def shift_logits(biases: NDArray[np.float64], logits: NDArray[np.float64]) -> None:
    """Add each gradient's biases, float64[m, c], and lower each sample's maximum to 0, in place.

    `logits` is float64[m, b, c]. Without the shift the exponential overflows for large margins.
    """
    m, batch, classes = logits.shape
    for j in range(m):
        for i in range(batch):
            top = -np.inf
            for k in range(classes):
                logits[j, i, k] += biases[j, k]
                top = max(top, logits[j, i, k])
            for k in range(classes):
                logits[j, i, k] -= top


@compiled
def softmax_slopes(exponentials: NDArray[np.float64], labels: NDArray[np.uint32], batches: NDArray[np.integer]) -> None:
    r"""Turn exponentials, float64[m, b, c], into slopes (softmax - one-hot) / b, in place."""
    m, batch, classes = exponentials.shape
    for j in range(m):
        for i in range(batch):
            total = 0.0
            for k in range(classes):
                total += exponentials[j, i, k]
            scale = 1.0 / (total * batch)
            for k in range(classes):
                exponentials[j, i, k] *= scale
            exponentials[j, i, labels[batches[j, i]]] -= 1.0 / batch


@compiled
def sum_slopes(slopes: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """Write the sum of `slopes`, float64[m, b, c], over the batch into `out`, float64[m, c]."""
    m, batch, classes = slopes.shape
    for j in range(m):
        for k in range(classes):
            out[j, k] = 0.0
        for i in range(batch):
            for k in range(classes):
                out[j, k] += slopes[j, i, k]


@compiled
def rectify(biases: NDArray[np.float64], units: NDArray[np.float64]) -> None:
    """Turn products, float64[m, b, c], into max(0, product + bias), in place; NaN stays."""
    m, batch, outputs = units.shape
    for j in range(m):
        for i in range(batch):
            for k in range(outputs):
                unit = units[j, i, k] + biases[j, k]
                units[j, i, k] = 0.0 if unit < 0.0 else unit


@compiled
def rectify_slopes(activations: NDArray[np.float64], slopes: NDArray[np.float64]) -> None:
    """Set the slopes, float64[m, b, c], of units whose activation is 0 to 0, in place."""
    m, batch, outputs = slopes.shape
    for j in range(m):
        for i in range(batch):
            for k in range(outputs):
                if activations[j, i, k] == 0.0:
                    slopes[j, i, k] = 0.0
