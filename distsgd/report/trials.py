"""What tuning tried, and what it chose."""

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from distsgd.report.contrasts import Tolerance, tolerance


class Trial(msgspec.Struct, frozen=True):
    """One set of values that tuning tried, over the seeds of tuning; lists go by seed.

    A final training loss that is not finite is None; a trial that failed has an error.
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

    @property
    def loss(self) -> float:
        """Median final training loss; infinite if half of the seeds have none."""
        return float(np.median([math.inf if loss is None else loss for loss in self.losses]))


class Tuned(msgspec.Struct, frozen=True):
    """What tuning chose for an algorithm: the trial with the lowest median final training loss.

    `at_edge` names the parameters whose best value is the lowest or the highest that was tried: a
    better one may lie beyond. `tolerance` is the range around the best with at most twice its loss,
    if one parameter was tuned.
    """

    problem: str
    fleet: str
    algorithm: str
    parameters: dict[str, float]
    n_trials: int
    at_edge: list[str]
    tolerance: Tolerance | None = None


def choose(trials: Sequence[Trial]) -> list[Tuned]:
    """Return what the trials of each problem, fleet and algorithm say: the best one, and how sure.

    Parameters
    ----------
    trials : sequence of Trial
        What was tried, in any order.

    Returns
    -------
    list of Tuned
        One per problem, fleet and algorithm. Of equal losses the first trial is the best.
    """
    groups: dict[tuple[str, str, str], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.problem, trial.fleet, trial.algorithm), []).append(trial)
    return [_chosen(own) for own in groups.values()]


def _chosen(trials: Sequence[Trial]) -> Tuned:
    best = min(trials, key=lambda trial: trial.loss)
    tried = {name: [trial.parameters[name] for trial in trials] for name in best.parameters}
    losses = [trial.loss for trial in trials]
    return Tuned(
        best.problem, best.fleet, best.algorithm, best.parameters, len(trials),
        at_edge=[
            name for name, values in tried.items()
            if best.parameters[name] in {min(values), max(values)}
        ],
        tolerance=tolerance(next(iter(tried.values())), losses) if len(tried) == 1 else None,
    )  # fmt: skip
