"""A perceptron in JAX, and the same network as a problem of distsgd."""

from typing import TypeAlias

import numpy as np
import pytest

import distsgd as ds
from distsgd.problems.from_jax import JaxProblem
from distsgd.problems.network import Network

jax = pytest.importorskip("jax", reason="needs distsgd[jax]")

Array: TypeAlias = jax.Array
Tree: TypeAlias = dict[str, dict[str, Array]]

DATA = ds.data.digits()
NETWORK = ds.problems.network(DATA, 16)


def logits(parameters: Tree, x: Array) -> Array:
    """Return one number per sample and class."""
    hidden = jax.nn.relu(x @ parameters["hidden"]["w"] + parameters["hidden"]["b"])
    return hidden @ parameters["out"]["w"] + parameters["out"]["b"]


def loss(parameters: Tree, x: Array, y: Array) -> Array:
    """Return the mean cross-entropy."""
    logs = jax.nn.log_softmax(logits(parameters, x))
    return -jax.numpy.take_along_axis(logs, y[:, None], axis=1).mean()


def accuracy(parameters: Tree, x: Array, y: Array) -> Array:
    """Return the share of samples whose greatest number is that of their class."""
    return (logits(parameters, x).argmax(axis=1) == y).mean()


def dropout_loss(parameters: Tree, x: Array, y: Array, key: Array | None) -> Array:
    """Return the mean cross-entropy with half of the pixels dropped, none without a key."""
    if key is not None:
        x = 2.0 * x * jax.random.bernoulli(key, 0.5, x.shape)
    return loss(parameters, x, y)


def tree_of(x: np.ndarray, network: Network = NETWORK) -> dict[str, dict[str, np.ndarray]]:
    """Return the parameters of a network with one hidden layer as a tree."""
    blocks = [x[layer.place].reshape(layer.shape) for layer in network.layers]
    return {name: dict(zip("wb", blocks[at : at + 2], strict=True)) for name, at in (("hidden", 0), ("out", 2))}


def perceptron(network: Network = NETWORK, **options: object) -> JaxProblem:
    """Return a network of distsgd as a problem of JAX, at the same starting point."""
    return ds.problems.from_jax(options.pop("loss", loss), tree_of(network.start(0), network), DATA, **options)


def flat(tree: Tree) -> np.ndarray:
    """Return the leaves of a tree as one vector, as JAX orders them."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree_util.tree_leaves(tree)])
