"""A PyTorch module of one's own as a problem."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from distsgd.problems.lazy import framework

if TYPE_CHECKING:
    from torch import nn

    from distsgd.problems.torch.problem import TorchProblem


def from_torch(
    module: "nn.Module",
    data: Any,  # noqa: ANN401 # whatever holds samples
    loss: "nn.Module | Callable[[Any, Any], Any] | str",
    *,
    metric: Callable[[Any, Any], Any] | None = None,
    vmap: bool = False,
    buffers: Literal["frozen", "batch"] | None = None,
    device: str | None = None,
) -> "TorchProblem":
    r"""Train a PyTorch module of your own.

    .. math:: F(x) = \frac 1 n \sum_i loss(module_x(z_i), y_i),

    where x holds the parameters that are trained, in the order of ``module.named_parameters()``;
    tied ones stand once, and those without ``requires_grad`` are constants. A copy of the module is
    trained, the given one never changes. Every run starts at the parameters that the module has,
    whatever its seed.

    Gradients are taken in training mode, losses in evaluation mode. What random layers draw, such
    as dropout, depends on (seed, worker, step) alone; PyTorch's own generator stays as it is. A
    problem has the module's type, float32 or float64, and computes on one thread: on a processor a
    gradient has the same bits in every process, on a GPU or with `vmap` it is only close.

    Parameters
    ----------
    module : torch.nn.Module
        Any module that takes a batch of samples.
    data : Data, tuple or torch.utils.data.Dataset
        Samples of any shape: what `distsgd.data` returns, ``(x, y)`` or ``(x, y, test_x, test_y)``
        of arrays or tensors, or a map-style dataset of pairs. Floats are cast to the module's type
        once, whole labels to int64; whole samples, such as tokens, stay as they are.
    loss : str, torch.nn.Module or callable
        ``loss(outputs, targets)``, a mean over the batch, or its name in ``torch.nn.functional``,
        for example ``"cross_entropy"``.
    metric : callable, optional
        ``metric(outputs, targets)``, a mean over samples, reported of the test samples. By default
        the accuracy where outputs are [n, classes] and targets whole numbers [n], otherwise NaN.
    vmap : bool, default False
        Whether gradients of many workers are evaluated together, by ``torch.func.vmap``, as long as
        the module has fewer than 100,000 parameters: larger ones are faster one at a time.
    buffers : {"frozen", "batch"}, optional
        What becomes of buffers that training changes, such as the running statistics of batch
        normalisation, which no worker could average: "frozen" keeps them as given, in training too;
        "batch" normalises by the batch in training, and in evaluation by the mean statistics of the
        training samples at the evaluated point, in chunks of up to 256.
    device : str, optional
        Where to compute, for example "cuda"; by default where the module is.

    Returns
    -------
    TorchProblem
        Its `layers` have the module's names.

    Raises
    ------
    ConfigError
        If PyTorch is not installed; if the module has no parameters that are trained, or not of one
        type, float32 or float64; if its buffers change without a policy; if module, loss and
        samples do not fit together; if the loss is no mean over the batch; if the device is not
        there; or if gradients of a module that draws are to be vmapped.

    Examples
    --------
    >>> import distsgd as ds
    >>> from torch import nn
    >>> problem = ds.problems.from_torch(nn.Linear(64, 10), ds.data.digits(), "cross_entropy")
    >>> problem.dtype, [layer.name for layer in problem.layers]
    (dtype('float32'), ['weight', 'bias'])
    >>> fleet = ds.Fleet(workers=8, compute=ds.exponential(1.0))
    >>> run = ds.simulate(ds.algorithms.downpour(0.05), problem, fleet, updates=300)
    >>> bool(run.history["accuracy"][-1] > 0.8)
    True
    """
    framework("torch", "torch")
    from distsgd.problems.torch.problem import make_problem  # noqa: PLC0415 # optional, and slow to import

    return make_problem(module, data, loss, metric, vmap=vmap, buffers=buffers, device=device)
