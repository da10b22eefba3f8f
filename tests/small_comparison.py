"""A comparison of a second that has every picture: tuned on a quadratic, some runs diverge."""

from functools import cache
from typing import NamedTuple

from distsgd.algorithms import downpour, synchronous
from distsgd.experiment.trials import Trial
from distsgd.order.fleet import Fleet, fixed_staleness
from distsgd.order.laws import exponential
from distsgd.problems import quadratic
from distsgd.report.compare import compare
from distsgd.report.numbers.summary import Outcome, Summary, summarise
from distsgd.report.pictures.charts import Picture
from distsgd.report.pictures.registry import pictures

RATES = (0.05, 0.2, 0.8, 3.2)
NAME = "<b>fast</b> & bold"


class Small(NamedTuple):
    """The numbers of a comparison, and its runs."""

    summary: Summary
    outcomes: list[Outcome]


@cache
def small() -> Small:
    """Return the comparison; all tests share it."""
    machines = {"compute": exponential(1.0), "latency": 0.05, "service": 0.02}
    fleets = {"2 machines": Fleet(2, **machines), "6 machines": Fleet(6, **machines), "far behind": fixed_staleness(20)}
    algorithms = {"together": synchronous(0.2), "alone": downpour(0.2), NAME: downpour(1.7)}
    found = compare(
        algorithms,
        quadratic([1.0, 0.2], noise=0.1),
        fleets,
        gradients=120,
        seeds=4,
        target=0.2,
        evaluations=20,
        note="A note.",
    )
    outcomes = list(found.outcomes)
    problem = outcomes[0].problem
    error = "ValueError: </script><script>x"
    outcomes.append(Outcome("alone", "2 machines", 4, error=error, problem=problem))
    trials = [
        trial(problem, fleet, name, rate)
        for fleet in [*fleets, "not run", "nor this", "nor that"]
        for name in algorithms
        for rate in RATES
    ]
    return Small(summarise(outcomes, found.settings, is_complete=True, trials=trials), outcomes)


@cache
def small_pictures() -> list[Picture]:
    """Return the pictures of the comparison."""
    return pictures(*small())


def trial(problem: str, fleet: str, algorithm: str, rate: float) -> Trial:
    """Return a trial whose loss has a valley, and that diverges at the largest rate."""
    best = sum(map(ord, algorithm + fleet)) % 50 / 100
    loss = None if rate == RATES[-1] else abs(rate - best) + 0.01
    status = "diverged" if loss is None else "done"
    return Trial(
        problem, fleet, algorithm, {"learning_rate": rate}, [100, 101], [loss] * 2, [status] * 2, ["0" * 64] * 2
    )
