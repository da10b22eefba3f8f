"""The history of a run: after which updates it is looked at, and what had been spent by then.

1. What is spent by an update is all that was served until the row that closed its round, dropped
   pushes too: they were computed and sent.
2. The starting point is update 0, when nothing has been spent.
3. Points that the caller does not choose are equally spaced in gradients, so that algorithms with
   rounds of other sizes are looked at after equal work.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from distsgd.algorithm import Algorithm, message_columns
from distsgd.errors import ConfigError, check_count
from distsgd.fold.fold import on_support
from distsgd.fold.layers import norm_names
from distsgd.fold.request import EVALUATIONS
from distsgd.problem import Problem
from distsgd.run import HISTORY, Settings, is_live
from distsgd.trace import DROP, JOIN, PULL, PUSH, Trace


class Point(NamedTuple):
    """What was found after an update."""

    update: int
    loss: float
    test_loss: float
    accuracy: float
    norms: Sequence[float] = ()
    """Of each layer's gradient."""


def history(
    algorithm: Algorithm, problem: Problem, trace: Trace, evaluations: Sequence[Point], known: Settings
) -> pl.DataFrame:
    """Return the history of a run, a row per evaluation; these ascend in the update."""
    after = np.array([point.update for point in evaluations], np.int64)
    found = {name: [getattr(point, name) for point in evaluations] for name in Point._fields}
    # rule 2
    times, never = np.append(0.0, trace.seconds)[after], np.full(after.size, np.nan)
    gradients = np.append(0, trace.gradients)[after]
    sizes = message_bytes(algorithm, problem, known["batch"])
    spent = {
        "gradients": gradients,
        "epoch": gradients * (known["batch"] / problem.samples),
        "seconds": never if is_live(known) else times,
        "wall_seconds": times if is_live(known) else never,
        "bytes": np.append(0.0, _bytes(trace, *sizes))[after],
    }
    columns = {name: (found | spent)[name] for name in HISTORY}
    layers = norm_names(problem) if known.get("layer_norms") else []
    norms = {name: [point.norms[n] for point in evaluations] for n, name in enumerate(layers)}
    return pl.DataFrame(columns | norms, HISTORY | dict.fromkeys(layers, pl.Float64))


def _bytes(trace: Trace, pulled: float, pushed: float) -> NDArray[np.float64]:
    """Return the bytes of all messages until each update."""
    verb = trace.rows["verb"]
    # A join brings the server's columns, as a pull does.
    n_pulls = np.cumsum((verb == PULL) | (verb == JOIN))[trace.closing]
    n_pushes = np.cumsum((verb == PUSH) | (verb == DROP))[trace.closing]
    n_bytes: NDArray[np.float64] = n_pulls * pulled + n_pushes * pushed
    return n_bytes


def message_bytes(algorithm: Algorithm, problem: Problem, batch: int) -> tuple[float, float]:
    """Return the sizes of a pull's reply and of a push [bytes], from the columns really sent."""
    pulled, pushed = len(algorithm.server.reads), len(message_columns(algorithm))
    is_whole = on_support(algorithm, problem) is None  # sparse problems too may send whole vectors
    size = partial(Problem.message_bytes, problem) if is_whole else problem.message_bytes
    return size(pulled, batch), size(pushed, batch)


def evaluation_points(trace: Trace, evaluate_every: int | None, evaluations: int | None) -> NDArray[np.int64]:
    """Return the updates after which to evaluate: the first, the last, and some between."""
    last = trace.n_updates
    if evaluate_every is not None and evaluations is not None:
        raise ConfigError("give evaluate_every or evaluations, not both")
    if evaluate_every is not None:
        between = np.arange(0, last, check_count("evaluate_every", evaluate_every))
    else:
        wanted = EVALUATIONS if evaluations is None else check_count("evaluations", evaluations)
        wanted = min(wanted, int(trace.gradients[-1]) if last else 1)
        # rule 3
        marks = np.linspace(0, trace.gradients[-1] if last else 0, wanted + 1)[1:-1]
        between = np.minimum(np.searchsorted(trace.gradients, marks) + 1, last)
    return np.unique(np.concatenate([[0], between, [last]]))
