"""Kill processes of live runs at random, for minutes, and replay each run.

Usage: python scripts/soak.py [--minutes 10] [--seed 0]
"""

import argparse
import random
import signal
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import psutil

import distsgd as ds
from distsgd.algorithm import Algorithm
from distsgd.errors import DistsgdError
from distsgd.fold.request import Progress
from distsgd.report.terminal import console, print_table
from distsgd.run import Run

RATE, BATCH, RUN_S = 0.05, 8, 20.0
DELAY = ds.exponential(0.002)
VICTIMS = ("worker", "worker", "worker", "server", "evaluator")
ALGORITHMS = {
    "downpour": ds.algorithms.downpour(RATE, n_fetch=3, n_push=2),
    "synchronous": ds.algorithms.synchronous(RATE),
    "backup": ds.algorithms.synchronous(RATE, backup=1),
    "elastic_averaging": ds.algorithms.elastic_averaging(RATE, period=4, momentum=0.5),
    "adaptive_revision": ds.algorithms.adaptive_revision(RATE),
    "stale_synchronous": ds.algorithms.stale_synchronous(RATE, bound=2),
}


class Line(NamedTuple):
    """What came of one run."""

    algorithm: str
    workers: int
    shards: int
    on_loss: str
    kills: int
    lost: int
    restarts: int
    updates: int
    replay: str


class Killer:
    """Sends a signal to a process of the run now and then, until the run has lasted long enough."""

    def __init__(self, chance: random.Random, workers: int, on_loss: str) -> None:
        self._chance, self.kills, self._n_workers = chance, 0, 0
        self._until = time.monotonic() + RUN_S
        self._spares = workers - 1 if on_loss == "shrink" else 8

    def watch(self, progress: Progress) -> None:
        """Perhaps kill, or stop for ever, a process of a run that is on its way."""
        if progress.updates == 0 or self._chance.random() > 0.15:
            return
        kind = self._chance.choice(VICTIMS)
        if kind == "worker" and self._n_workers >= self._spares:
            return
        children = psutil.Process().children(recursive=True)
        victims = [one for one in children if one.name().startswith(kind)]
        if victims and self.kills < 9:  # ten restarts end a run
            number = signal.SIGSTOP if kind == "worker" else signal.SIGKILL
            self._chance.choice(victims).send_signal(self._chance.choice([number, signal.SIGKILL]))
            self.kills += 1
            self._n_workers += kind == "worker"

    def stop(self) -> bool:
        """Return whether the run has lasted long enough."""
        return time.monotonic() > self._until


def lines(minutes: float, seed: int) -> Iterator[Line]:
    """Make run after run until the time is over, and yield what came of each."""
    chance, until = random.Random(seed), time.monotonic() + 60.0 * minutes
    problem = ds.problems.softmax(ds.data.digits())
    while time.monotonic() < until:
        label = chance.choice(list(ALGORITHMS))
        workers, shards = chance.choice([2, 3, 4]), chance.choice([1, 3])
        on_loss = chance.choice(["replace", "shrink"])
        killer = Killer(chance, workers, on_loss)
        run = ds.launch(
            ALGORITHMS[label],
            problem,
            workers=workers,
            shards=shards,
            on_loss=on_loss,
            updates=10**9,
            batch=BATCH,
            seed=chance.randrange(100),
            delay=DELAY,
            heartbeat=1.0,
            checkpoint_every=0.5,
            evaluate_every=1000,
            watch=killer.watch,
            stop=killer.stop,
        )
        lost, restarts = run.counts["lost_workers"], run.counts["server_restarts"]
        yield Line(
            label,
            workers,
            shards,
            on_loss,
            killer.kills,
            lost,
            restarts,
            run.trace.n_updates,
            replayed(run, ALGORITHMS[label], problem),
        )


def replayed(run: Run, algorithm: Algorithm, problem: object) -> str:
    """Return whether the run is its replay, or where they part."""
    try:
        again = ds.replay(run, algorithm, problem)
    except DistsgdError as error:
        return str(error)
    return "equal" if again.x.tobytes() == run.x.tobytes() else "other bits"


def main() -> None:
    """Print a table of all runs; exit with 1 if one of them is not its replay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    found: list[Line] = []
    for line in lines(asked.minutes, asked.seed):
        found.append(line)
        print(*line, file=sys.stderr)
    rows = [tuple(map(str, line)) for line in found]
    print_table("runs whose processes were killed", Line._fields, rows, console())
    sys.exit(any(line.replay != "equal" for line in found))


if __name__ == "__main__":
    main()
