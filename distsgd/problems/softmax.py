"""Softmax regression: the network without a hidden layer."""

from distsgd.problems.network import Network, make_network
from distsgd.samples.dataset import Data


def softmax(data: Data, l2: float = 0.0) -> Network:
    r"""Softmax (multinomial logistic) regression, convex.

    .. math::
        F(W, b) = -\frac 1 n \sum_i \log softmax(z_i W + b)_{y_i} + \frac{l2}{2} |x|^2,
        \quad \nabla_{z_i W} F = \frac 1 n (softmax(z_i W + b) - onehot(y_i)).

    Parameters
    ----------
    data : Data
        Labels are whole numbers, one per class. Sparse data are made dense.
    l2 : float, default 0.0
        Strength of the regulariser l2 / 2 :math:`|x|^2` on weights and biases, >= 0.

    Returns
    -------
    Network
        A point is W, features by classes in C order, and then b. Starts at 0.

    Raises
    ------
    ConfigError
        If the labels are no classes, `l2` is negative, or sparse data would not fit in 1 GB.
    """
    return make_network("softmax", data, (), l2)
