"""Updates that overwrite each other when workers do not lock: counted against a sum that is known.

Usage: python scripts/lost_updates.py [--quick]

Every visit to a sample adds 1 to each of its coordinates, so after some epochs a coordinate is the
number of samples that touch it, times the epochs. What is missing was lost. First every coordinate
is popular, then popularity is that of text.

Niu, Recht, Re and Wright, "Hogwild!", NIPS 2011, assume that adding to a coordinate is atomic, and
that few samples have a coordinate in common.
"""

import sys
from collections.abc import Iterator
from typing import NamedTuple, get_args

import distsgd as ds
from distsgd.algorithm import Algorithm, Server, Worker
from distsgd.data import Data
from distsgd.live.options import Writes
from distsgd.report.terminal import console, print_table

WORKERS = (1, 2, 4)


class One(NamedTuple):
    """What is added, as a hyper-parameter, a state and a message."""

    x: float


def _init(_: One, x: float) -> One:
    return One(x)


def _receive(_: One, __: One, x: float) -> One:
    return One(x)


def _at(_: One, w: One) -> float:
    return w.x


def _step(h: One, _: One, g: float) -> One:
    return One(h.x + 0.0 * g)


def _send(_: One, w: One) -> tuple[One, One]:
    return w, w


def _apply(_: One, s: One, m: One) -> One:
    return One(s.x + m.x)


def counting() -> Algorithm:
    """Return an algorithm that adds 1 to every coordinate of a sample, whatever the gradient."""
    server, worker = Server(_init, ("x",), _apply), Worker(_init, _receive, _at, _step, _send)
    return ds.algorithms.hogwild(1.0)._replace(name="counting", hyper=One(1.0), server=server, worker=worker)


def rows(data: Data, name: str, epochs: int) -> Iterator[tuple[str, ...]]:
    """Run every kind of write on several numbers of workers."""
    problem = ds.problems.least_squares(data)
    expected = epochs * problem.support.rows.values.size
    for writes in get_args(Writes):
        for workers in WORKERS:
            run = ds.launch(counting(), problem, workers=workers, epochs=epochs, batch=1, writes=writes)
            lost = expected - run.x.sum()
            seconds = run.history["wall_seconds"][-1]
            yield (
                name,
                writes,
                f"{workers}",
                f"{expected:,}",
                f"{lost:,.0f}",
                f"{lost / expected:.2%}",
                f"{seconds / expected * 1e9:.1f}",
            )


def main(*, quick: bool) -> None:
    """Print a table of all of them."""
    samples, epochs = (5_000, 2) if quick else (100_000, 10)
    shapes = {
        "10 of 20 coordinates": ds.data.sparse(samples, 20, 10, popularity=0.0, test_samples=0),
        "75 of 47,236, as in text": ds.data.sparse(samples, 47_236, 75, test_samples=0),
    }
    columns = ["sample", "writes", "workers", "changes", "lost", "share", "ns per change"]
    lines = [line for name, data in shapes.items() for line in rows(data, name, epochs)]
    print_table("changes that others have overwritten", columns, lines, console())


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
