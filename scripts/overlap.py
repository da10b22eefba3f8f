"""What Hogwild!'s overlap statistics say about its loss.

Usage: python scripts/overlap.py [--quick]

Sparse logistic regression on data whose features are ever more unequally popular: Omega is the
widest sample, Delta the share of the most popular feature, rho the share of samples that the worst
sample overlaps. The rate is the best one of a single core. Then W cores race: with stale but
consistent reads, with interleaved reads and atomic changes, and with changes that may overwrite
each other; the last column says which share of these is lost.

Niu, Recht, Re and Wright, "Hogwild!: A Lock-Free Approach to Parallelizing Stochastic Gradient
Descent", NIPS 2011: the steps needed grow with 1 + 6 rho tau + 4 tau^2 Omega sqrt(Delta) for reads
that are tau steps old, and changes are assumed to be atomic.
"""

import statistics
import sys

from papers import median, show, tuned

import distsgd as ds
from distsgd.algorithm import Algorithm
from distsgd.problem import Problem

EPOCHS = 2


def lossy(algorithm: Algorithm, problem: Problem, fleet: ds.Fleet, seeds: range) -> tuple[float, float]:
    """Return the median loss without atomic changes, and the median share of lost ones."""
    runs = [
        ds.simulate(
            algorithm,
            problem,
            fleet,
            seed=seed,
            epochs=EPOCHS,
            batch=1,
            evaluations=1,
            reads="interleaved",
            atomic=False,
        )
        for seed in seeds
    ]
    losses = statistics.median(run.history["loss"][-1] for run in runs)
    return losses, statistics.median(run.counts["lost"] / run.counts["writes"] for run in runs)


def rows(popularity: float, cores: list[int], *, quick: bool) -> list[list[object]]:
    """Return a row per number of cores, for data of one popularity."""
    size = (2_000, 500, 10) if quick else (20_000, 5_000, 20)
    data, seeds = ds.data.sparse(*size, popularity=popularity, noise=0.05), range(1 if quick else 3)
    problem, known = ds.problems.logistic(data), data.statistics
    budget = {"epochs": EPOCHS, "batch": 1}
    rates = [2.0**k for k in (range(-1, 4, 2) if quick else range(-3, 6))]
    alone = tuned(lambda rate: median(ds.algorithms.hogwild(rate), problem, ds.Fleet(1), seeds, **budget), rates)
    algorithm = ds.algorithms.hogwild(alone.rate)
    table: list[list[object]] = []
    for n_cores in cores:
        fleet = ds.Fleet(n_cores, compute=ds.exponential(1.0))
        stale = median(algorithm, problem, fleet, seeds, **budget)
        atomic = median(algorithm, problem, fleet, seeds, reads="interleaved", **budget)
        loss, lost = lossy(algorithm, problem, fleet, seeds)
        statistics_ = [popularity, known.omega, known.delta, known.rho]
        table.append([*statistics_, alone, n_cores, stale, atomic, loss, f"{lost:.1%}"])
    return table


def main(arguments: list[str]) -> None:
    """Print the table."""
    quick = "--quick" in arguments
    popularities, cores = ([0.0, 1.5], [64]) if quick else ([0.0, 0.5, 1.0, 1.5], [16, 256, 2048])
    table = [row for one in popularities for row in rows(one, cores, quick=quick)]
    headings = [
        "popularity",
        "Omega",
        "Delta",
        "rho",
        "one core",
        "cores",
        "stale",
        "interleaved",
        "not atomic",
        "lost",
    ]
    show(f"training loss after {EPOCHS} epochs", headings, table)


if __name__ == "__main__":
    main(sys.argv[1:])
