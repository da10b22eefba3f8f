"""Print how each algorithm of an experiment fares with each learning rate, and its best one.

Usage: python scripts/tune.py [EXPERIMENT.toml] [--quick]

Runs on the first fleet, with seeds that a comparison does not use, so that it is not judged on what
it was tuned on. The best rate has the lowest median of the final training loss. A best rate at the
end of the grid is marked: a better one may lie beyond.
"""

import sys
from pathlib import Path

import msgspec

from distsgd import experiment
from distsgd.comparison import Comparison, outcomes
from distsgd.report.terminal import console, print_table
from distsgd.report.text import number

RATES = [0.01 * 2**k for k in range(2, 12)]
QUICK_RATES = RATES[4:7:2]
SEEDS = [1000, 1001, 1002, 1003, 1004]


def tune(described: experiment.Experiment, rates: list[float]) -> dict[str, list[float]]:
    """Return the median final loss of each algorithm at each rate, on the first fleet."""
    first = next(iter(described.fleets))
    candidates = {
        f"{name} {rate}": table | {"learning_rate": rate}
        for name, table in described.algorithms.items()
        for rate in rates
    }
    setup = msgspec.structs.replace(
        described, algorithms=candidates, fleets={first: described.fleets[first]}
    ).build()
    summary = Comparison(setup.settings, list(outcomes(setup))).summary
    failed = [line.error for line in summary.runs if line.status == "failed"]
    if failed:
        sys.exit(f"{len(failed)} runs failed: {failed[0]}")
    loss = {one.algorithm: one.loss.median if one.loss else float("inf") for one in summary.results}
    return {name: [loss[f"{name} {rate}"] for rate in rates] for name in described.algorithms}


def best(losses: list[float], rates: list[float]) -> str:
    """Return the rate with the lowest loss, marked if it lies at an end of the grid."""
    place = losses.index(min(losses))
    return f"{rates[place]:g}" + " (end of the grid)" * (place in {0, len(rates) - 1})


def main(arguments: list[str]) -> None:
    """Print the table."""
    is_quick = "--quick" in arguments
    files = [argument for argument in arguments if argument != "--quick"]
    described = experiment.read(Path(files[0])) if files else experiment.builtin()
    seeds, rates = (SEEDS[:1], QUICK_RATES) if is_quick else (SEEDS, RATES)
    described = msgspec.structs.replace(described.quick() if is_quick else described, seeds=seeds)
    found = tune(described, rates)
    rows = [
        [name, *(number(loss) for loss in losses), best(losses, rates)]
        for name, losses in found.items()
    ]
    headings = ["algorithm", *(f"{rate:g}" for rate in rates), "best"]
    print_table("median final training loss by learning rate", headings, rows, console())


if __name__ == "__main__":
    main(sys.argv[1:])
