"""What a shard of the parameter server carries, when to add shards, and what 1,000 workers do.

Usage: python scripts/shard_size.py [--quick]

The model: nodes with 10 Gbit/s, 0.2 ms between them, a server that takes 50 us for a message, and
workers whose step takes 100 ms on average (lognormal, coefficient of variation 0.3). Parameters are
dense and have 8 bytes. First table: W workers that pull and push at every step ask each of k shards
for 8 d W / (0.1 s k) bytes per second in either direction; shards are enough where that is at most
70 % of the link. Second table: the order that the simulator samples for 1,000 workers.
"""

import math
import sys

from papers import show

import distsgd as ds
from distsgd.algorithm import Algorithm
from distsgd.fold.simulate import message_bytes
from distsgd.order.schedule import schedule
from distsgd.report.formatting import number

STEP_S, VARIATION, LATENCY_S, SERVICE_S = 0.1, 0.3, 2e-4, 5e-5
LINK = 10e9 / 8
"""Bandwidth of a node, in and out [bytes/s]."""
SHARE = 0.7
"""Share of a link up to which messages hardly wait for each other."""
WORKERS, PARAMETERS = [8, 64, 1_000], [10_000, 1_000_000, 100_000_000]


def fleet(workers: int, shards: int) -> ds.Fleet:
    """Return the model of machines."""
    return ds.Fleet(
        workers, ds.lognormal(STEP_S, VARIATION), latency=LATENCY_S, bandwidth=LINK, service=SERVICE_S, shards=shards
    )


def sizes(algorithm: Algorithm, parameters: int) -> dict[str, float]:
    """Return the sizes of a pull's reply and of a push [bytes]: those of one parameter, times d."""
    pulled, pushed = message_bytes(algorithm, ds.problems.quadratic([1.0]), 32)
    return {"pull_bytes": pulled * parameters, "push_bytes": pushed * parameters}


def enough(workers: int, parameters: int) -> tuple[float, int]:
    """Return what one shard would carry [bytes/s], and how many shards carry it well."""
    load = sizes(ds.algorithms.downpour(0.1), parameters)["push_bytes"] * workers / STEP_S
    return load, max(1, math.ceil(load / (SHARE * LINK)))


def loads() -> list[list[object]]:
    """Return the rows of the first table."""
    table: list[list[object]] = []
    for workers in WORKERS:
        for parameters in PARAMETERS:
            load, shards = enough(workers, parameters)
            columns = [f"{load / 1e6:,.0f} MB/s", f"{load / LINK:,.2f}", f"{shards:,}"]
            table.append([f"{workers:,}", f"{parameters:,}", *columns])
    return table


def predictions(workers: int, parameters: int, steps: int) -> list[list[object]]:
    """Return the rows of the second table: what so many steps of every worker look like."""
    algorithms = {
        "Downpour": ds.algorithms.downpour(0.1),
        "Downpour, every 10th": ds.algorithms.downpour(0.1, n_fetch=10, n_push=10),
        "synchronous": ds.algorithms.synchronous(0.1),
        "synchronous, 5 % backup": ds.algorithms.synchronous(0.1, backup=workers // 20),
    }
    _, well = enough(workers, parameters)
    table: list[list[object]] = []
    for name, algorithm in algorithms.items():
        for shards in sorted({1, max(1, well // 10), well}):
            trace = schedule(
                algorithm.cycle, fleet(workers, shards), gradients=workers * steps, **sizes(algorithm, parameters)
            )
            rate = trace.gradients[-1] / trace.seconds[-1]
            busy = f"{trace.utilisation.mean():.0%}"
            table.append([name, str(shards), number(rate), busy, number(trace.staleness.mean())])
    return table


def main(arguments: list[str]) -> None:
    """Print both tables."""
    workers, steps = (200, 20) if "--quick" in arguments else (1_000, 50)
    headings = ["workers", "parameters", "one shard carries", "of its link", "shards enough"]
    show("pull and push at every step of 100 ms", headings, loads())
    headings = ["algorithm", "shards", "gradients per s", "workers compute", "mean staleness"]
    rows = predictions(workers, 1_000_000, steps)
    show(f"{workers:,} workers, 1,000,000 parameters, {steps} steps each", headings, rows)


if __name__ == "__main__":
    main(sys.argv[1:])
