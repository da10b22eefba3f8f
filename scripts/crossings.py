"""Reported against exact times to the target, for the built-in comparison.

Usage: python scripts/crossings.py [--quick] [--seeds N]

Every algorithm is tuned as in the built-in comparison. Each of its runs is made twice: evaluated
50 times, and after every update. Columns: the first point of the history that meets the target,
what `distsgd.fold.crossing` finds, and the truth; how late the first two are; evaluations that the
search took beside those of the history; and its time, as a multiple of the run's.
"""

import copy
import math
import sys
from collections.abc import Iterator
from time import perf_counter
from typing import NamedTuple

import msgspec
from numpy.typing import ArrayLike
from papers import show

import distsgd as ds
from distsgd.experiment import file as experiment
from distsgd.experiment.runs import Place, run_once
from distsgd.experiment.setup import Job, Setup
from distsgd.experiment.tuning import chosen, tune
from distsgd.fold.crossing import PRECISION, find_crossing
from distsgd.problem import Problem
from distsgd.run import Crossing, Run


def counted(problem: Problem) -> tuple[Problem, list[float]]:
    """Return the same problem, and a list that its losses are put into as they are evaluated."""
    own, losses = copy.copy(problem), list[float]()

    def loss(x: ArrayLike) -> float:
        losses.append(problem.loss(x))
        return losses[-1]

    object.__setattr__(own, "loss", loss)  # problems are frozen; its class, and its name, stay the same
    return own, losses


class Row(NamedTuple):
    """A run: its times to the target [s], None for a miss, and what finding it cost."""

    job: Job
    coarse: float | None
    found: float | None
    exact: float | None
    is_right: bool
    """Whether the time is known to 2 % or one update, and its interval holds the truth."""
    evaluations: int
    cost: float

    @property
    def late(self) -> tuple[float, float]:
        """How much later than the truth the history and the search are, as shares of it."""
        return _late(self.coarse, self.exact), _late(self.found, self.exact)


def _late(found: float | None, exact: float | None) -> float:
    if found is None or exact is None:
        return 0.0 if found is exact else math.inf
    return found / exact - 1 if exact else found


def measured(setup: Setup, job: Job, target: float) -> Row:
    """Return what a run's history and its crossing say, and what is so."""
    problem, losses = counted(setup.problems[job.problem])
    began = perf_counter()
    run = run_once(setup, job)
    ran = perf_counter()
    found = find_crossing(run, job.algorithm, problem, target)
    cost = (perf_counter() - ran) / (ran - began)
    exact = ds.simulate(
        job.algorithm,
        problem,
        setup.fleets[job.fleet],
        seed=job.seed,
        batch=setup.config.batch,
        evaluate_every=1,
        **setup.config.budget.settings,
    )
    truth = exact.crossing(target).update
    times = [_seconds(run, one) for one in (run.crossing(target).update, found.update, truth)]
    return Row(job, *times, _is_right(run, found, truth), len(losses), cost)


def _seconds(run: Run, update: int | None) -> float | None:
    return None if update is None else run.seconds_at(update)


def _is_right(run: Run, found: Crossing, truth: int | None) -> bool:
    if found.update is None or truth is None:
        return found.update is truth and found.after == run.trace.n_updates
    late = run.seconds_at(found.update) - run.seconds_at(truth)
    is_inside = found.after < truth <= found.update or truth == found.update == 0
    return is_inside and (found.update - truth <= 1 or late <= PRECISION * run.seconds_at(truth))


def planned(*, quick: bool, seeds: int) -> Setup:
    """Return the built-in comparison, or a part of it that takes seconds."""
    built_in = experiment.builtin().with_seeds(seeds)
    if not quick:
        return built_in.build()
    names = ("Downpour", "EAMSGD")
    algorithms = {name: built_in.algorithms[name] | {"learning_rate": 1.0} for name in names}
    fleets = {"staleness 4": built_in.fleets["staleness 4"]}
    part = {"algorithms": algorithms, "fleets": fleets, "epochs": 4.0, "target": 0.4}
    return msgspec.structs.replace(built_in, **part).build()


def rows(setup: Setup) -> Iterator[Row]:
    """Yield what is found of every run."""
    target = setup.settings["target"]
    trials = tune(setup, Place(processes=None), targets=dict.fromkeys(setup.problems, target))
    for group, algorithm in chosen(setup, trials).items():
        for seed in setup.seeds:
            yield measured(setup, Job(*group, seed, algorithm), target)


def main(arguments: list[str]) -> None:
    """Print the table, and what it comes to."""
    seeds = int(arguments[arguments.index("--seeds") + 1]) if "--seeds" in arguments else 1
    found = list(rows(planned(quick="--quick" in arguments, seeds=seeds)))
    headings = [
        "problem",
        "fleet",
        "algorithm",
        "seed",
        "history [s]",
        "found [s]",
        "exact [s]",
        "history late",
        "found late",
        "evaluations",
        "cost",
    ]
    table = [
        [*one.job[:4], *(_text(time) for time in one[1:4]), *map(_share, one.late), one.evaluations, f"{one.cost:.2f}"]
        for one in found
    ]
    show("time to the target", headings, table)
    n_wrong = sum(not one.is_right for one in found)
    cost = sum(one.cost for one in found) / len(found)
    coarse, fine = (max(each) for each in zip(*(one.late for one in found), strict=True))
    print(f"{len(found)} runs, {sum(one.exact is not None for one in found)} met the target.")
    print(f"Wrong: {n_wrong}. Latest: {_share(fine)}, by the histories {_share(coarse)}.")
    evaluations = sum(one.evaluations for one in found) / len(found)
    print(f"Mean cost: {evaluations:.0f} evaluations, {cost:.2f} times the run.")


def _text(time: float | None) -> str:
    return "missed" if time is None else f"{time:.2f}"


def _share(late: float) -> str:
    return "missed" if math.isinf(late) else f"{late:.1%}"


if __name__ == "__main__":
    main(sys.argv[1:])
