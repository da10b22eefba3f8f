"""Serial SGD: the baseline that every other algorithm is compared with."""

import math

from distsgd.algorithm import Algorithm, Pull, Push, Start, Step
from distsgd.algorithms.parts import Rate, gradient_worker, sgd
from distsgd.errors import check_number


def serial(learning_rate: float) -> Algorithm:
    r"""Run SGD on one worker; the others of the fleet never start.

    Robbins and Monro's method with one mini-batch gradient per update, each read at the newest
    version:

    .. math::
        x \leftarrow x - \eta g(x).

    Parameters
    ----------
    learning_rate : float
        Step size :math:`\eta`, > 0.

    Returns
    -------
    Algorithm
        Server state ``x``, float64[d].

    Raises
    ------
    ConfigError
        If `learning_rate` is not positive.

    References
    ----------
    Robbins and Monro, "A Stochastic Approximation Method", Annals of Mathematical Statistics 22
    (1951), equation (8).
    """
    return Algorithm(
        name="serial",
        hyper=Rate(check_number("learning_rate", learning_rate, above=0)),
        server=sgd,
        worker=gradient_worker,
        cycle=(Start(others_after=math.inf), Pull(), Step(), Push()),
        sparse=True,
    )
