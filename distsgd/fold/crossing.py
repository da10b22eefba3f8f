"""Where a run first met a target, evaluated more finely than its history.

1. The truth is the first update after which the training loss is at or below the target, if it is
   evaluated after every update. Losses fluctuate: it may lie well before the first point of the
   history that is low enough, and a run may have met its target between two points.
2. A cell is what lies between two neighbouring evaluated updates. It is open, the truth may lie
   in it, if it ends at the first update known to meet the target, or if one of its ends is nearer
   to the target than losses fluctuate there. How much they do is seen from evaluated updates: how
   far each is from the line through its two neighbours.
3. Open cells are split until the first of them starts close enough to the crossing. So what is
   evaluated is little where losses are smooth, and every update where they are noisy.
4. Evaluations are bounded by the cost of the run. What is open when they are used up lies inside of
   the interval that is reported.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distsgd.algorithm import Algorithm
from distsgd.errors import check_number
from distsgd.fold.replay import states
from distsgd.problem import Problem
from distsgd.run import Crossing, Run

__all__ = ["Crossing", "find_crossing", "search", "with_crossing"]

PRECISION = 0.02
"""Share of the time to a target that may remain unknown where evaluations are dear."""
CAUTION = 5.0
"""A loss may be lower than the ends of its cell by this many times what its surroundings show."""
SURROUNDINGS = 4
"""Evaluated updates on each side of a cell that show how much losses fluctuate there."""
NEAR = 0.02
"""Share of the target by which losses may fluctuate where none was seen to, in the widest cells."""
CELLS = 32
"""Cells of a run at least: one that is wider hides too much."""
ROUNDS = 4
"""Times that a run is folded again, at most."""
MOST, LEAST = 5_000, 100
"""Bounds of the number of evaluations that a run affords."""
CHEAP = 1e10
"""Numbers that evaluations may touch whatever the run costs: one or two seconds."""
EVALUATIONS_PER_EPOCH = 3.0
"""Evaluations of the loss of all samples that take as long as their gradients."""

Evaluate: TypeAlias = Callable[[list[int]], Iterable[float]]
"""Gives the training losses after some updates, which ascend, one by one."""


class Cell(NamedTuple):
    """What lies between two evaluated updates; nothing in it has been evaluated."""

    start: int
    end: int
    nearness: float
    """How far its lower end is above the target, in fluctuations; -inf where it ends there."""

    @property
    def n_inside(self) -> int:
        """Updates inside."""
        return self.end - self.start - 1


def find_crossing(
    run: Run,
    algorithm: Algorithm,
    problem: Problem,
    target: float,
    *,
    precision: float = PRECISION,
    most: int | None = None,
) -> Crossing:
    """Find the first update of `run` after which the training loss meets `target`.

    The run, simulated or live, is folded again, and evaluated where that decides. A lock-free run
    has no order to fold: what its history says is all that is known. At `most` so many evaluations
    are made, by default those that take about as long as the run, and more if they are cheap; where
    they are dear, the share `precision` >= 0 of the time to the target may remain unknown. A target
    that is not finite is a `ConfigError`, as is an `algorithm` or a `problem` that is not that of
    the run.
    """
    target = check_number("target", target)
    check_number("precision", precision, at_least=0)
    last = run.trace.n_updates
    if not last:
        return run.crossing(target)
    known = dict(zip(run.history["update"], run.history["loss"], strict=True))
    if last not in known:
        known[last] = problem.loss(run.x)

    def evaluate(updates: list[int]) -> Iterator[float]:
        found = states(run, algorithm, problem, np.array(updates, np.int64))
        return (problem.loss(state.x) for state in found)

    most = _affordable(run, problem) if most is None else most
    return search(known, target, evaluate, np.append(0.0, run.trace.seconds), precision=precision, most=most)


def with_crossing(run: Run, algorithm: Algorithm, problem: Problem, target: float) -> Run:
    """Return `run` with its crossing of `target`, see `find_crossing`; unchanged if it knows it."""
    if any(one.target == target for one in run.crossings):
        return run
    found = find_crossing(run, algorithm, problem, target)
    return replace(run, crossings=(*run.crossings, found))


def _affordable(run: Run, problem: Problem) -> int:
    """Return how many evaluations take about as long as the run, or longer if they are cheap."""
    samples = 1 if problem.data is None else problem.samples
    dense, support = samples * problem.dimension, problem.support
    numbers = dense if support is None else support.rows.values.size
    epochs = run.trace.gradients[-1] * run.settings["batch"] / problem.samples
    wanted = max(LEAST, epochs * EVALUATIONS_PER_EPOCH, CHEAP / max(1, numbers))
    return int(min(MOST, wanted))


def search(
    known: dict[int, float],
    target: float,
    evaluate: Evaluate,
    seconds: NDArray[np.float64],
    *,
    precision: float = PRECISION,
    most: int = MOST,
) -> Crossing:
    """Find the first update whose loss is at or below `target`, with few evaluations.

    `known` are losses by update, those of update 0 and of the last one among them. `evaluate` is
    asked for none behind the first that meets the target. `seconds`, float64[updates + 1], say when
    each update was applied [s], 0 for the starting point. If `most` evaluations are too few for
    more, the share `precision` of the time to the target may remain unknown.
    """
    known = dict(known)  # the caller's stays as it is
    for n_rounds in range(ROUNDS, -1, -1):
        met = min((update for update, loss in known.items() if loss <= target), default=None)
        cells = _open_cells(known, target, met)
        # Rule 3: what can be paid for is evaluated, down to the single update.
        is_affordable = sum(one.n_inside for one in cells) <= most
        wanted = [one for one in cells if is_affordable or not _is_close(seconds, one.start, met, precision)]
        if not wanted or n_rounds == 0 or most < 1:
            break
        asked = _inside(wanted, max(known), most, n_rounds)
        found = dict(_until_met(asked, evaluate(asked), target))
        most -= len(found)
        known |= found
    # Rule 4: an open cell may hold the truth. Without one it is what was found, or behind all.
    behind = max(known) if met is None else max(met - 1, 0)
    return Crossing(target, met, cells[0].start if cells else behind)


def _until_met(updates: list[int], losses: Iterable[float], target: float) -> Iterator[tuple[int, float]]:
    for update, loss in zip(updates, losses, strict=False):
        yield update, loss
        if loss <= target:
            return


def _open_cells(known: dict[int, float], target: float, met: int | None) -> list[Cell]:
    """Return the cells in which the loss may have met the target first, ascending."""
    updates, last = sorted(known), max(known)
    losses = np.array([known[update] for update in updates])
    widths = np.diff(updates)
    near = NEAR * abs(target) * np.minimum(1.0, widths * CELLS / last)
    margins = CAUTION * _fluctuations(np.array(updates), losses) + near
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        above = np.fmin(losses[:-1], losses[1:]) - target
        nearness = np.where(above <= 0, -np.inf, above / margins)
    # Rule 2, and cells that are wide: what is in them was never seen, however far their ends are.
    is_open = (nearness <= 1.0) | ((widths - 1) * CELLS > last)
    return [
        Cell(start, end, float(near))
        for (start, end), near, is_candidate in zip(pairwise(updates), nearness, is_open & (widths > 1), strict=True)
        if is_candidate and (met is None or end <= met)
    ]


def _fluctuations(updates: NDArray[np.int64], losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far losses around each cell are from the lines through their neighbours, at most.

    Those that are not finite show nothing.
    """
    before, after = np.diff(updates)[:-1], np.diff(updates)[1:]
    with np.errstate(invalid="ignore", over="ignore"):
        lines = (losses[:-2] * after + losses[2:] * before) / (before + after)
        distances = np.abs(losses[1:-1] - lines)
    distances = np.pad(np.where(np.isfinite(distances), distances, 0.0), 1 + SURROUNDINGS)
    windows = np.lib.stride_tricks.sliding_window_view(distances, 2 * SURROUNDINGS)
    highest: NDArray[np.float64] = windows.max(axis=1)[1 : len(updates)]
    return highest


