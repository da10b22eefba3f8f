"""A model of your own in JAX: how many workers, and which algorithm, before a cluster is paid."""

import jax
import jax.numpy as jnp

import distsgd as ds


def logits(parameters: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Return one number per image and class."""
    hidden = jax.nn.gelu(x @ parameters["w"] + parameters["b"])
    return hidden @ parameters["v"] + parameters["c"]


def loss(parameters: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean cross-entropy."""
    logs = jax.nn.log_softmax(logits(parameters, x))
    return -jnp.take_along_axis(logs, y[:, None], axis=1).mean()


def accuracy(parameters: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the share of images that are classified correctly."""
    return (logits(parameters, x).argmax(axis=1) == y).mean()


w, v = (0.2 * jax.random.normal(jax.random.key(n), shape) for n, shape in enumerate([(64, 32), (32, 10)]))
start = {"w": w, "b": jnp.zeros(32), "v": v, "c": jnp.zeros(10)}
problem = ds.problems.from_jax(loss, start, ds.data.digits(), metric=accuracy)
found = ds.compare(
    {"Downpour": ds.algorithms.downpour(0.2), "synchronous": ds.algorithms.synchronous(0.2)},
    problem,
    {f"{n} workers": ds.Fleet(n, ds.exponential(1.0)) for n in (2, 8)},
    updates=300,
    seeds=2,
)
print(found)
