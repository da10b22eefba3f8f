"""Random numbers as a function of a key: no state, no order, no generator to share.

A key is a 64-bit hash of (seed, purpose, worker). The n-th draw of a key is the n-th output of
SplitMix64 seeded with it, which can be computed without the draws before it. So two algorithms on
one fleet see the same machine times, and a worker sees the same samples under every engine.

References
----------
Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
Wichura, "Algorithm AS 241: The Percentage Points of the Normal Distribution", Applied Statistics 37
(1988), routine PPND16.
"""

import math
from typing import Any, TypeAlias

import numba
import numpy as np

from distsgd.kernels import Function, compiled

Integer: TypeAlias = int | np.integer[Any]

(
    SAMPLES, COMPUTE, FAILURE, READS, NOISE,  # of every run
    START, ROWS, VALUES, WEIGHTS, FLIPS,  # where networks begin; synthetic data
    PARTS, SHARES, BOOSTS,  # which samples a worker has
    DELAY, PASSES,  # of live workers
    LAYERS,  # random layers of a model, such as dropout
) = range(16)  # fmt: skip # groups stand in lines
"""Purposes, all of them: each has streams of its own, so that none disturbs another."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def wrapping(function: Function) -> Function:
    """Compile a function whose uint64 arithmetic overflows on purpose.

    Machine code wraps in silence. With the compiler switched off, NumPy's scalars wrap to the same
    bits but warn each time, so there the warning is switched off for this function alone.
    """
    if not numba.config.DISABLE_JIT:  # type: ignore[attr-defined] # numba sets it when it loads
        return compiled(function)
    quiet: Function = np.errstate(over="ignore")(function)
    return quiet


@wrapping
def mix(bits: Integer) -> np.uint64:
    """Return SplitMix64's output function of uint64 `bits`: a bijection that spreads every bit."""
    mixed = np.uint64(bits)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_1
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
    return mixed ^ (mixed >> np.uint64(31))


@wrapping
def stream_key(seed: Integer, purpose: Integer, worker: Integer) -> np.uint64:
    """Return the uint64 key of the stream of one worker for one purpose."""
    key = mix(np.uint64(seed) + _GOLDEN)
    key = mix(np.uint64(key) ^ (np.uint64(purpose) + _GOLDEN))
    return mix(np.uint64(key) ^ (np.uint64(worker) + _GOLDEN))


@wrapping
def draw(key: Integer, n: Integer) -> np.uint64:
    """Return the n-th uint64 of the stream `key`."""
    return mix(np.uint64(key) + (np.uint64(n) + np.uint64(1)) * _GOLDEN)


@compiled
def uniform(bits: Integer) -> float:
    """Return a float64 in the open interval (0, 1) from uint64 `bits`."""
    # 52 bits: with 53 the largest would round to 1.
    return (float(np.uint64(bits) >> np.uint64(12)) + 0.5) * 2.0**-52


@compiled
def below(bits: Integer, n: Integer) -> np.uint64:
    """Return an integer in [0, n) from uint64 `bits`, n <= 2**32; the bias is at most n / 2**32."""
    return ((np.uint64(bits) >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32)


_CENTRE = (
    (
        2.5090809287301226727e3,
        3.3430575583588128105e4,
        6.7265770927008700853e4,
        4.5921953931549871457e4,
        1.3731693765509461125e4,
        1.9715909503065514427e3,
        1.3314166789178437745e2,
        3.3871328727963666080e0,
    ),
    (
        5.2264952788528545610e3,
        2.8729085735721942674e4,
        3.9307895800092710610e4,
        2.1213794301586595867e4,
        5.3941960214247511077e3,
        6.8718700749205790830e2,
        4.2313330701600911252e1,
        1.0,
    ),
)
_MIDDLE = (
    (
        7.74545014278341407640e-4,
        2.27238449892691845833e-2,
        2.41780725177450611770e-1,
        1.27045825245236838258e0,
        3.64784832476320460504e0,
        5.76949722146069140550e0,
        4.63033784615654529590e0,
        1.42343711074968357734e0,
    ),
    (
        1.05075007164441684324e-9,
        5.47593808499534494600e-4,
        1.51986665636164571966e-2,
        1.48103976427480074590e-1,
        6.89767334985100004550e-1,
        1.67638483018380384940e0,
        2.05319162663775882187e0,
        1.0,
    ),
)
_FAR = (
    (
        2.01033439929228813265e-7,
        2.71155556874348757815e-5,
        1.24266094738807843860e-3,
        2.65321895265761230930e-2,
        2.96560571828504891230e-1,
        1.78482653991729133580e0,
        5.46378491116411436990e0,
        6.65790464350110377720e0,
    ),
    (
        2.04426310338993978564e-15,
        1.42151175831644588870e-7,
        1.84631831751005468180e-5,
        7.86869131145613259100e-4,
        1.48753612905506148525e-2,
        1.36929880922735805310e-1,
        5.99832206555887937690e-1,
        1.0,
    ),
)
"""AS 241: coefficients above and under the fraction, the highest power first."""


@compiled
def normal_quantile(p: float) -> float:
    """Return the standard normal quantile of p in (0, 1), to about 16 digits (AS 241)."""
    q = p - 0.5
    if abs(q) <= 0.425:
        r = 0.180625 - q * q
        return q * _ratio(_CENTRE, r)
    r = math.sqrt(-math.log(min(p, 1.0 - p)))
    tail = _ratio(_MIDDLE, r - 1.6) if r <= 5.0 else _ratio(_FAR, r - 5.0)
    return -tail if q < 0.0 else tail


@compiled
def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], r: float) -> float:
    above, under = coefficients
    return _polynomial(above, r) / _polynomial(under, r)


@compiled
def _polynomial(coefficients: tuple[float, ...], r: float) -> float:
    h, g, f, e, d, c, b, a = coefficients
    return ((((((h * r + g) * r + f) * r + e) * r + d) * r + c) * r + b) * r + a
