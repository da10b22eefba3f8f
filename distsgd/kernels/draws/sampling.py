"""Weighted sampling without replacement, in time that does not depend on the weights."""

import numpy as np
from numpy.typing import NDArray

from distsgd.kernels import compiled
from distsgd.kernels.draws.random import Integer, draw, stream_key, uniform


@compiled
def set_weight(tree: NDArray[np.float64], leaf: Integer, weight: float) -> None:
    """Store the weight of a leaf; every node of the tree is the sum of its two children.

    Node k has the children 2 k and 2 k + 1, and the leaves are the second half. Sums are computed
    anew instead of updated, so that a weight which is put back restores every bit.
    """
    node = tree.size // 2 + int(leaf)
    tree[node] = weight
    node //= 2
    while node > 0:
        tree[node] = tree[2 * node] + tree[2 * node + 1]
        node //= 2


@compiled
def find_leaf(tree: NDArray[np.float64], share: float) -> int:
    """Return the leaf at which the running sum of the weights passes `share` of the whole."""
    node, rest = 1, share * tree[1]
    while node < tree.size // 2:
        node *= 2
        # rounding must not lead to a subtree that is used up
        if rest >= tree[node] and tree[node + 1] > 0.0:
            rest -= tree[node]
            node += 1
    return node - tree.size // 2


@compiled
def fill_columns(seed: Integer, purpose: Integer, tree: NDArray[np.float64], out: NDArray[np.uint32]) -> None:
    """Write distinct leaves in ascending order into each row of `out`, uint32[n, k].

    Each is drawn with probability proportional to its weight among those that are left.
    """
    n, nonzeros = out.shape
    weights = np.empty(nonzeros)
    for row in range(n):
        key = stream_key(seed, purpose, row)
        for k in range(nonzeros):
            leaf = find_leaf(tree, uniform(draw(key, k)))
            out[row, k], weights[k] = leaf, tree[tree.size // 2 + leaf]
            set_weight(tree, leaf, 0.0)
        for k in range(nonzeros):
            set_weight(tree, out[row, k], weights[k])
        out[row].sort()
