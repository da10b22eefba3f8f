"""Stale synchronous parallel: asynchronous, but no worker runs far ahead of the slowest."""

from distsgd.algorithm import Algorithm, Pull, Push, Step
from distsgd.algorithms.parts import Rate, gradient_worker, sgd
from distsgd.errors import check_count, check_number


def stale_synchronous(learning_rate: float, bound: int) -> Algorithm:
    r"""Let workers run at their own pace until one is more than `bound` steps ahead of the slowest.

    Every gradient is applied as it arrives, :math:`x \leftarrow x - \eta g`; a worker that has
    taken :math:`c_i` steps may read again once

    .. math::
        c_i - \min_k c_k \le s.

    Parameters
    ----------
    learning_rate : float
        Step size :math:`\eta`, > 0.
    bound : int
        Steps s that a worker may be ahead, >= 0.

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
    With bound 0 each gradient reads the version that synchronous SGD reads, and each is applied
    with the full learning rate: synchronous SGD with the sum of the gradients, up to rounding.
    Differences from the paper: clocks count pushes that the server has served, and a read returns
    the newest version there, which holds at least the updates that the paper guarantees.

    References
    ----------
    Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server",
    NIPS 2013, section 3.
    """
    return Algorithm(
        name="stale_synchronous",
        hyper=Rate(check_number("learning_rate", learning_rate, above=0)),
        server=sgd,
        worker=gradient_worker,
        cycle=(Pull(bound=check_count("bound", bound, at_least=0)), Step(), Push()),
        sparse=True,
    )
