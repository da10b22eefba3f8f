"""Settings that are possible and hardly ever meant: a sentence for each, and no error.

Nothing here changes a run. `distsgd.errors.warn` shows the sentences, and a comparison keeps them.
"""

import math
from collections.abc import Iterator
from typing import Any

from distsgd.algorithm import Push, Start, verb
from distsgd.fold.problem_check import check_problem
from distsgd.fold.request import RunRequest
from distsgd.order.fleet import Fleet
from distsgd.problem import Problem

FAR = 100.0
"""Quantities of one kind that are further apart were perhaps given in different units."""


def of_problem(problem: Problem, batch: int, *, target: float | None = None, seed: int = 0) -> list[str]:
    """Return what is hardly meant of a valid problem: its data, its batches, its target."""
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


def _unequal_scales(problem: Problem) -> Iterator[str]:
    if problem.data is not None and problem.data.is_table and problem.data.scales.ratio >= FAR:
        ratio, largest, smallest = problem.data.scales
        yield (
            f"features of {problem.data.name} differ in scale by a factor of {ratio:,.0f} (feature"
            f" {largest} against {smallest}, counted from 0), which slows every algorithm down; read"
            ' the data with scale="standard"'
        )


def of_fleet(request: RunRequest[Any]) -> list[str]:
    """Return what is hardly meant of a fleet of machines: its size for a budget, units, parts."""
    fleet, problem, batch = request.fleet, request.problem, request.config.batch
    if not isinstance(fleet, Fleet):
        return []
    n_gradients, found = _n_gradients(request), []
    if fleet.workers > n_gradients:
        found.append(
            f"a budget of {n_gradients:.0f} gradients is less than one for each of {fleet.workers} workers;"
            " give many for each, or the run ends before it has begun"
        )
    partition, share = request.config.partition, problem.samples // fleet.workers
    if partition.is_divided and share < batch:
        found.append(
            f"{partition.parts} parts of {fleet.workers} workers have about {share} samples each,"
            f" fewer than a batch of {batch}; lower batch or the number of workers"
        )
    return found + list(_other_units(fleet, problem, batch))


def doubts(request: RunRequest[Any]) -> list[str]:
    """Return what is hardly meant of a run, see `of_problem` and `of_fleet`."""
    config = request.config
    found = of_problem(request.problem, config.batch, target=config.target, seed=request.seed)
    return found + of_fleet(request)


def _n_gradients(request: RunRequest[Fleet]) -> float:
    """Return the gradients of a budget, or infinity where it does not say or one worker has all."""
    (unit, amount), cycle = request.budget, request.algorithm.cycle
    push: Push = verb(cycle, Push)
    if unit == "seconds" or math.isinf(verb(cycle, Start).others_after):
        return math.inf
    return amount if unit == "gradients" else amount * push.every * push.quorum_of(request.fleet.workers)


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
