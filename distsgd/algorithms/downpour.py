"""Downpour SGD: replicas that fetch and push at their own periods."""

from typing import NamedTuple

from distsgd.algorithm import Algorithm, At, Column, Pull, Push, Start, Step, Worker
from distsgd.algorithms.parts import Gradient, optimisers
from distsgd.errors import check_count, check_number, unknown_name


class Hyper(NamedTuple):
    """Numbers of Downpour SGD."""

    learning_rate: float
    local_rate: float


class Replica(NamedTuple):
    """A model replica: its parameters, and the gradients accrued since its last push."""

    x: Column
    accrued: Column


def init(h: Hyper, x: Column) -> Replica:
    """Start from the server's parameters with nothing accrued."""
    return Replica(x, 0.0)


def receive(h: Hyper, w: Replica, x: Column) -> Replica:
    """Replace the replica's parameters; what is accrued stays."""
    return Replica(x, w.accrued)


def at(h: Hyper, w: Replica) -> Column:
    """Evaluate gradients at the replica's own parameters."""
    return w.x


def step(h: Hyper, w: Replica, g: Column, at: At) -> Replica:
    """Accrue the gradient, and take a local step."""
    return Replica(w.x - h.local_rate * at.factor * g, w.accrued + g)


def send(h: Hyper, w: Replica) -> tuple[Replica, Gradient]:
    """Push the accrued gradients and start again from 0."""
    return Replica(w.x, 0.0), Gradient(w.accrued)


def downpour(
    learning_rate: float,
    n_fetch: int = 1,
    n_push: int = 1,
    server: str = "sgd",
    *,
    local_rate: float | None = None,
    warm_start: int = 0,
) -> Algorithm:
    r"""Let model replicas fetch parameters every `n_fetch` and push gradients every `n_push` steps.

    Between two fetches a replica goes on locally, and accrues what it will push:

    .. math::
        a \leftarrow a + g(x_i), \quad x_i \leftarrow x_i - \alpha g(x_i).

    On a push the server applies SGD, :math:`x \leftarrow x - \eta a`, or Adagrad,
    :math:`K \leftarrow K + a^2`, :math:`x \leftarrow x - \eta a / \sqrt{K + \epsilon}`.

    Parameters
    ----------
    learning_rate : float
        Rate :math:`\eta` of the server (the paper's :math:`\gamma` with Adagrad), > 0.
    n_fetch : int, default 1
        Steps between two pulls, >= 1.
    n_push : int, default 1
        Steps between two pushes, >= 1.
    server : {"sgd", "adagrad"}, default "sgd"
        The server's optimiser.
    local_rate : float, optional
        Rate :math:`\alpha` of the local steps, > 0; by default the server's.
    warm_start : int, default 0
        Updates that the first replica makes alone before the others start, >= 0.

    Returns
    -------
    Algorithm
        Server state ``x``, and ``k_sum`` with Adagrad, each float64[d].

    Raises
    ------
    ConfigError
        If a number is outside its bounds, or `server` is unknown.

    Notes
    -----
    Differences from the paper: it leaves :math:`\epsilon` open; here it is 1e-8, inside the root
    (Ruder 2016). Its fetches and pushes are asynchronous; here a replica waits for the parameters
    that it fetches, but not for its pushes. Each shard of its server applies requests in an order
    of its own; here the shards of a fleet are equal and share one order.

    References
    ----------
    Dean et al., "Large Scale Distributed Deep Networks", NIPS 2012, section 4.1.
    """
    rate = check_number("learning_rate", learning_rate, above=0)
    local = rate if local_rate is None else check_number("local_rate", local_rate, above=0)
    if not isinstance(server, str) or server not in optimisers:
        raise unknown_name("server", server, optimisers)
    return Algorithm(
        name="downpour",
        hyper=Hyper(rate, local),
        server=optimisers[server],
        worker=Worker(init, receive, at, step, send),
        cycle=(
            Start(others_after=check_count("warm_start", warm_start, at_least=0)),
            Pull(every=check_count("n_fetch", n_fetch)),
            Step(),
            Push(every=check_count("n_push", n_push)),
        ),
        sparse=True,
    )
