"""The report: how long it takes to build from many runs, and what it weighs."""

import time

from table import Line

import distsgd as ds
from distsgd.report.numbers.summary import Outcome, summarise
from distsgd.report.page import render

ALGORITHMS, FLEETS, SEEDS = 10, 10, 5
"""500 runs; `quick` has 2 of each."""
UPDATES, EVALUATIONS = 2_000, 100


def outcomes(algorithms: int, fleets: int, seeds: int) -> list[Outcome]:
    """Return runs of asynchronous SGD at as many rates, on machines with queues and stragglers."""
    problem = ds.problems.quadratic([1.0, 0.1, 0.01], noise=0.1)
    return [
        Outcome(
            f"rate {place}",
            f"{2 + workers} machines",
            seed,
            problem="quadratic",
            run=ds.simulate(
                ds.algorithms.downpour(0.02 * (1 + place)),
                problem,
                ds.Fleet(2 + workers, ds.lognormal(1.0, 0.5), latency=0.02, service=0.01),
                updates=UPDATES,
                seed=seed,
                evaluations=EVALUATIONS,
            ),
        )
        for workers in range(fleets)
        for place in range(algorithms)
        for seed in range(seeds)
    ]


def rows(*, quick: bool = False) -> list[Line]:
    """Return how long a report takes from finished runs to its text, and its size.

    Parameters
    ----------
    quick : bool
        Whether to report 8 runs instead of 500.

    Returns
    -------
    list of Line
        One measurement each: a report is built once.
    """
    counts = (2, 2, 2) if quick else (ALGORITHMS, FLEETS, SEEDS)
    found = outcomes(*counts)
    settings = {
        "budget": {"updates": UPDATES},
        "batch": 32,
        "seeds": list(range(counts[2])),
        "evaluations": EVALUATIONS,
        "target": 0.1,
        "note": "",
    }
    start = time.perf_counter()
    text = render(summarise(found, settings, is_complete=True), found)
    seconds = time.perf_counter() - start
    what = f"report of {len(found)} runs"
    return [
        Line(f"{what}, built", f"{seconds:.1f} s", "-", "-", "under 5 s"),
        Line(f"{what}, size", f"{len(text.encode()) / 1e6:.1f} MB", "-", "-", "under 5 MB"),
    ]
