"""Hogwild!: no worker waits or locks; the step size backs off after every epoch."""

import math
from dataclasses import dataclass

from distsgd.algorithm import Algorithm, Pull, Push, Step
from distsgd.algorithms.parts import Rate, gradient_worker, sgd
from distsgd.errors import ConfigError, check_number


@dataclass(frozen=True)
class BackOff:
    """A schedule: the step size shrinks by the factor `beta` after every epoch."""

    beta: float

    def __call__(self, epoch: float) -> float:
        """Return the factor on the step size after `epoch` epochs."""
        return self.beta ** math.floor(epoch)


def hogwild(learning_rate: float, backoff: float = 0.9) -> Algorithm:
    r"""Let every worker read and update the shared parameters whenever it is ready.

    A processor samples an example e, reads :math:`x_e` and updates the coordinates of e only:

    .. math::
        x_v \leftarrow x_v - \eta \beta^{k} g_v(x_e) \quad \text{for } v \in e,

    where k counts finished epochs of all workers together.

    Parameters
    ----------
    learning_rate : float
        Step size :math:`\eta` (the paper's :math:`\gamma`) in the first epoch, > 0.
    backoff : float, default 0.9
        Factor :math:`\beta` on the step size after each epoch, > 0 and <= 1.

    Returns
    -------
    Algorithm
        Server state ``x``, float64[d].

    Raises
    ------
    ConfigError
        If a number is outside its bounds.

    Notes
    -----
    Differences from the paper: unless a simulation is told that reads are interleaved, a read is a
    consistent snapshot of one version, and an update is applied whole, so that what remains of the
    races is staleness. Unless a partition says otherwise, samples are drawn with replacement, as in
    the paper's analysis; its experiments permute them every epoch. The paper's step contains |E|,
    the number of examples, which its code, and this one, leave to the step size.

    References
    ----------
    Niu, Recht, Re and Wright, "Hogwild!: A Lock-Free Approach to Parallelizing Stochastic Gradient
    Descent", NIPS 2011, arXiv:1106.5730, Algorithm 1; the back-off follows its section 4.
    """
    factor = check_number("backoff", backoff, above=0)
    if factor > 1:
        raise ConfigError(f"backoff must be > 0 and <= 1, not {backoff!r}")
    return Algorithm(
        name="hogwild",
        hyper=Rate(check_number("learning_rate", learning_rate, above=0)),
        server=sgd,
        worker=gradient_worker,
        cycle=(Pull(), Step(), Push()),
        sparse=True,
        schedule=BackOff(factor),
        lock_free=True,
    )
