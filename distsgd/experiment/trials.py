"""What tuning tried, what it chose, and what another seed of tuning would have changed.

1. Trials are judged by what the comparison is judged by: the time to the target where there is one,
   else the final training loss. Of trials that missed the target the lower final loss is better.
2. Each seed of tuning alone would have chosen some trial. Where these differ, the choice is not
   settled, and what the other choices would have cost belongs to the certainty of every order.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from distsgd.statistics.inference import SAME, Factors, Known
from distsgd.statistics.performance import Tolerance, tolerance
from distsgd.statistics.spreads import median_time

Judged: TypeAlias = Literal["seconds", "loss"]
"""What a trial is judged by: the virtual time to the target, or the final training loss."""


class Cost(NamedTuple):
    """What is compared of two trials, in this order; infinite for a target that was missed."""

    seconds: float
    loss: float


class Trial(msgspec.Struct, frozen=True):
    """One set of values that tuning tried, over the seeds of tuning; lists go by seed.

    A final training loss that is not finite is None, as is the time of a run that missed its target
    [s]; without a target there are no times. A trial that failed has an error.
    """

    problem: str
    fleet: str
    algorithm: str
    parameters: dict[str, float]
    seeds: list[int]
    losses: list[float | None]
    status: list[str]
    hashes: list[str]
    errors: list[str] = []
    times: list[float | None] = []

    @property
    def loss(self) -> float:
        """Median final training loss; infinite if half of the seeds have none."""
        return _or_inf(median_time(self.losses))

    @property
    def seconds(self) -> float:
        """Median time to the target [s]; infinite if half of the seeds missed it."""
        return _or_inf(median_time(self.times)) if self.times else math.inf

    @property
    def cost(self) -> Cost:
        """What the trial is judged by."""
        return Cost(self.seconds, self.loss)

    def cost_of(self, place: int) -> Cost:
        """Return what the trial is judged by on one seed of tuning, that at `place`."""
        time = self.times[place] if self.times else None
        return Cost(_or_inf(time), _or_inf(self.losses[place]))


UNKNOWN = Factors(0.0, math.inf)
"""With a single seed of tuning."""


class Tuned(msgspec.Struct, frozen=True):
    """What tuning chose for an algorithm: the trial with the lowest median cost.

    `judged` says what that cost is. `at_edge` names the parameters whose best value is the lowest
    or the highest that was tried: a better one may lie beyond. `tolerance` is the range around the
    best with at most twice its cost, if one parameter was tuned. `between` is the range of each
    parameter over the choices of the seeds of tuning one by one, and `seconds` and `loss` are the
    factors by which the time to the target and the final loss of these choices differ from those
    of the chosen values.
    """

    problem: str
    fleet: str
    algorithm: str
    parameters: dict[str, float]
    n_trials: int
    at_edge: list[str]
    tolerance: Tolerance | None = None
    judged: Judged = "loss"
    between: dict[str, tuple[float, float]] = {}
    seconds: Factors = UNKNOWN
    loss: Factors = UNKNOWN


def choose(trials: Sequence[Trial]) -> list[Tuned]:
    """Return the best trial, of equal ones the first, of each group, and how sure it is."""
    return [_chosen(own) for own in by_group(trials)]


def by_group(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Return the trials of each problem, fleet and algorithm."""
    groups: dict[tuple[str, str, str], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.problem, trial.fleet, trial.algorithm), []).append(trial)
    return list(groups.values())


def judged_by(trials: Sequence[Trial]) -> Judged:
    """Return what the trials of one algorithm are judged by: no time is known if all missed."""
    return "seconds" if any(math.isfinite(trial.seconds) for trial in trials) else "loss"


def _chosen(trials: Sequence[Trial]) -> Tuned:
    best = min(trials, key=lambda trial: trial.cost)
    tried = {name: [trial.parameters[name] for trial in trials] for name in best.parameters}
    judged = judged_by(trials)
    costs = [getattr(trial, judged) for trial in trials]
    choices = _choices(trials)
    return Tuned(
        best.problem,
        best.fleet,
        best.algorithm,
        best.parameters,
        len(trials),
        at_edge=[name for name, values in tried.items() if best.parameters[name] in {min(values), max(values)}],
        tolerance=tolerance(next(iter(tried.values())), costs) if len(tried) == 1 else None,
        judged=judged,
        between={name: _range([one.parameters[name] for one in choices]) for name in tried},
        seconds=_factors(best, choices, "seconds"),
        loss=_factors(best, choices, "loss"),
    )


def _choices(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trial that each seed of tuning alone would have chosen."""
    n_seeds = min(len(trial.seeds) for trial in trials)
    return [min(trials, key=lambda trial: trial.cost_of(place)) for place in range(n_seeds)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _factors(best: Trial, choices: Sequence[Trial], quantity: Judged) -> Factors:
    """Return how much lower and higher the other choices are than the best one, over all seeds."""
    if len(choices) < 2:
        return UNKNOWN
    known = [one for choice in choices for one in _ratios(choice, best, quantity)]
    return Factors(min(known), max(known)) if known else SAME


def _ratios(one: Trial, best: Trial, quantity: Judged) -> list[float]:
    """Return how many times as much `one` needs as `best`: the mean over seeds, and each miss.

    Where only one of the two missed, no factor is large enough.
    """
    name = {"seconds": "times", "loss": "losses"}[quantity]
    pairs = list(zip(getattr(one, name), getattr(best, name), strict=True))
    both = [math.log(own / other) for own, other in pairs if own and other]
    missed = [math.inf if own is None else 0.0 for own, other in pairs if (own is None) != (other is None)]
    return ([math.exp(sum(both) / len(both))] if both else []) + missed


def tolerated(trials: Sequence[Trial]) -> dict[int, Known]:
    """Return for each seed of tuning how wide a range of the tuned parameter it tolerates.

    That is the factor between the ends of the values around the best one with at most twice its
    cost. It is known to the next value on each side, which costs more; at the edge of what was
    tried it is not bounded. The trials are those of one algorithm on one problem and fleet; nothing
    is returned if several parameters were tuned.
    """
    if len(trials[0].parameters) != 1:
        return {}
    name, judged = next(iter(trials[0].parameters)), judged_by(trials)
    values = [trial.parameters[name] for trial in trials]
    seeds = trials[0].seeds[: min(len(trial.seeds) for trial in trials)]
    costs = {seed: [getattr(trial.cost_of(place), judged) for trial in trials] for place, seed in enumerate(seeds)}
    return {seed: _width(values, tolerance(values, own)) for seed, own in costs.items() if math.isfinite(min(own))}


def _width(values: Sequence[float], own: Tolerance) -> Known:
    below = max((value for value in values if value < own.low), default=0.0)
    above = min((value for value in values if value > own.high), default=math.inf)
    widest = above / below if below > 0 else math.inf
    return Known(own.high / own.low, widest)


def _or_inf(value: float | None) -> float:
    return math.inf if value is None else value
