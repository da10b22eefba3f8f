"""Settings that are possible and hardly ever meant: a sentence for each, and no error.

Nothing here changes a run. `distsgd.errors.warn` shows the sentences, and a comparison keeps them.
"""

import math
from collections.abc import Iterator, Mapping

from distsgd.algorithm import Algorithm, Push, Start, verb
from distsgd.data.partition import Partition
from distsgd.fold.problem_check import check_problem
from distsgd.order.fleet import Fleet, StaleReads
from distsgd.problem import Problem

FAR = 100.0
"""Quantities of one kind that are further apart were perhaps given in different units."""


def of_problem(problem: Problem, batch: int, *, target: float | None = None, seed: int = 0) -> list[str]:
    """Return what is hardly meant of a problem: its data, its batches, its target.

    Raises
    ------
    ConfigError
        If it is no problem that could be run, see `distsgd.fold.problem_check.check_problem`.
    """
    found = list(check_problem(problem))
    if batch > problem.samples:
        found.append(
            f"batch {batch} is larger than the {problem.samples} samples of {problem.name}, so that"
            " each gradient has some of them several times; lower batch"
        )
    found += _unequal_scales(problem)
    loss = problem.loss(problem.start(seed)) if target is not None else math.inf
    if target is not None and loss <= target:
        found.append(
            f"the target loss {target:g} is met before the first update: {problem.name} starts at"
            f" {loss:.4g}; lower target"
        )
    return found


def _unequal_scales(problem: Problem) -> list[str]:
    if problem.data is None or problem.data.scales.ratio < FAR:
        return []
    ratio, largest, smallest = problem.data.scales
    text = (
        f"features of {problem.data.name} differ in scale by a factor of {ratio:,.0f} (feature"
        f" {largest} against {smallest}, counted from 0), which slows every algorithm down; read"
        ' the data with scale="standard"'
    )
    return [text]


def of_fleet(
    fleet: Fleet | StaleReads,
    problem: Problem,
    algorithm: Algorithm,
    budget: Mapping[str, float | None],
    *,
    batch: int,
    partition: Partition,
) -> list[str]:
    """Return what is hardly meant of a fleet: its size for a budget, its units, its parts.

    Parameters
    ----------
    fleet : Fleet or StaleReads
        The machines; of a sampled order nothing is doubted.
    problem : Problem
        What is minimised on it.
    algorithm : Algorithm
        What runs on it.
    budget : mapping of str to float
        One amount, by its unit; other units may be there as None.
    batch : int
        Samples of a gradient.
    partition : Partition
        Which samples each worker sees.

    Returns
    -------
    list of str
        A sentence for each doubt.
    """
    if not isinstance(fleet, Fleet):
        return []
    found = _idle_workers(fleet.workers, _n_gradients(fleet, problem, algorithm, budget, batch))
    share = problem.samples // fleet.workers
    if partition.is_divided and share < batch:
        found.append(
            f"{partition.parts} parts of {fleet.workers} workers have about {share} samples each,"
            f" fewer than a batch of {batch}; lower batch or the number of workers"
        )
    return found + list(_other_units(fleet, problem, batch))


def _n_gradients(
    fleet: Fleet, problem: Problem, algorithm: Algorithm, budget: Mapping[str, float | None], batch: int
) -> float:
    """Return the gradients of a budget, or infinity where it does not say or one worker has all."""
    ((unit, amount),) = ((unit, float(n)) for unit, n in budget.items() if n is not None)
    push: Push = verb(algorithm.cycle, Push)
    if unit == "seconds" or math.isinf(verb(algorithm.cycle, Start).others_after):
        return math.inf
    if unit == "epochs":
        return math.ceil(amount * problem.samples / batch)
    return amount if unit == "gradients" else amount * push.every * push.quorum_of(fleet.workers)


def _idle_workers(workers: int, n_gradients: float) -> list[str]:
    if workers <= n_gradients:
        return []
    text = (
        f"a budget of {n_gradients:.0f} gradients is less than one for each of {workers} workers;"
        " give many for each, or the run ends before it has begun"
    )
    return [text]


def _other_units(fleet: Fleet, problem: Problem, batch: int) -> Iterator[str]:
    step = sum(law.mean for law in fleet.laws) / len(fleet.laws)
    n_bytes = problem.message_bytes(1, batch)
    times = {
        f"latency {fleet.latency:g} s": fleet.latency,
        f"service {fleet.service:g} s": fleet.service,
        f"bandwidth {fleet.bandwidth:g} bytes/s, at which a message of {n_bytes:.3g} bytes takes"
        f" {n_bytes / fleet.bandwidth:.3g} s,": n_bytes / (fleet.bandwidth * fleet.shards),
    }
    for what, time in times.items():
        if time > FAR * step > 0:
            yield (
                f"{what} is {time / step:,.0f} times the mean time of a step, {step:g} s; times are"
                " in seconds and sizes in bytes"
            )
