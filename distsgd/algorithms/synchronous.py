"""Synchronous SGD, with backup workers."""

from distsgd.algorithm import Algorithm, Pull, Push, Step
from distsgd.algorithms.parts import Rate, gradient_worker, sgd
from distsgd.errors import check_count, check_number


def synchronous(learning_rate: float, backup: int = 0) -> Algorithm:
    r"""Average one gradient of each worker, then update once; do not wait for the `backup` slowest.

    With W workers the server closes a round at the first :math:`N = W - b` gradients of the
    current version and drops the late ones, so that staleness is always 0:

    .. math::
        x \leftarrow x - \eta \frac{1}{N} \sum_{i \in \text{first } N} g_i(x).

    Parameters
    ----------
    learning_rate : float
        Step size :math:`\eta` on the mean gradient, > 0.
    backup : int, default 0
        Workers b that a round does not wait for, >= 0 and below the number of workers.

    Returns
    -------
    Algorithm
        Server state ``x``, float64[d].

    Raises
    ------
    ConfigError
        If `learning_rate` is not positive, or `backup` not a whole number >= 0.

    Notes
    -----
    The mean of the gradients, not their sum: a sum would multiply the learning rate by N. A late
    worker finishes its gradient and then reads the newest version; it is not interrupted.

    References
    ----------
    Chen, Pan, Monga, Bengio and Jozefowicz, "Revisiting Distributed Synchronous SGD", 2016,
    arXiv:1604.00981.
    """
    return Algorithm(
        name="synchronous",
        hyper=Rate(check_number("learning_rate", learning_rate, above=0)),
        server=sgd,
        worker=gradient_worker,
        cycle=(Pull(), Step(), Push(quorum=None, backup=check_count("backup", backup, at_least=0))),
        sparse=True,
    )
