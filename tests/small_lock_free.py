"""Small lock-free runs: an algorithm, problems on few sparse samples, and one worker's run."""

import distsgd as ds
from distsgd.algorithm import Algorithm
from distsgd.fold.request import RunConfig, RunRequest
from distsgd.live.options import LiveFleet, LiveRequest, Writes
from distsgd.order.budget import Budget
from distsgd.problem import Problem

HOGWILD = ds.algorithms.hogwild(0.3, backoff=0.8)
DATA = ds.data.sparse(70, 30, 5, popularity=0.5, test_samples=0)
PROBLEMS = {
    "logistic": ds.problems.logistic(DATA),
    "logistic, l2": ds.problems.logistic(DATA, l2=0.1),
    "svm, l2": ds.problems.svm(DATA, l2=0.1),
    "least_squares, l2": ds.problems.least_squares(DATA, l2=0.1),
}


def request_of(
    problem: Problem, *, algorithm: Algorithm = HOGWILD, workers: int = 1, writes: Writes = "racy", **others: object
) -> LiveRequest:
    """Return a run of one worker on single samples, for three epochs and a half."""
    config = RunConfig(**{"budget": Budget("epochs", 3.5), "batch": 1} | others)
    return RunRequest(algorithm, problem, LiveFleet("shared_memory", workers, writes=writes), config, seed=3)
