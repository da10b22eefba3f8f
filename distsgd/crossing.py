"""Where a run first met a target, evaluated more finely than its history.

1. The truth is the first update after which the training loss is at or below the target, if it is
   evaluated after every update. Losses fluctuate: it may lie well before the first point of the
   history at which the loss is low enough, and a run may have met its target between two points.
2. A cell is what lies between two neighbouring evaluated updates. It is open, so that the truth may
   lie in it, if it ends at the first update known to meet the target, or if one of its ends comes
   nearer to the target than losses were seen to dip inside of cells.
3. Open cells are split until the first of them starts close enough to the crossing. What is open
   when the evaluations are used up is inside of the interval that is reported.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distsgd.algorithm import Algorithm
from distsgd.errors import check_number
from distsgd.problem import Problem
from distsgd.run import Crossing, Run
from distsgd.simulation import states

__all__ = ["Crossing", "find_crossing", "search", "with_crossing"]

PRECISION = 0.02
"""Share of the time to a target that may remain unknown."""
NEAR = 0.05
"""Share of the target by which a loss is expected to dip where no dip has been seen."""
CAUTION = 2.0
"""Multiple of the deepest dip seen that the next one may have."""
ROUNDS = 4
"""Rounds of evaluations: in each the run is folded again."""
MOST, LEAST = 2_000, 100
"""Evaluations, at most and at least."""
CHEAP = 2e9
"""Numbers to touch in evaluations that cost nothing to speak of: about a second."""
GRADIENTS_PER_EVALUATION = 3.0
"""Gradients of all samples that take as long as so many evaluations of the loss."""

Evaluate: TypeAlias = Callable[[list[int]], Iterable[float]]
"""Gives the training losses after some updates, which ascend, one by one."""


class Cell(NamedTuple):
    """What lies between two evaluated updates, of which none has been evaluated."""

    start: int
    end: int
    low: float
    """The lower one of the losses at its ends; inf if neither is a number."""

    @property
    def n_inside(self) -> int:
        """Updates inside."""
        return self.end - self.start - 1


def find_crossing(
    run: Run, algorithm: Algorithm, problem: Problem, target: float, *,
    precision: float = PRECISION, most: int | None = None,
) -> Crossing:  # fmt: skip
    """Find the first update of `run` after which the training loss meets `target`.

    The run is folded again, and evaluated where that decides. A lock-free run has no order to fold:
    what its history says is all that is known.

    Parameters
    ----------
    run : Run
        A run, simulated or live.
    algorithm, problem : Algorithm, Problem
        Those of the run.
    target : float
        Training loss.
    precision : float, default 0.02
        Share of the time to the target that may remain unknown, >= 0; one update always may.
    most : int, optional
        Evaluations at most. By default those that take about as long as the run, and more if they
        are cheap.

    Returns
    -------
    Crossing
        The update, and the interval in which the first crossing lies.

    Raises
    ------
    ConfigError
        If `target` is not finite, or `algorithm` or `problem` is not that of the run.
    """
    check_number("target", target)
    check_number("precision", precision, at_least=0)
    if not run.trace.n_updates:
        return run.crossing(target)
    known = dict(zip(run.history["update"], run.history["loss"], strict=True))
    last = run.trace.n_updates
    if last not in known:
        known[last] = problem.loss(run.x)

    def evaluate(updates: list[int]) -> Iterator[float]:
        found = states(run, algorithm, problem, np.array(updates, np.int64))
        return (problem.loss(state.x) for state in found)

    seconds = np.append(0.0, run.trace.seconds)
    return search(
        known, target, evaluate, seconds, precision=precision,
        most=_affordable(run, problem) if most is None else most,
    )  # fmt: skip


def with_crossing(run: Run, algorithm: Algorithm, problem: Problem, target: float) -> Run:
    """Return `run` with its crossing of `target`, see `find_crossing`; unchanged if it knows it."""
    if any(one.target == target for one in run.crossings):
        return run
    found = find_crossing(run, algorithm, problem, target)
    return replace(run, crossings=(*run.crossings, found))


def _affordable(run: Run, problem: Problem) -> int:
    """Return how many evaluations take about as long as the run, or longer if they are cheap."""
    support = problem.support
    samples = 1 if problem.data is None else problem.samples
    numbers = samples * problem.dimension if support is None else support.rows.values.size
    epochs = run.trace.gradients[-1] * run.settings["batch"] / problem.samples
    wanted = max(LEAST, epochs * GRADIENTS_PER_EVALUATION, CHEAP / numbers)
    return int(min(MOST, wanted))


def search(
    known: dict[int, float], target: float, evaluate: Evaluate, seconds: NDArray[np.float64], *,
    precision: float = PRECISION, most: int = MOST,
) -> Crossing:  # fmt: skip
    """Find the first update whose loss is at or below `target`, with few evaluations.

    Parameters
    ----------
    known : dict of int to float
        Losses that are known, by update: those of update 0 and of the last one among them.
    target : float
        Training loss.
    evaluate : callable
        Gives the losses of a list of updates, which ascend, one by one; it is asked for none
        behind the first that meets the target.
    seconds : float64[updates + 1]
        When each update was applied [s], ascending; 0 for the starting point.
    precision : float, default 0.02
        Share of the time to the target that may remain unknown.
    most : int
        Evaluations at most.

    Returns
    -------
    Crossing
        The update, and the interval in which the first crossing lies.
    """
    known, dip = dict(known), 0.0
    while True:
        met = min((update for update, loss in known.items() if loss <= target), default=None)
        cells = _open_cells(known, target, met, max(CAUTION * dip, NEAR * abs(target)))
        wide = [one for one in cells if not _is_close(seconds, one.start, met, precision)]
        if most < 1 or not wide:
            return Crossing(target, met, _after(cells, known, met))
        n_inside = sum(one.n_inside for one in _cells(known, met))
        asked = (
            _inside(_cells(known, met), n_inside) if n_inside <= most
            else _inside(wide, max(1, most // ROUNDS))
        )  # fmt: skip
        found = dict(_until_met(asked, evaluate(asked), target))
        most -= len(found)
        dip = max(dip, _deepest(wide, found))
        known |= found


def _until_met(
    updates: list[int], losses: Iterable[float], target: float
) -> Iterator[tuple[int, float]]:
    for update, loss in zip(updates, losses, strict=True):
        yield update, loss
        if loss <= target:
            return


def _cells(known: dict[int, float], met: int | None) -> list[Cell]:
    """Return the cells in front of the first update known to meet the target, ascending."""
    updates = sorted(update for update in known if met is None or update <= met)
    return [
        Cell(start, end, float(np.fmin(known[start], known[end])))
        for start, end in pairwise(updates) if end - start > 1
    ]  # fmt: skip


def _open_cells(
    known: dict[int, float], target: float, met: int | None, margin: float
) -> list[Cell]:
    """Return the cells in which the loss may have met the target first, ascending."""
    return [one for one in _cells(known, met) if one.end == met or one.low <= target + margin]


def _after(cells: list[Cell], known: dict[int, float], met: int | None) -> int:
    """Return the update behind which the first crossing lies."""
    if cells:
        return cells[0].start
    return max(known) if met is None else max(met - 1, 0)


def _is_close(
    seconds: NDArray[np.float64], after: int, update: int | None, precision: float
) -> bool:
    """Return whether all of ``(after, update]`` is one update, or one time but for `precision`."""
    if update is None:
        return False
    earliest = seconds[after + 1]
    return bool(seconds[update] - earliest <= precision * earliest)


def _inside(cells: list[Cell], most: int) -> list[int]:
    """Return at most `most` updates inside of `cells`, as many in each; the lowest cells first."""
    chosen = sorted(sorted(cells, key=lambda one: one.low)[:most])
    share = max(1, most // len(chosen))
    return [update for one in chosen for update in _between(one, min(share, one.n_inside))]


def _between(cell: Cell, n_points: int) -> list[int]:
    parts = np.linspace(cell.start, cell.end, n_points + 2)[1:-1]
    return [int(update) for update in np.unique(np.rint(parts))]


def _deepest(cells: list[Cell], found: dict[int, float]) -> float:
    """Return by how much a loss inside of a cell was below both of its ends, at most."""
    depths = [
        one.low - found[update]
        for one in cells
        for update in range(one.start + 1, one.end)
        if update in found and math.isfinite(found[update]) and math.isfinite(one.low)
    ]
    return max(depths, default=0.0)
