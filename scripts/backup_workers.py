"""How many of 100 machines synchronous SGD should not wait for.

Usage: python scripts/backup_workers.py [--quick]

Of W machines the server waits for the first W - b gradients of each round and drops the late ones.
What counts here is the number of gradients per second that are used: more backup workers make
rounds shorter, and use less of the machines. The last two columns give the best b of all, and what
it gains over b = 0.

Chen, Pan, Monga, Bengio and Jozefowicz, "Revisiting Distributed Synchronous SGD", 2016, recommend
b = 4 of 100. Were late workers interrupted, then with exponential times of mean 1 a round would
take H_W - H_b, where H_n = 1 + 1/2 + ... + 1/n (the last row); here they finish, and are dropped.
"""

import sys
from itertools import starmap

from papers import show

import distsgd as ds
from distsgd.order.schedule import schedule

WORKERS = 100
SHOWN = (0, 2, 4, 5, 6, 8, 10, 20, 50)

STEADY = ds.lognormal(1.0, 0.05)
SLOW_MACHINES = [1 / 1.3] * 6 + [1.0] * (WORKERS - 6)
FLEETS = {
    "6 machines always 30 % slower": ds.Fleet(WORKERS, STEADY, speeds=SLOW_MACHINES),
    "6 % of steps 30 % slower": ds.Fleet(WORKERS, STEADY.with_stragglers(0.06, 1.3)),
    "2 % of steps 3 times as slow": ds.Fleet(WORKERS, STEADY.with_stragglers(0.02, 3.0)),
    "lognormal, spread 0.3": ds.Fleet(WORKERS, ds.lognormal(1.0, 0.3)),
    "exponential": ds.Fleet(WORKERS, ds.exponential(1.0)),
}


def used_per_second(fleet: ds.Fleet, backup: int, rounds: int) -> float:
    """Return the gradients per second that enter the model."""
    cycle = ds.algorithms.synchronous(1.0, backup=backup).cycle
    return (WORKERS - backup) * rounds / float(schedule(cycle, fleet, updates=rounds).seconds[-1])


def row(name: str, fleet: ds.Fleet, rounds: int) -> list[object]:
    """Return the gradients per second at some numbers of backup workers, and at the best one."""
    used = [used_per_second(fleet, backup, rounds) for backup in range(WORKERS)]
    best = used.index(max(used))
    return [name, *(used[backup] for backup in SHOWN), best, f"{used[best] / used[0] - 1:.0%}"]


def interrupted() -> list[object]:
    """Return what the exponential row would be if late workers were interrupted."""
    harmonic = [sum(1 / k for k in range(1, n + 1)) for n in range(WORKERS + 1)]
    used = [(WORKERS - b) / (harmonic[WORKERS] - harmonic[b]) for b in range(WORKERS)]
    best = used.index(max(used))
    gain = f"{used[best] / used[0] - 1:.0%}"
    return ["exponential, interrupted (theory)", *(used[b] for b in SHOWN), best, gain]


def main(arguments: list[str]) -> None:
    """Print the table."""
    rounds = 50 if "--quick" in arguments else 1_000
    table = list(starmap(row, ((name, fleet, rounds) for name, fleet in FLEETS.items())))
    headings = ["steps", *(f"b = {backup}" for backup in SHOWN), "best b", "gain"]
    show("gradients used per second", headings, [*table, interrupted()])


if __name__ == "__main__":
    main(sys.argv[1:])
