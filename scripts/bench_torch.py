"""PyTorch modules against the plain PyTorch loop: module, loss and `torch.optim.SGD`."""

import copy
import multiprocessing
import time
from itertools import pairwise

import numpy as np
import torch
from bench_fold import interleaved, last, peak_bytes
from table import Line
from torch import nn
from torch.nn import functional

import distsgd as ds
from distsgd.data.stream import Stream
from distsgd.fold.fold import fold
from distsgd.order.schedule import schedule
from distsgd.problems.torch_problem import TorchProblem

RATE, BATCH, PERIOD = 0.01, 32, 10


def perceptron(*units: int) -> nn.Module:
    """Return a perceptron with rectified hidden layers."""
    layers = [part for sizes in pairwise(units) for part in (nn.Linear(*sizes), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def convolutional() -> nn.Module:
    """Return a network of 4,490 parameters, on images of 8 x 8."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 12),
        nn.ReLU(),
        nn.Linear(12, 10),
    )


def rows(*, quick: bool = False) -> list[Line]:
    """Return the rows of the table of `scripts/bench`.

    Parameters
    ----------
    quick : bool
        Whether to measure a fifth of the updates.

    Returns
    -------
    list of Line
        Medians of interleaved repetitions, on one thread.
    """
    torch.set_num_threads(1)
    share = 5 if quick else 1
    return [
        simulate_row("MLP", perceptron(64, 1000, 1000, 10), 8, 300 // share, "0.8 times"),
        simulate_row("CNN", convolutional(), 8, 1_500 // share, "1.0 times"),
        simulate_row("MLP", perceptron(64, 64, 10), 8, 3_000 // share, "1.0 times"),
        simulate_row("MLP", perceptron(64, 64, 10), 64, 6_400 // share, "4 times", vmap=True),
        launch_row(5_000 // share),
        memory_row(16),
    ]


def simulate_row(name: str, module: nn.Module, workers: int, n_updates: int, reach: str, *, vmap: bool = False) -> Line:
    """Time asynchronous workers against the plain loop."""
    problem = ds.problems.from_torch(module, ds.data.digits(), "cross_entropy", vmap=vmap)
    algorithm, fleet = ds.algorithms.downpour(RATE), ds.Fleet(workers, ds.exponential(1.0))
    trace, stops = schedule(algorithm.cycle, fleet, updates=n_updates), np.array([n_updates])
    ours, peer = interleaved(
        lambda: last(fold(algorithm, problem, trace, stops=stops, batch=BATCH, driver="compiled")),
        lambda: plain_loop(problem, module, n_updates),
    )
    how = ", vmap" if vmap else ""
    return Line(
        f"simulate, PyTorch {name} of {problem.dimension:,} parameters, {workers} workers{how}",
        f"{n_updates / ours:,.0f} updates/s",
        f"{n_updates / peer:,.0f} of the plain PyTorch loop",
        f"{peer / ours:.2f} times as fast",
        reach,
    )


def plain_loop(problem: TorchProblem, module: nn.Module, n_updates: int) -> nn.Module:
    """Train as one would write it in PyTorch."""
    own = copy.deepcopy(module)
    optimiser = torch.optim.SGD(own.parameters(), lr=RATE)
    x, y = (torch.from_numpy(table) for table in (problem.data.x.astype(np.float32), np.array(problem.data.y)))
    batches = Stream(problem.samples, BATCH).batches(np.zeros(n_updates), np.arange(n_updates))
    for batch in torch.from_numpy(batches.astype(np.int64)):
        optimiser.zero_grad()
        functional.cross_entropy(own(x[batch]), y[batch]).backward()
        optimiser.step()
    return own
