"""A recorded order: its fold, and one by hand."""

import numpy as np

import distsgd as ds
from distsgd.algorithm import Algorithm
from distsgd.fold.fold import fold
from distsgd.problem import Problem
from distsgd.trace import JOIN, LEAVE, PULL, PUSH, ROW, Trace

BATCH, SEED = 4, 2
PROBLEM = ds.problems.quadratic([1.0, 0.5, 0.2], noise=0.1)


def folded(algorithm: Algorithm, trace: Trace, problem: Problem = PROBLEM) -> list[np.ndarray]:
    """Return the parameters after each update."""
    stops = np.arange(trace.n_updates + 1)
    states = fold(algorithm, problem, trace, stops=stops, batch=BATCH, seed=SEED)
    return [state.x for state in states]


BY_HAND = [  # time, sent, done, worker, verb, step, version, read
    (0, 0, 0, 0, PULL, 0, 0, 0),
    (0, 0, 0, 1, PULL, 0, 0, 0),
    (0, 0, 0, 2, PULL, 0, 0, 0),
    (1, 1, 2, 2, PUSH, 1, 0, 0),
    (1, 1, 2, 0, PUSH, 1, 0, 0),
    (2, 2, 2, 1, LEAVE, 0, 1, 1),
    (2, 2, 2, 2, PULL, 1, 1, 1),
    (2, 2, 2, 0, PULL, 1, 1, 0),
    (3, 3, 3, 1, JOIN, 0, 1, 1),
    (3, 3, 3, 1, PULL, 0, 1, 1),
    (4, 4, 5, 1, PUSH, 1, 1, 1),
    (4, 4, 5, 2, PUSH, 2, 1, 1),
    (5, 5, 5, 0, PUSH, 2, 2, 0),
]


def by_hand() -> Trace:
    """Return two synchronous rounds of three workers, one away when the first closes."""
    return Trace(np.array(BY_HAND, ROW), 3)
