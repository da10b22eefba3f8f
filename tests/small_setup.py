"""A small comparison on two workers, as a setup and as a file."""

import dataclasses

import distsgd as ds
from distsgd.experiment.setup import Setup
from distsgd.fold.request import RunConfig
from distsgd.order.budget import Budget

QUADRATIC = ds.problems.quadratic([1.0, 2.0])
DOWNPOUR, SERIAL = ds.algorithms.downpour(0.1), ds.algorithms.serial(0.1)


def setup_of(algorithms: object, problem: object, fleets: object, budget: dict[str, float], **others: object) -> Setup:
    """Return a set-up from settings as `distsgd.compare` takes them."""
    names = {field.name for field in dataclasses.fields(RunConfig)} - {"target"}
    manner = {"evaluations": 40} | {name: others.pop(name) for name in names & others.keys()}
    return Setup(algorithms, problem, fleets, RunConfig(Budget.of(budget), **manner), **others)


def setup(**changes: object) -> Setup:
    """Return a small comparison with some changes."""
    known = {
        "algorithms": {"downpour": DOWNPOUR},
        "problem": QUADRATIC,
        "fleets": {"two": ds.Fleet(2)},
        "budget": {"updates": 20},
        "seeds": 1,
    }
    return setup_of(**known | changes)


TOML = """
updates = 20
batch = 4
seeds = [1, 2]
[tuning]
trials = 5
[problem]
name = "quadratic"
curvature = [1, 2]
[algorithms.a]
algorithm = "downpour"
learning_rate = 0.1
n_push = 2
[fleets.m]
workers = 2
[live]
shards = 1
"""
