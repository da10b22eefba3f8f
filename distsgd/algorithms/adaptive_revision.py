"""AdaptiveRevision: AdaGrad that tolerates delay, by revising its past steps."""

from typing import NamedTuple

from distsgd.algorithm import Algorithm, At, Column, Pull, Push, Server, Step, Worker, maximum, sqrt
from distsgd.errors import check_number


class Hyper(NamedTuple):
    """Numbers of AdaptiveRevision."""

    learning_rate: float
    z0: float


class State(NamedTuple):
    """The server: parameters, sum of all gradients, z, and z' (the largest z so far)."""

    x: Column
    g_sum: Column
    z: Column
    z_max: Column


class Message(NamedTuple):
    """A push: the gradient, and the gradient sum that its worker saw at the pull."""

    g: Column
    g_read: Column


class Reader(NamedTuple):
    """A worker: what it read, and the gradient there."""

    x: Column
    g_read: Column
    g: Column


def init(h: Hyper, x: Column) -> State:
    """Start with z = z' = z0 and no gradient."""
    return State(x, 0.0 * x, 0.0 * x + h.z0, 0.0 * x + h.z0)


def apply(h: Hyper, s: State, m: Message, at: At) -> State:
    """Take the new step, and redo at the new rate what was taken meanwhile at the old one."""
    missed = s.g_sum - m.g_read  # g^bck: what others applied since this worker's pull
    eta_old = h.learning_rate * at.factor / sqrt(s.z_max)
    z = s.z + m.g * (m.g + 2 * missed)  # z <- z + g^2 + 2 g g^bck: may decrease
    z_max = maximum(s.z_max, z)
    eta = h.learning_rate * at.factor / sqrt(z_max)
    return State(s.x - eta * m.g + (eta_old - eta) * missed, s.g_sum + m.g, z, z_max)


def worker_init(h: Hyper, x: Column) -> Reader:
    """Start from the server's parameters."""
    return Reader(x, 0.0, 0.0)


def receive(h: Hyper, w: Reader, x: Column, g_sum: Column) -> Reader:
    """Keep the gradient sum beside the parameters: the push returns it."""
    return Reader(x, g_sum, 0.0)


def at(h: Hyper, w: Reader) -> Column:
    """Evaluate the gradient at the parameters as read."""
    return w.x


def step(h: Hyper, w: Reader, g: Column) -> Reader:
    """Hold the gradient until it is sent."""
    return Reader(w.x, w.g_read, g)


def send(h: Hyper, w: Reader) -> tuple[Reader, Message]:
    """Send the gradient with the sum that was seen at the pull."""
    return w, Message(w.g, w.g_read)


def adaptive_revision(learning_rate: float, *, z0: float = 1.0) -> Algorithm:
    r"""AdaGrad that revises its past steps when a late gradient arrives.

    Each push carries the gradient sum that its worker saw at the pull. The server adds the cross
    term that the worker missed, and rescales what was applied meanwhile; per coordinate,

    .. math::
        z \leftarrow z + g^2 + 2 g g^{bck}, \quad z' \leftarrow \max(z', z), \\
        x \leftarrow x - \eta g + (\eta_{old} - \eta) g^{bck}, \quad \eta = \alpha / \sqrt{z'},

    where :math:`g^{bck}` sums the gradients applied since the pull, and :math:`\eta_{old}` is the
    rate before this push.

    Parameters
    ----------
    learning_rate : float
        Step scale, > 0. The paper's :math:`\alpha`.
    z0 : float, default 1.0
        Initial :math:`z` and :math:`z'` of every coordinate, > 0.

    Returns
    -------
    Algorithm
        Server state ``x, g_sum, z, z_max``, each float64[d].

    Raises
    ------
    ConfigError
        If `learning_rate` or `z0` is not positive.

    Notes
    -----
    Without delay this is AdaGrad with an accumulator that starts at z0. Differences from the paper:
    a push may carry the mean gradient of a batch, where the paper pushes one sample's; :math:`z'`
    is kept (the variant without it has no rate once z <= 0).

    References
    ----------
    McMahan and Streeter, "Delay-Tolerant Algorithms for Asynchronous Distributed Online Learning",
    NIPS 2014.
    """
    return Algorithm(
        name="adaptive_revision",
        hyper=Hyper(check_number("learning_rate", learning_rate, above=0), check_number("z0", z0, above=0)),
        server=Server(init, reads=("x", "g_sum"), apply=apply),
        worker=Worker(worker_init, receive, at, step, send),
        cycle=(Pull(), Step(), Push()),
        sparse=True,
    )
