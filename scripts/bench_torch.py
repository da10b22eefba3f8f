"""PyTorch modules against the plain PyTorch loop: module, loss and `torch.optim.SGD`."""

import copy
import multiprocessing
import statistics
import time
import warnings
from itertools import pairwise
from pathlib import Path

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
from distsgd.problems.torch.problem import TorchProblem

RATE, BATCH, PERIOD = 0.01, 32, 10
ASYNCHRONOUS = ds.Fleet(8, ds.exponential(1.0))
MANY = ds.Fleet(64, ds.lognormal(1.0, 0.3))
"""Workers that take nearly the same time: most of their gradients can be evaluated together."""


def perceptron(*units: int) -> nn.Module:
    """Return a perceptron with rectified hidden layers."""
    layers = [part for sizes in pairwise(units) for part in (nn.Linear(*sizes), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def convolutional() -> nn.Module:
    """Return a network of 4,462 parameters, on images of 8 x 8."""
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
        simulate_row("MLP", perceptron(64, 1000, 1000, 10), ASYNCHRONOUS, 300 // share, "0.8 times"),
        simulate_row("CNN", convolutional(), ASYNCHRONOUS, 1_500 // share, "1.0 times"),
        simulate_row("MLP", perceptron(64, 64, 10), ASYNCHRONOUS, 3_000 // share, "1.0 times"),
        simulate_row("MLP", perceptron(64, 64, 10), MANY, 6_400 // share, "4 times", vmap=True),
        launch_row(5_000 // share, repetitions=1 if quick else 5),
        memory_row(16),
    ]


def simulate_row(
    name: str, module: nn.Module, fleet: ds.Fleet, n_updates: int, reach: str, *, vmap: bool = False
) -> Line:
    """Time asynchronous workers against the plain loop."""
    problem = ds.problems.from_torch(module, ds.data.digits(), "cross_entropy", vmap=vmap)
    algorithm = ds.algorithms.downpour(RATE)
    trace, stops = schedule(algorithm.cycle, fleet, updates=n_updates), np.array([n_updates])
    ours, peer = interleaved(
        lambda: last(fold(algorithm, problem, trace, stops=stops, batch=BATCH, driver="compiled")),
        lambda: plain_loop(problem, module, n_updates),
    )
    how = ", vmap" if vmap else ""
    return Line(
        f"simulate, PyTorch {name} of {problem.dimension:,} parameters, {fleet.workers} workers{how}",
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


def launch_row(n_gradients: int, repetitions: int) -> Line:
    """Measure two live workers against two plain loops in processes of their own."""
    module = convolutional()
    problem = ds.problems.from_torch(module, ds.data.digits(), "cross_entropy")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pairs = [
            (live_rate(problem, n_gradients), sum(pool.starmap(plain_rate, [(problem, module, n_gradients // 2)] * 2)))
            for _ in range(repetitions)
        ]
    ours, peer = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    return Line(
        f"live Downpour, 2 workers, PyTorch CNN of {problem.dimension:,} parameters, exchange every {PERIOD}",
        f"{ours:,.0f} gradients/s",
        f"{peer:,.0f} of two plain PyTorch loops",
        f"{statistics.median(live / plain for live, plain in pairs):.2f} times as fast",
        "0.9 times",
    )


def live_rate(problem: TorchProblem, n_gradients: int) -> float:
    """Return the gradients per second of two live workers, between first and last update."""
    algorithm = ds.algorithms.downpour(RATE, PERIOD, PERIOD)
    run = ds.launch(algorithm, problem, workers=2, gradients=n_gradients, batch=BATCH, evaluations=1)
    gradients, seconds = run.trace.gradients, run.trace.seconds
    return float((gradients[-1] - gradients[0]) / (seconds[-1] - seconds[0]))


def plain_rate(problem: TorchProblem, module: nn.Module, n_updates: int) -> float:
    """Return the gradients per second of the plain loop, in a process of its own."""
    torch.set_num_threads(1)
    plain_loop(problem, module, 10)
    start = time.perf_counter()
    plain_loop(problem, module, n_updates)
    return n_updates / (time.perf_counter() - start)


def memory_row(workers: int) -> Line:
    """Measure the peak memory of workers with a large module, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        n_bytes, versions_bytes = pool.apply(versions_memory, (workers,))
    return Line(
        f"{workers} workers, PyTorch MLP of 4.3 M parameters, float32, peak memory",
        f"{n_bytes / 1e6:,.0f} MB",
        f"{versions_bytes / 1e6:,.0f} MB of versions that they hold",
        f"{n_bytes / versions_bytes:.2f} times",
        "1.2 times",
    )


def versions_memory(workers: int) -> tuple[float, float]:
    """Return the memory that a simulation adds at its peak, and that of its versions [bytes]."""
    warnings.simplefilter("ignore", ds.DistsgdWarning)
    algorithm, fleet = ds.algorithms.downpour(RATE), ds.Fleet(workers, ds.exponential(1.0))
    problem = ds.problems.from_torch(perceptron(64, 2040, 2040, 10), ds.data.digits(), "cross_entropy")
    ds.simulate(algorithm, problem, ds.Fleet(1), updates=1, driver="compiled")  # compiles, and checks the problem
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_bytes()
    ds.simulate(algorithm, problem, fleet, updates=5 * workers, evaluations=1, driver="compiled")
    return peak_bytes() - before, 4.0 * problem.dimension * workers
