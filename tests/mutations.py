"""Mutations of an experiment file: nasty values, keys that are gone or elsewhere, edits of text."""

import copy
import datetime as dt
import math
import random
from typing import Any, TypeAlias

Table: TypeAlias = dict[str, Any]

NASTY: tuple[Any, ...] = (
    0,
    -1,
    1,
    2,
    3,
    7,
    10**6,
    2**31,
    2**32,
    10**12,
    2**62,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
    -(2**63),
    10**400,
    0.0,
    -0.0,
    0.5,
    -1.5,
    1e-320,
    1e-9,
    1e9,
    1e308,
    math.inf,
    -math.inf,
    math.nan,
    "",
    "tune",
    "x" * 100_000,
    "\u202e\U0001f600\u0000",
    "constant(1e308)",
    "constant(0)",
    "exponential(1e-320)",
    "pareto(1.0, 1.0000001)",
    "lognormal(1e300, 1e300)",
    "gamma(1.0, 1e-300)",
    "gamma(1e308, 1e308)",
    "uniform(0, 1e308)",
    "uniform(0, 5e-324)",
    "empirical([1e308, 1.0])",
    "empirical([])",
    "constant(1e400)",
    "exponential(1.0).with_stragglers(1.0, 1e308)",
    "exponential((((1))))",
    "constant(True)",
    "exponential([1.0])",
    "constant(value=nan)",
    "f(" * 3000,
    "constant(9**9**9)",
    "local",
    "ray",
    True,
    False,
    [],
    [1],
    [0, -1],
    ["tune"],
    [[1]],
    [1.5, "a"],
    [10**12],
    [1e308, 1e308],
    [2**63],
    {},
    {"low": 0, "high": 1},
    {"low": 1, "high": 10**30},
    {"low": 1e-320, "high": 1e308},
    {"low": 1},
    {"low": math.nan, "high": 2.0},
    {"name": "digits"},
    {"reference": "serial"},
    {"a": {"b": {"c": 1}}},
    {"name": "sparse", "samples": 10**12, "features": 10**12, "nonzeros": 10**6},
    {"name": "sparse", "samples": 20, "features": 10, "nonzeros": 11},
    {"name": "svmlight", "path": "/"},
    {"name": "svmlight", "path": ""},
    {"name": "svmlight", "path": "\0"},
    dt.date(2020, 1, 1),
    dt.datetime(2020, 1, 1, 1, 1),
    dt.time(1, 1),
)
"""Values that a user may give where they do not belong."""

NEW = (
    "problem",
    "problems",
    "epochs",
    "updates",
    "gradients",
    "seconds",
    "batch",
    "seeds",
    "target",
    "evaluations",
    "note",
    "tuning",
    "partition",
    "reads",
    "atomic",
    "engine",
    "live",
    "workers",
    "compute",
    "speeds",
    "latency",
    "bandwidth",
    "service",
    "shards",
    "failures",
    "staleness",
    "stale_reads",
    "seed",
    "algorithm",
    "server",
    "backup",
    "n_fetch",
    "n_push",
    "momentum",
    "bound",
    "optimiser",
    "moving_rate",
    "period",
    "parts",
    "sampler",
    "concentration",
    "mean_time",
    "repair",
    "hidden",
    "l2",
    "data",
    "name",
    "fleet",
    "low",
    "high",
    "trials",
    "refinements",
    "writes",
    "delay",
    "backoff",
    "z0",
    "learning_rate",
)
"""Keys that some table knows."""

MORE = """
[fleets.everything]
workers = 3
compute = ["exponential(1.0)", "pareto(1.0, 2.5)", "gamma(1.0, 0.5).with_stragglers(0.1, 10.0)"]
speeds = [1.0, 2.0, 0.5]
latency = 0.1
bandwidth = 1e5
service = 0.01
shards = 2
failures = {mean_time = 10.0, repair = 1.0}

[fleets.sampled]
stale_reads = "exponential(4.0)"
seed = 3

[partition]
parts = "shared"
sampler = "reshuffled"

[live]
workers = 2
staleness = 1
heartbeat = 1.0
checkpoint_every = 5.0
writes = "racy"

[problems.sparse]
name = "logistic"
l2 = 1e-3

[problems.sparse.data]
name = "sparse"
samples = 40
features = 30
nonzeros = 3
popularity = 1.1
noise = 0.1
seed = 1

[problems.quadratic]
name = "quadratic"
curvature = [1.0, 2.0]
noise = 0.1
"""
"""Tables that the built-in experiment does not have."""


def mutated(table: Table, dice: random.Random) -> tuple[Table, str]:
    """Return a copy of `table` with one to three mutations, and what they are."""
    changed = copy.deepcopy(table)
    told = [_mutate(changed, dice) for _ in range(dice.choice([1, 1, 1, 2, 3]))]
    return changed, "; ".join(told)


def edited(text: str, dice: random.Random) -> str:
    """Return `text` with one to three characters inserted, removed, replaced or moved."""
    letters = list(text)
    for _ in range(dice.randrange(1, 4)):
        place = dice.randrange(len(letters))
        match dice.randrange(4):
            case 0:
                letters.insert(place, dice.choice("0123456789.-eE_[]{}\"'=,#\n\\\t xé\0\x7f"))
            case 1:
                del letters[place]
            case 2:
                letters[place] = chr(dice.randrange(1, 0x250))
            case 3:
                letters.insert(place, letters.pop(dice.randrange(len(letters))))
    return "".join(letters)


def _mutate(table: Table, dice: random.Random) -> str:
    holder, key = dice.choice(_places(table))
    kind = dice.choice(["value"] * 6 + ["delete", "rename", "swap", "new", "new"])
    if kind == "value":
        holder[key] = copy.deepcopy(dice.choice(_alike(holder[key]) if dice.randrange(3) else NASTY))
    elif kind == "delete":
        del holder[key]
    elif kind == "rename":
        key = dice.choice([key + "s", key.upper(), "", "\u00e9", dice.choice(NEW)])
        holder[key] = holder.pop(next(iter(holder)))
    elif kind == "swap":
        other, name = dice.choice(_places(table))
        holder[key], other[name] = copy.deepcopy(other[name]), copy.deepcopy(holder[key])
    else:
        key = dice.choice(NEW)
        holder[key] = copy.deepcopy(dice.choice(NASTY))
    return f"{kind} {key} = {str(holder.get(key))[:60]}"


def _alike(value: object) -> list[Any]:
    """Return nasty values of the same kind, since others are refused at once."""
    kind = (int, float) if isinstance(value, (int, float)) else type(value)
    return [one for one in NASTY if isinstance(one, kind)]


def _places(table: Table) -> list[tuple[Table, str]]:
    """Return every key of a table and of the tables in it, with the table that holds it."""
    own = [(table, key) for key in table]
    return own + [place for value in table.values() if isinstance(value, dict) for place in _places(value)]
