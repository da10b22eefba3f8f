import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import pytest

import distsgd as ds
from distsgd.experiment.outcome import Outcome
from distsgd.fold.crossing import with_crossing
from distsgd.report.numbers.measurements import Measurement, at_update, equal_time, measurements, reached, workers_of
from distsgd.run import Run

MakeRun: TypeAlias = Callable[..., Run]
INF = math.inf


def of(run: Run, algorithm: str = "a", *, fleet: str = "f") -> Outcome:
    """Return a run as an outcome."""
    return Outcome(algorithm, fleet, run.settings["seed"], run, problem="p")


def only(found: list[Measurement], algorithm: str) -> Measurement:
    """Return the only measurement of an algorithm."""
    (one,) = (one for one in found if one.algorithm == algorithm)
    return one


@pytest.fixture
def coarse() -> Run:
    """Return a run that is evaluated every tenth update only."""
    return ds.simulate(
        ds.algorithms.serial(0.05), ds.problems.quadratic([1.0]), ds.Fleet(1), updates=100, evaluate_every=10
    )


def test_a_time_lies_between_evaluations(coarse: Run) -> None:
    """A run that is evaluated every tenth update knows its time to a target to ten updates."""
    losses = dict(zip(coarse.history["update"], coarse.history["loss"], strict=True))
    target = losses[30] * 1.001
    assert reached(coarse, target) == (21.0, 30.0)
    assert reached(coarse, target, "update") == (21.0, 30.0)


def test_a_searched_crossing_is_exact(coarse: Run) -> None:
    """Once its crossing was searched for, the time is that of a run evaluated at every update."""
    problem, algorithm = ds.problems.quadratic([1.0]), ds.algorithms.serial(0.05)
    target = float(coarse.history["loss"][3]) * 1.1
    every = ds.simulate(algorithm, problem, ds.Fleet(1), updates=100, evaluate_every=1)
    first = float(np.flatnonzero(every.history["loss"].to_numpy() <= target)[0])
    assert reached(with_crossing(coarse, algorithm, problem, target), target) == (first, first)


def test_a_miss_has_no_end(make_run: MakeRun) -> None:
    """A run that missed is later than its end; one that diverged later than every run's end."""
    long, lost = make_run([2.0] * 9), make_run([2.0, math.nan], status="diverged")
    found = measurements([of(long, "long"), of(lost, "lost")], {"p": 0.5})
    assert only(found, "long").seconds == (8.0, INF)
    assert only(found, "lost").seconds == (8.0, INF)
    assert only(found, "lost").loss == (2.0, INF)


def test_a_target_at_the_start_is_met_at_0(make_run: MakeRun) -> None:
    """A run that starts at its target has spent nothing by then."""
    assert reached(make_run([0.4, 0.3]), 0.5) == (0.0, 0.0)


def test_machine_time_counts_the_workers_that_took_part() -> None:
    """Machine time is the time to the target, times the workers that were ever served."""
    problem = ds.problems.quadratic([1.0])
    fleet = ds.Fleet(4, ds.exponential(1.0))
    for algorithm, workers in ((ds.algorithms.serial(0.2), 1), (ds.algorithms.downpour(0.2), 4)):
        run = ds.simulate(algorithm, problem, fleet, updates=40, evaluate_every=1)
        (one,) = measurements([of(run)], {"p": 0.1})
        assert workers_of(run) == workers
        assert one.seconds is not None
        assert one.machine_seconds == tuple(workers * end for end in one.seconds)


def test_equal_time_is_the_end_of_the_first_run(make_run: MakeRun) -> None:
    """Losses at equal time are those when the first run of a problem and fleet ends."""
    short, long = make_run([2.0, 1.0, 0.9]), make_run([2.0, 1.5, 1.2, 0.8])
    other = make_run([2.0, 0.1])
    found = measurements([of(short, "short"), of(long, "long"), of(other, "x", fleet="g")], {})
    assert only(found, "short").loss_at_equal_time == (0.9, 0.9)
    assert only(found, "long").loss_at_equal_time == (1.2, 1.2)
    assert {one.algorithm: one.equal_time for one in found} == {"short": 2, "long": 2, "x": 1}


def test_a_run_that_diverged_does_not_end_the_others(make_run: MakeRun) -> None:
    """Equal time is not cut short by a run that diverged; if all did, there is none."""
    lost = make_run([2.0, math.nan], status="diverged")
    assert equal_time([lost, make_run([2.0, 1.0, 0.9])]) == 2.0
    assert equal_time([lost]) == 0.0
    (one,) = measurements([of(lost)], {})
    assert one.loss_at_equal_time is None


def test_a_loss_between_evaluations_lies_between_theirs(coarse: Run, make_run: MakeRun) -> None:
    """At a time between two evaluations the loss is known to lie between those around it."""
    losses = coarse.history["loss"]
    found = measurements([of(coarse, "coarse"), of(make_run([2.0] * 26), "short")], {})
    assert only(found, "coarse").loss_at_equal_time == (losses[3], losses[2])


def test_bytes_grow_between_evaluations(coarse: Run) -> None:
    """What is known at evaluations only lies between them, and is theirs where there is one."""
    for row in (0, 3, 10):
        assert at_update(coarse, 10 * row, "bytes") == coarse.history["bytes"][row]
    ends = coarse.history["bytes"][2:4]
    assert ends[0] < at_update(coarse, 25, "bytes") < ends[1]


def test_a_failed_run_has_no_mark(make_run: MakeRun) -> None:
    """An outcome without a run comes to nothing."""
    failed = Outcome("a", "f", 1, error="oh", problem="p")
    assert [one.seed for one in measurements([of(make_run([2.0, 1.0])), failed], {})] == [0]


def test_labels_are_those_of_the_outcome(make_run: MakeRun) -> None:
    """A measurement has the labels of its outcome, whatever the run calls itself."""
    run = replace(make_run([2.0, 1.0], seed=7))
    (one,) = measurements([of(run, "named", fleet="there")], {"p": None})
    assert one[:4] == ("p", "there", "named", 7)
    assert one.seconds is None
