"""Tuning: every algorithm alike, with seeds that the comparison does not use.

Best is the lowest median of the final training loss over the seeds of tuning; a run that diverged
counts as infinite. All trials are recorded.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from distsgd.algorithm import Algorithm
from distsgd.errors import ConfigError
from distsgd.jobs import Place, Watch, outcome_of, run_jobs
from distsgd.report.trials import Trial, choose
from distsgd.run import Run
from distsgd.search import Tunable, Values, grid, refined
from distsgd.setup import Job, Setup

EVALUATIONS = 5
"""Points of a trial's history, at most: only its end is asked for, and whether it diverged."""


class Group(NamedTuple):
    """What is tuned for itself: an algorithm for a problem, on a fleet."""

    problem: str
    fleet: str
    label: str


def groups(setup: Setup) -> list[Group]:
    """Return what is tuned: each tunable algorithm, on each fleet or on the one that is named."""
    fleets = [setup.tuning.fleet] if setup.tuning.fleet else list(setup.fleets)
    return [
        Group(problem, fleet, label)
        for problem in setup.problems for fleet in fleets for label in setup.tunables
        if not setup.reason_not_to_tune(fleet, label)
    ]  # fmt: skip


def n_tuning_runs(setup: Setup) -> int:
    """Return how many runs tuning makes at most."""
    per_group = (setup.tuning.trials + setup.tuning.refinements) * len(setup.tuning.cases)
    return len(groups(setup)) * per_group


def tune(setup: Setup, place: Place, watch: Watch | None = None) -> list[Trial]:
    """Try values for every tunable algorithm.

    Parameters
    ----------
    setup : Setup
        What is compared.
    place : Place
        Where runs are made.
    watch : callable, optional
        Called with each outcome as it comes.

    Returns
    -------
    list of Trial
        All trials, group by group, in the order in which they were tried.

    Raises
    ------
    ConfigError
        If settings turn out not to fit together.
    """
    found: dict[Group, list[Trial]] = {group: [] for group in groups(setup)}
    setup = replace(setup, evaluations=min(setup.evaluations, EVALUATIONS))
    for step in range(1 + setup.tuning.refinements):
        wanted = {group: _next_values(setup, group, found[group], step) for group in found}
        for group, trial in _tried(setup, wanted, place, watch):
            found[group].append(trial)
    return [trial for own in found.values() for trial in own]


def _next_values(
    setup: Setup, group: Group, trials: Sequence[Trial], step: int
) -> list[tuple[Values, Algorithm]]:
    tunable = setup.tunables[group.label]
    if step == 0:
        tried = grid(tunable.ranges, setup.tuning.trials)
        return [(values, _built(tunable, values, group.label)) for values in tried]
    values = refined(
        tunable.ranges, [one.parameters for one in trials], [one.loss for one in trials]
    )
    try:
        return [] if values is None else [(values, tunable.make(**values))]
    except ConfigError:
        return []  # beyond the grid lies a value that the algorithm does not take


def _built(tunable: Tunable, values: Values, label: str) -> Algorithm:
    try:
        return tunable.make(**values)
    except ConfigError as error:
        msg = f"tuning of {label!r}: {error}; change the range"
        raise ConfigError(msg) from None


def _tried(
    setup: Setup, wanted: Mapping[Group, Sequence[tuple[Values, Algorithm]]], place: Place,
    watch: Watch | None,
) -> Iterator[tuple[Group, Trial]]:  # fmt: skip
    planned = [
        (group, values, [Job(*group, seed, algorithm) for seed in setup.tuning.cases])
        for group, several in wanted.items()
        for values, algorithm in several
    ]
    done: dict[int, Run | str] = {}
    for job, run in run_jobs(setup, [job for _, _, jobs in planned for job in jobs], place):
        done[id(job)] = run
        if watch is not None:
            watch(outcome_of(job, run))
    for group, values, jobs in planned:
        yield group, _trial(group, values, [job.seed for job in jobs], [done[id(j)] for j in jobs])


def _trial(group: Group, values: Values, seeds: Sequence[int], runs: Sequence[Run | str]) -> Trial:
    return Trial(
        group.problem, group.fleet, group.label, values, list(seeds),
        losses=[None if isinstance(run, str) else _final(run) for run in runs],
        status=["failed" if isinstance(run, str) else run.status for run in runs],
        hashes=["" if isinstance(run, str) else run.hash for run in runs],
        errors=[run for run in runs if isinstance(run, str)],
    )  # fmt: skip


def _final(run: Run) -> float | None:
    loss = float(run.history["loss"][-1])
    return loss if math.isfinite(loss) else None


def chosen(setup: Setup, trials: Sequence[Trial]) -> dict[Group, Algorithm]:
    """Return every algorithm as it runs on every problem and fleet.

    Parameters
    ----------
    setup : Setup
        What is compared.
    trials : sequence of Trial
        What tuning tried.

    Returns
    -------
    dict of Group to Algorithm
        One for each problem, site and algorithm; a live one as the simulated one of its fleet.
    """
    best = {Group(one.problem, one.fleet, one.algorithm): one for one in choose(trials)}
    found = {}
    for problem, site, label in setup.places:
        algorithm = setup.algorithms[label]
        tuned = Group(problem, setup.tuning.fleet or setup.sites[site].fleet, label)
        found[Group(problem, site, label)] = (
            algorithm.make(**best[tuned].parameters) if isinstance(algorithm, Tunable)
            else algorithm
        )  # fmt: skip
    return found
