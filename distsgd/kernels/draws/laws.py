"""Sampling of compute-time laws: draw n of a key, without the draws before it.

The law is a row of a table, so that each worker may have its own. Where one draw is not enough (a
gamma variate rejects, a straggler is decided separately), the draw is itself a key.

References
----------
Marsaglia and Tsang, "A Simple Method for Generating Gamma Variables", ACM Transactions on
Mathematical Software 26 (2000).
"""

import math
from typing import Any, TypeAlias

import numpy as np

from distsgd.kernels import compiled
from distsgd.kernels.draws.random import Integer, draw, normal_quantile, stream_key, uniform

CONSTANT, EXPONENTIAL, LOGNORMAL, GAMMA, PARETO, UNIFORM, EMPIRICAL = range(7)

LAW = np.dtype(
    (
        np.record,
        [
            ("kind", "i8"),
            ("a", "f8"),  # constant: value; exponential: shift; log-normal: mean of the logarithm;
            ("b", "f8"),  # then mean; deviation of the logarithm; scale; 1 / shape; high - low
            ("first", "i8"),  # empirical: where its samples begin, and how many they are
            ("count", "i8"),
            ("probability", "f8"),  # of a transient straggler
            ("factor", "f8"),
        ],
    )
)
"""One law: `a` is the shape of a gamma, the scale of a Pareto and the low end of a uniform law."""

LawRow: TypeAlias = Any
"""One row of a table of dtype `LAW`."""


@compiled
def sample(law: LawRow, samples: np.ndarray, key: Integer, n: Integer) -> float:
    """Return draw `n` of the stream `key` under `law`."""
    bits = draw(key, n)
    value = _steady(law, samples, bits)
    if law.probability > 0.0 and uniform(draw(bits, 0)) < law.probability:
        value *= law.factor
    return value


@compiled
def _steady(  # noqa: PLR0911 # one return per law
    law: LawRow, samples: np.ndarray, bits: Integer
) -> float:
    if law.kind == CONSTANT:
        return law.a
    if law.kind == EXPONENTIAL:
        return law.a - law.b * math.log(uniform(bits))
    if law.kind == LOGNORMAL:
        return math.exp(law.a + law.b * normal_quantile(uniform(bits)))
    if law.kind == UNIFORM:
        return law.a + law.b * uniform(bits)
    if law.kind == PARETO:
        return law.a * uniform(bits) ** -law.b
    if law.kind == GAMMA:
        return law.b * _gamma(law.a, bits)
    return samples[law.first + int(uniform(bits) * law.count)]


@compiled
def _gamma(shape: float, bits: Integer) -> float:
    """Return a gamma variate of scale 1; a shape below 1 is raised by 1, then brought back."""
    if shape < 1.0:
        boost = uniform(draw(bits, 1)) ** (1.0 / shape)
        return boost * _marsaglia_tsang(shape + 1.0, bits)
    return _marsaglia_tsang(shape, bits)


@compiled
def _marsaglia_tsang(shape: float, bits: Integer) -> float:
    d = shape - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    n = 2
    while True:
        x = normal_quantile(uniform(draw(bits, n)))
        v = (1.0 + c * x) ** 3
        log_u = math.log(uniform(draw(bits, n + 1)))
        if v > 0.0 and log_u < 0.5 * x * x + d - d * v + d * math.log(v):
            return d * v
        n += 2


@compiled
def fill(law: LawRow, samples: np.ndarray, seed: Integer, purpose: Integer, worker: Integer, n: int) -> np.ndarray:
    """Return the draws 0, 1, ..., n - 1 of one worker, float64[n]."""
    key = stream_key(seed, purpose, worker)
    values = np.empty(n)
    for i in range(n):
        values[i] = sample(law, samples, key, i)
    return values
