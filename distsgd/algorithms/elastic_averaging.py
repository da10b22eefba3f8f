"""Elastic averaging SGD: workers explore on their own, held to a centre by an elastic force."""

from typing import NamedTuple

from distsgd.algorithm import Algorithm, At, Column, Pull, Push, Server, Step, Worker
from distsgd.errors import check_count, check_number

BETA = 0.9
"""The paper's choice of W alpha, used where no moving rate is given."""


class Hyper(NamedTuple):
    """Numbers of EASGD: alpha is `moving_rate` + `beta` / workers, and one of these two is 0."""

    learning_rate: float
    moving_rate: float
    beta: float
    momentum: float


class Centre(NamedTuple):
    """The server: the centre variable."""

    x: Column


class Elastic(NamedTuple):
    """A worker of EASGD: its parameters, those before the elastic move, and that move."""

    x: Column
    before: Column
    difference: Column


class Momentum(NamedTuple):
    """A worker of EAMSGD: the same, and its velocity."""

    x: Column
    v: Column
    before: Column
    difference: Column


class Difference(NamedTuple):
    """A message: the elastic difference alpha (x_i - centre)."""

    difference: Column


def centre_init(h: Hyper, x: Column) -> Centre:
    """Start the centre where all workers start."""
    return Centre(x)


def apply(h: Hyper, s: Centre, m: Difference) -> Centre:
    """Move the centre by what the worker was moved back."""
    return Centre(s.x + m.difference)


def difference_of(h: Hyper, x: Column, centre: Column, at: At) -> Column:
    """Return the elastic difference: a share of what is between a worker and the centre."""
    return (h.moving_rate + h.beta / at.workers) * (x - centre)


def init(h: Hyper, x: Column) -> Elastic:
    """Start at the centre."""
    return Elastic(x, x, 0.0 * x)


def receive(h: Hyper, w: Elastic, centre: Column, at: At) -> Elastic:
    """Move towards the centre; the gradient is still taken where the worker was before."""
    difference = difference_of(h, w.x, centre, at)
    return Elastic(w.x - difference, w.x, difference)


def at(h: Hyper, w: Elastic) -> Column:
    """Evaluate the gradient at the parameters before the elastic move."""
    return w.before


def step(h: Hyper, w: Elastic, g: Column, at: At) -> Elastic:
    """Move along the gradient."""
    x = w.x - h.learning_rate * at.factor * g
    return Elastic(x, x, w.difference)


def momentum_init(h: Hyper, x: Column) -> Momentum:
    """Start at the centre, at rest."""
    return Momentum(x, 0.0 * x, x, 0.0 * x)


def momentum_receive(h: Hyper, w: Momentum, centre: Column, at: At) -> Momentum:
    """Move towards the centre, as without momentum."""
    difference = difference_of(h, w.x, centre, at)
    return Momentum(w.x - difference, w.v, w.x, difference)


def momentum_at(h: Hyper, w: Momentum) -> Column:
    """Evaluate the gradient ahead by the momentum, at the parameters before the elastic move."""
    return w.before + h.momentum * w.v


def momentum_step(h: Hyper, w: Momentum, g: Column, at: At) -> Momentum:
    """Update the velocity, and move by it."""
    v = h.momentum * w.v - h.learning_rate * at.factor * g
    return Momentum(w.x + v, v, w.x + v, w.difference)


def send(h: Hyper, w: Elastic | Momentum) -> tuple[Elastic | Momentum, Difference]:
    """Send the elastic difference."""
    return w, Difference(w.difference)


EASGD = Worker(init, receive, at, step, send)
EAMSGD = Worker(momentum_init, momentum_receive, momentum_at, momentum_step, send)


def elastic_averaging(
    learning_rate: float, moving_rate: float | None = None, period: int = 10, momentum: float = 0.0
) -> Algorithm:
    r"""Let workers step on their own, and pull them and a centre together every `period` steps.

    Every `period` steps a worker reads the centre :math:`\tilde x`, and both move by the elastic
    difference; then, as at every step, it moves along its gradient:

    .. math::
        \tilde x \leftarrow \tilde x + \alpha (x_i - \tilde x), \quad
        x_i \leftarrow x_i - \alpha (x_i - \tilde x), \\
        v \leftarrow \delta v - \eta g(x + \delta v), \quad x_i \leftarrow x_i + v,

    where x is the value of :math:`x_i` before the elastic move. Without momentum this is EASGD,
    with momentum EAMSGD. The model is the centre.

    Parameters
    ----------
    learning_rate : float
        Step size :math:`\eta`, > 0.
    moving_rate : float, optional
        Elastic coefficient :math:`\alpha`, >= 0; by default 0.9 / workers, the paper's choice.
    period : int, default 10
        Steps between two exchanges (the paper's :math:`\tau`), >= 1.
    momentum : float, default 0.0
        Nesterov momentum :math:`\delta`, >= 0 and < 1.

    Returns
    -------
    Algorithm
        Server state ``x``, the centre; worker state ``x, before, difference``, and ``v``
        with momentum; each float64[d].

    Raises
    ------
    ConfigError
        If a number is outside its bounds.

    Notes
    -----
    The elastic difference is computed from the centre just pulled and pushed at once, so a push is
    stale only by what the network lets pass between the two. The first exchange, before the first
    step, moves nothing.

    References
    ----------
    Zhang, Choromanska and LeCun, "Deep learning with Elastic Averaging SGD", NIPS 2015,
    arXiv:1412.6651, Algorithms 1 and 2.
    """
    every = check_count("period", period)
    alpha, beta = (0.0, BETA) if moving_rate is None else (moving_rate, 0.0)
    return Algorithm(
        name="elastic_averaging",
        hyper=Hyper(
            check_number("learning_rate", learning_rate, above=0),
            check_number("moving_rate", alpha, at_least=0),
            beta,
            check_number("momentum", momentum, at_least=0, below=1),
        ),
        server=Server(centre_init, reads=("x",), apply=apply),
        worker=EAMSGD if momentum else EASGD,  # which spares a column for each worker
        cycle=(Pull(every=every), Push(every=every), Step()),
    )
