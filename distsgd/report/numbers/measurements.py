"""What each run came to: the numbers by which algorithms are compared, and how well each is known.

1. A time to the target is known to lie between two updates, see `distsgd.fold.crossing`. A run that
   missed is later than its end, one that diverged than every end.
2. At equal time means: when the first run of a problem and fleet ends. The loss then lies between
   those of the evaluations around it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from distsgd.experiment.outcome import Outcome
from distsgd.report.numbers.engines import seconds_column
from distsgd.report.numbers.groups import finished, grouped
from distsgd.run import Run
from distsgd.statistics.inference import Known
from distsgd.statistics.spreads import Numbers


class Measurement(NamedTuple):
    """What one run came to, by its labels."""

    problem: str
    fleet: str
    algorithm: str
    seed: int
    seconds: Known | None
    """Time to the target [s], None without a target."""
    machine_seconds: Known | None
    """The same, of all workers that took part."""
    loss: Known
    """Final training loss, infinite if the run diverged."""
    loss_at_equal_time: Known | None
    """None where no time was spent."""
    equal_time: float
    """When that is [s]."""


def measurements(outcomes: Sequence[Outcome], targets: Mapping[str, float | None]) -> list[Measurement]:
    """Return what each finished run came to; of a problem, `targets` has the loss to reach."""
    runs = finished(outcomes)
    by_case = grouped(runs, lambda pair: (pair[0].problem, pair[0].fleet))
    cases = {place: _case([run for _, run in own]) for place, own in by_case.items()}
    return [_measurement(one, run, cases[one.problem, one.fleet], targets.get(one.problem)) for one, run in runs]


class _Case(NamedTuple):
    """What the runs of a problem and fleet have in common."""

    equal_time: float
    last_end: float
    worst_loss: float


def _case(runs: Sequence[Run]) -> _Case:
    losses = [float(run.history["loss"][-1]) for run in runs]
    worst = max((loss for loss in losses if math.isfinite(loss)), default=1.0)
    return _Case(equal_time(runs), max(end_of(run) for run in runs), worst)


def _measurement(outcome: Outcome, run: Run, case: _Case, target: float | None) -> Measurement:
    seconds = None if target is None else _not_before(reached(run, target), run, case)
    workers = workers_of(run)
    machine = None if seconds is None else Known(seconds.low * workers, seconds.high * workers)
    return Measurement(
        outcome.problem,
        outcome.fleet,
        outcome.algorithm,
        outcome.seed,
        seconds,
        machine,
        _final(run, case),
        _at(case.equal_time, run),
        case.equal_time,
    )


def _not_before(time: Known, run: Run, case: _Case) -> Known:
    """Return the time to a target; a run that diverged meets it within no budget."""
    if run.status != "diverged" or math.isfinite(time.high):
        return time
    return Known(max(time.low, case.last_end), math.inf)


def reached(run: Run, target: float, column: str | None = None) -> Known:
    """Return when the training loss of `run` first met `target`, in a `column` of its history.

    By default in its seconds, virtual or wall. The first update at or below the target lies between
    the ends; the upper one is infinite if none is known.
    """
    crossing = run.crossing(target)
    first = crossing.after + 1 if crossing.update != 0 else 0
    last = int(run.history["update"][-1])
    if crossing.update is None:
        return Known(at_update(run, min(first, last), column), math.inf)
    low, high = (at_update(run, update, column) for update in (first, crossing.update))
    return Known(low, high)


def at_update(run: Run, update: int, column: str | None = None) -> float:
    """Return what `run` had spent after `update`: seconds as its trace has them.

    Other columns are known at evaluations; between two of them they grow evenly.
    """
    if column in {None, seconds_column(run)}:
        return run.seconds_at(update)
    known = run.history["update"].to_numpy(), run.history[column].to_numpy()
    return float(np.interp(update, *known))


def end_of(run: Run) -> float:
    """Return the time at which `run` ended [s], virtual or wall."""
    return float(run.history[seconds_column(run)][-1])


def workers_of(run: Run) -> int:
    """Return how many workers of `run` took part; where no order is known, all of them."""
    took_part = len(np.unique(run.trace.rows["worker"]))
    return took_part or int(run.settings["fleet"].get("workers", 1))


def _final(run: Run, case: _Case) -> Known:
    loss = float(run.history["loss"][-1])
    return Known(loss, loss) if math.isfinite(loss) else Known(case.worst_loss, math.inf)


def equal_time(case: Sequence[Run]) -> float:
    """Return when the first of some runs ended that did not diverge [s]; 0 if all did."""
    return min((end_of(run) for run in case if run.status != "diverged"), default=0.0)


def _at(seconds: float, run: Run) -> Known | None:
    """Return the loss of `run` at a time [s]: between those of the evaluations around it."""
    if seconds <= 0:
        return None
    times: Numbers = run.history[seconds_column(run)].to_numpy()
    losses: Numbers = run.history["loss"].to_numpy()
    after = min(int(np.searchsorted(times, seconds)), len(times) - 1)
    around = losses[[after if times[after] == seconds else max(0, after - 1), after]]
    if not np.isfinite(around).all():
        finite = losses[np.isfinite(losses)]
        return Known(float(finite[-1]) if len(finite) else 1.0, math.inf)
    return Known(float(around.min()), float(around.max()))
