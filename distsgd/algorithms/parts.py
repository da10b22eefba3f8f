"""Halves that several papers share: a worker that sends its gradient, and servers' optimisers.

A server's optimiser is state columns plus `apply` on a gradient. Any message whose column is called
``g`` will do, and any hyper-parameters with a ``learning_rate``.
"""

from typing import NamedTuple

from distsgd.algorithm import At, Column, Hyper, Server, State, Worker, sqrt


class Rate(NamedTuple):
    """The hyper-parameters of an algorithm that has no other number."""

    learning_rate: float


class Gradient(NamedTuple):
    """A message: one gradient, or a sum of gradients."""

    g: Column


class Reader(NamedTuple):
    """A worker that remembers nothing: the parameters that it read, and the gradient there."""

    x: Column
    g: Column


def _read_init(h: Hyper, x: Column) -> Reader:
    return Reader(x, 0.0)


def _read(h: Hyper, w: Reader, x: Column) -> Reader:
    return Reader(x, 0.0)


def _read_at(h: Hyper, w: Reader) -> Column:
    return w.x


def _read_step(h: Hyper, w: Reader, g: Column) -> Reader:
    return Reader(w.x, g)


def _read_send(h: Hyper, w: Reader) -> tuple[Reader, Gradient]:
    return w, Gradient(w.g)


gradient_worker = Worker(_read_init, _read, _read_at, _read_step, _read_send)
"""Pulls x, evaluates one gradient there, and sends it."""


class Parameters(NamedTuple):
    """The server of plain SGD: the parameters and nothing else."""

    x: Column


def _sgd_init(h: Hyper, x: Column) -> Parameters:
    return Parameters(x)


def _sgd_apply(h: Hyper, s: Parameters, m: State, at: At) -> Parameters:
    return Parameters(s.x - h.learning_rate * at.factor * m.g)


sgd = Server(_sgd_init, reads=("x",), apply=_sgd_apply)
r"""Plain SGD: :math:`x \leftarrow x - \eta g`."""


class Accumulated(NamedTuple):
    """The server of Adagrad: the parameters and the sum K of squared gradients."""

    x: Column
    k_sum: Column


ADAGRAD_EPSILON = 1e-8
"""Stands in the root beside K: a coordinate without a gradient has a rate too [Ruder 2016]."""


def _adagrad_init(h: Hyper, x: Column) -> Accumulated:
    return Accumulated(x, 0.0 * x)


def _adagrad_apply(h: Hyper, s: Accumulated, m: State, at: At) -> Accumulated:
    k_sum = s.k_sum + m.g * m.g
    rate = h.learning_rate * at.factor / sqrt(k_sum + ADAGRAD_EPSILON)
    return Accumulated(s.x - rate * m.g, k_sum)


adagrad = Server(_adagrad_init, reads=("x",), apply=_adagrad_apply)
r"""Adagrad: :math:`K \leftarrow K + g^2`, :math:`x \leftarrow x - \eta g / \sqrt{K + \epsilon}`."""

optimisers = {"sgd": sgd, "adagrad": adagrad}
"""The servers by name."""
