"""Problems: what is minimised. Each constructor returns a `distsgd.problem.Problem`."""

from collections.abc import Callable

from distsgd.problem import Problem
from distsgd.problems.from_function import from_function
from distsgd.problems.from_jax import from_jax
from distsgd.problems.from_keras import from_keras
from distsgd.problems.from_torch import from_torch
from distsgd.problems.linear import least_squares, logistic, svm
from distsgd.problems.network import network
from distsgd.problems.quadratic import quadratic
from distsgd.problems.softmax import softmax

__all__ = [
    "Problem",
    "from_function",
    "from_jax",
    "from_keras",
    "from_torch",
    "least_squares",
    "logistic",
    "network",
    "quadratic",
    "registry",
    "softmax",
    "svm",
]

registry: dict[str, Callable[..., Problem]] = {
    "quadratic": quadratic,
    "logistic": logistic,
    "svm": svm,
    "least_squares": least_squares,
    "softmax": softmax,
    "network": network,
}
"""Name -> constructor, of what tables of an experiment file can describe."""