def _is_close(seconds: NDArray[np.float64], after: int, update: int | None, precision: float) -> bool:
    """Return whether ``(after, update]`` is one update, or one time but for `precision`."""
    if update is None:
        return False
    earliest = seconds[after + 1]
    return bool(seconds[update] - earliest <= precision * earliest)


def _inside(cells: list[Cell], last: int, most: int, n_rounds: int) -> list[int]:
    """Return updates inside of `cells`: a grid in coarse ones, else all that can be afforded."""
    # Before the grid is fine enough, how much losses fluctuate is not known: so it comes first.
    coarse = [one for one in cells if one.n_inside * CELLS > last]
    if coarse:
        parts = [-(-(one.end - one.start) * CELLS // last) for one in coarse]
        return _points(coarse, [part - 1 for part in parts])[:most]
    if sum(one.n_inside for one in cells) > most:
        most = max(1, most // n_rounds)  # later rounds know better where to look
    chosen = sorted(sorted(cells, key=lambda one: one.nearness)[:most])
    total = sum(one.n_inside for one in chosen)
    return _points(chosen, [max(1, most * one.n_inside // total) for one in chosen])[:most]


def _points(cells: list[Cell], numbers: list[int]) -> list[int]:
    return [update for one, number in zip(cells, numbers, strict=True) for update in _between(one, number)]


def _between(cell: Cell, n_points: int) -> list[int]:
    """Return `n_points` updates inside of a cell, equally spaced, or all if there are fewer."""
    n_cells = min(n_points, cell.n_inside) + 1
    return [cell.start + (part * (cell.end - cell.start)) // n_cells for part in range(1, n_cells)]
