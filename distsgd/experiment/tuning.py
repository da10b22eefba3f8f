"""Tuning: every algorithm alike, with seeds that the comparison does not use.

Best is the lowest median over the seeds of tuning of what the comparison is judged by: the time to
the target where there is one, else the final training loss. A run that missed its target is later
than all others, one that diverged counts as infinite. All trials are recorded.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from distsgd.algorithm import Algorithm
from distsgd.errors import ConfigError
from distsgd.experiment.runs import NO_TARGETS, Place, Watch, outcome_of, run_jobs
from distsgd.experiment.setup import Job, Setup
from distsgd.experiment.target import Reference, Target
from distsgd.experiment.trials import Trial, choose
from distsgd.experiment.values import Tunable, Values, grid, refined
from distsgd.run import Run

EVALUATIONS = 40
"""Points of a trial's history, at most: a time to the target is searched between them."""


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
        for problem in setup.problems
        for fleet in fleets
        for label in setup.tunables
        if not setup.reason_not_to_tune(fleet, label)
    ]


def n_tuning_runs(setup: Setup) -> int:
    """Return how many runs tuning makes at most, those that set the target included."""
    per_group = (setup.tuning.trials + setup.tuning.refinements) * len(setup.tuning.seed_list)
    n_runs = len(groups(setup)) * per_group
    if isinstance(setup.target, Reference):
        alone = _of_reference(setup, setup.target)
        n_runs += len(groups(alone)) * per_group + len(alone.problems) * len(alone.seeds)
    return n_runs


def tune(
    setup: Setup, place: Place, watch: Watch | None = None, *, targets: Mapping[str, float] = NO_TARGETS
) -> list[Trial]:
    """Try values for every tunable algorithm, and return all trials in their order, group by group.

    Trials are judged by the time to the loss that `targets` have for their problem. Settings that
    turn out not to fit together are a `ConfigError`.
    """
    found: dict[Group, list[Trial]] = {group: [] for group in groups(setup)}
    points = min(setup.config.evaluations or EVALUATIONS, EVALUATIONS)
    setup = replace(setup, config=replace(setup.config, evaluations=points))
    for step in range(1 + setup.tuning.refinements):
        wanted = [
            (group, values, [Job(*group, seed, algorithm) for seed in setup.tuning.seed_list])
            for group in found
            for values, algorithm in _next_values(setup, group, found[group], step)
        ]
        every = [job for _, _, jobs in wanted for job in jobs]
        done = {id(job): run for job, run in _made(setup, every, place, watch, targets)}
        for group, values, jobs in wanted:
            seeds, runs = [job.seed for job in jobs], [done[id(job)] for job in jobs]
            found[group].append(_trial(group, values, seeds, runs, targets.get(group.problem)))
    return [trial for own in found.values() for trial in own]


def _next_values(setup: Setup, group: Group, trials: Sequence[Trial], step: int) -> list[tuple[Values, Algorithm]]:
    tunable = setup.tunables[group.label]
    if step == 0:
        tried = grid(tunable.ranges, setup.tuning.trials)
        return [(values, _built(tunable, values, group.label)) for values in tried]
    values = refined(tunable.ranges, [one.parameters for one in trials], _ranks(trials))
    try:
        return [] if values is None else [(values, tunable.make(**values))]
    except ConfigError:
        return []  # beyond the grid lies a value that the algorithm does not take


def _ranks(trials: Sequence[Trial]) -> list[float]:
    """Return the place of each trial among all, the best one's being 0; equal costs share one."""
    costs = sorted({trial.cost for trial in trials})
    return [float(costs.index(trial.cost)) for trial in trials]


def _built(tunable: Tunable, values: Values, label: str) -> Algorithm:
    try:
        return tunable.make(**values)
    except ConfigError as error:
        raise ConfigError(f"tuning of {label!r}: {error}; change the range") from None


def _made(
    setup: Setup, jobs: Sequence[Job], place: Place, watch: Watch | None, targets: Mapping[str, float] = NO_TARGETS
) -> Iterator[tuple[Job, Run | str]]:
    """Make the runs of tuning; each is watched as it comes."""
    for job, run in run_jobs(setup, jobs, place, targets):
        if watch is not None:
            watch(outcome_of(job, run))
        yield job, run


