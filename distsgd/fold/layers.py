"""What layers of a problem have of their own: factors on the learning rate, norms of gradients."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from distsgd.algorithm import Algorithm
from distsgd.errors import ConfigError, check_number, unknown_name
from distsgd.problem import Layer, Problem, Vector
from distsgd.sparse import Floats

LayerRates: TypeAlias = Mapping[str, float]
"""Factors on the learning rate by layer, or by the first parts of layers' names."""
NORM_SAMPLES = 4096
"""Samples that norms of gradients are taken over, evenly spaced, or all if there are fewer."""


def check_layer_rates(rates: object) -> dict[str, float]:
    """Return factors by name, in the order of the names, or raise a `ConfigError`."""
    if not isinstance(rates, Mapping) or not all(isinstance(name, str) for name in rates):
        raise ConfigError(
            f"layer_rates must be factors by the names of layers, such as {{'head': 10.0}}, not {rates!r}"
        )
    return {name: check_number(f"layer_rates[{name!r}]", rates[name], at_least=0.0) for name in sorted(rates)}


def layer_factors(problem: Problem, rates: LayerRates | None) -> Floats | None:
    """Return the factor of each coordinate on the learning rate, float64[d], None if all are 1.

    A name stands for the layer that is called so, and for those whose names begin with it and a
    ``.`` or ``/``; the longest counts. One that stands for no layer is a `ConfigError`.
    """
    if not rates:
        return None
    found = np.ones(problem.dimension)
    for name in sorted(rates, key=len):
        chosen = [layer for layer in problem.layers if _is_part(layer, name)]
        if not chosen:
            raise unknown_name("layer in layer_rates:", name, [layer.name for layer in problem.layers])
        for layer in chosen:
            found[layer.place] = rates[name]
    return None if (found == 1.0).all() else found


def _is_part(layer: Layer, name: str) -> bool:
    return layer.name == name or layer.name.startswith((f"{name}.", f"{name}/"))


def with_factors(algorithm: Algorithm, factors: Floats | None) -> tuple[Algorithm, Floats | None]:
    """Return an algorithm and the factors that its rules are told.

    A factor that all coordinates have is one of the schedule, so that loops over the support of
    sparse data need no other.
    """
    if factors is None or (factors != factors[0]).any():
        return algorithm, factors
    own, common = algorithm.schedule, float(factors[0])
    return algorithm._replace(schedule=lambda epoch: (1.0 if own is None else own(epoch)) * common), None


def norm_names(problem: Problem) -> list[str]:
    """Return the columns of a history that hold the norm of each layer's gradient."""
    return [f"gradient_norm/{layer.name}" for layer in problem.layers]


def gradient_norms(problem: Problem, x: Vector) -> Sequence[float]:
    """Return the Euclidean norm of each layer's mean gradient over the samples at `x`.

    A problem that is random draws from the key 0 for it.
    """
    n_samples = min(problem.samples, NORM_SAMPLES)
    batch = (np.arange(n_samples) * (problem.samples / n_samples)).astype(np.uint32)
    g = np.empty(problem.dimension, problem.dtype)
    problem.gradient_into(x, batch, g)
    return [math.sqrt(float(np.sum(np.square(g[layer.place], dtype=np.float64)))) for layer in problem.layers]