def _trial(
    group: Group, values: Values, seeds: Sequence[int], runs: Sequence[Run | str], target: float | None
) -> Trial:
    return Trial(
        *group,
        values,
        list(seeds),
        losses=[_final(run) for run in runs],
        status=["failed" if isinstance(run, str) else run.status for run in runs],
        hashes=["" if isinstance(run, str) else run.hash for run in runs],
        errors=[run for run in runs if isinstance(run, str)],
        times=[] if target is None else [_time_to(target, run) for run in runs],
    )


def _final(run: Run | str) -> float | None:
    loss = math.nan if isinstance(run, str) else float(run.history["loss"][-1])
    return loss if math.isfinite(loss) else None


def _time_to(target: float, run: Run | str) -> float | None:
    update = None if isinstance(run, str) else run.crossing(target).update
    return None if isinstance(run, str) or update is None else run.seconds_at(update)


def chosen(setup: Setup, trials: Sequence[Trial]) -> dict[Group, Algorithm]:
    """Return every algorithm, tuned, for each problem and site: for a live one as for its model."""
    best = {Group(one.problem, one.fleet, one.algorithm): one for one in choose(trials)}
    found = {}
    for problem, site, label in setup.places:
        algorithm = setup.algorithms[label]
        tuned = Group(problem, setup.tuning.fleet or setup.sites[site].fleet, label)
        found[Group(problem, site, label)] = (
            algorithm.make(**best[tuned].parameters) if isinstance(algorithm, Tunable) else algorithm
        )
    return found


def planned(setup: Setup, trials: Sequence[Trial]) -> list[Job]:
    """Return the runs of a comparison, with what tuning has chosen."""
    return [Job(*group, seed, algorithm) for group, algorithm in chosen(setup, trials).items() for seed in setup.seeds]


def find_targets(setup: Setup, place: Place, watch: Watch | None = None) -> dict[str, Target]:
    """Return the target of each problem; a reference is tuned and run for it. Without one, nothing.

    A number holds for every problem. A reference gives each problem its own: `factor` times the
    median final training loss of an algorithm over its seeds, at the values that tuning finds best
    for that loss. So an algorithm that meets the target is about as good as the reference.
    """
    if setup.target is None:
        return {}
    if not isinstance(setup.target, Reference):
        return dict.fromkeys(setup.problems, Target(float(setup.target), "given"))
    alone, site = _of_reference(setup, setup.target), _site(setup, setup.target)
    jobs = [job for job in planned(alone, tune(alone, place, watch)) if job.fleet == site]
    losses: dict[str, list[float]] = {problem: [] for problem in setup.problems}
    for job, run in _made(alone, jobs, place, watch):
        loss = _final(run)
        losses[job.problem].append(math.inf if loss is None else loss)
    return {problem: _target(setup.target, site, own) for problem, own in losses.items()}


def _site(setup: Setup, given: Reference) -> str:
    return given.fleet or next(iter(setup.sites))


def _of_reference(setup: Setup, given: Reference) -> Setup:
    """Return the part of `setup` that sets its target."""
    fleets = {setup.sites[_site(setup, given)].fleet, setup.tuning.fleet}
    return replace(
        setup,
        algorithms={given.reference: setup.algorithms[given.reference]},
        fleets={name: fleet for name, fleet in setup.fleets.items() if name in fleets},
        target=None,
    )


def _target(given: Reference, site: str, losses: Sequence[float]) -> Target:
    origin = f"{given.factor:g} times the median final training loss of {given.reference} on {site}"
    median = float(np.median(losses)) if losses else math.inf
    if not math.isfinite(median):
        return Target(None, f"{origin}, which has none")
    return Target(given.factor * median, f"{origin} ({len(losses)} runs)")


def losses_of(targets: Mapping[str, Target]) -> dict[str, float]:
    """Return the training loss to reach on each problem that has one."""
    return {problem: one.loss for problem, one in targets.items() if one.loss is not None}
