"""Simulated and live runs: the clock of each, and how far runs of both kinds agree.

Virtual and wall seconds never meet: not on an axis, not in a ratio, not in an order. What live and
simulated runs share are updates, gradients, epochs and staleness.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from distsgd.experiment.sites import Engine
from distsgd.run import Run
from distsgd.statistics.spreads import Numbers

Clock: TypeAlias = Literal["virtual", "wall"]

Place: TypeAlias = tuple[str, str, str]
"""A problem, a fleet and an algorithm, by their names."""

_ENGINES: dict[str, Engine] = {"local": "local", "shared_memory": "local", "ray": "ray"}


def engine_of(run: Run) -> Engine:
    """Return the engine that gave `run` its order."""
    return _ENGINES.get(str(run.settings["fleet"].get("kind")), "simulate")


def clock_of(engine: Engine) -> Clock:
    """Return what seconds mean on an engine."""
    return "virtual" if engine == "simulate" else "wall"


def seconds_column(run: Run) -> str:
    """Return the column of the history of `run` that has its seconds."""
    return "seconds" if engine_of(run) == "simulate" else "wall_seconds"


def live_fleets(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the live fleets of a comparison by label: ``fleet``, ``engine`` and ``machines``.

    That is the label of the simulated fleet that each takes after, its engine, and its processes.
    """
    found: dict[str, dict[str, Any]] = settings.get("live", {})
    return found


def engine_on(settings: Mapping[str, Any], fleet: str) -> Engine:
    """Return the engine of the runs on a fleet of a comparison with these settings."""
    engine: Engine = live_fleets(settings).get(fleet, {}).get("engine", "simulate")
    return engine


class Agreement(msgspec.Struct, frozen=True):
    """How far live runs of an algorithm are from simulated ones on the fleet they take after.

    The factor between the losses of two runs with one seed after equally many updates, whichever
    is larger, at each evaluation of the live run: `typical` is the median, `largest` is first met
    after update `at`. None where no two losses can be compared. Then the mean staleness of both.
    """

    problem: str
    fleet: str
    against: str
    algorithm: str
    typical: float | None
    largest: float | None
    at: int | None
    staleness: float | None
    simulated_staleness: float | None


def agreements(runs: Mapping[Place, Sequence[Run]], settings: Mapping[str, Any]) -> list[Agreement]:
    """Return how far live and simulated runs agree, for each pair of them.

    Parameters
    ----------
    runs : mapping of tuple to sequence of Run
        All that finished, by problem, fleet and algorithm.
    settings : dict
        Settings of the comparison, which name the modelled fleet of each live one.

    Returns
    -------
    list of Agreement
        One per problem, live fleet and algorithm that ran on both.
    """
    modelled = {name: own["fleet"] for name, own in live_fleets(settings).items()}
    return [
        Agreement(
            problem,
            fleet,
            modelled[fleet],
            algorithm,
            *_factors(own, simulated),
            mean_staleness(own),
            mean_staleness(simulated),
        )
        for (problem, fleet, algorithm), own in runs.items()
        if own and (simulated := runs.get((problem, modelled.get(fleet, ""), algorithm), ()))
    ]


def mean_staleness(runs: Sequence[Run]) -> float | None:
    """Return the mean staleness of all updates of `runs`, None if no order is known."""
    all_of_them = stalenesses_of(runs)
    return float(all_of_them.mean()) if len(all_of_them) else None


def stalenesses_of(runs: Sequence[Run]) -> npt.NDArray[np.int64]:
    """Return the staleness of each update of each of `runs`."""
    return np.concatenate([run.trace.staleness for run in runs])


def _factors(live: Sequence[Run], simulated: Sequence[Run]) -> tuple[float | None, float | None, int | None]:
    """Return the typical and the largest factor between two losses, and where the latter is."""
    by_seed = {run.settings["seed"]: run for run in simulated}
    pairs = [(run, by_seed[seed]) for run in live if (seed := run.settings["seed"]) in by_seed]
    found = [_apart(_known(one), _known(other)) for one, other in pairs]
    at, factors = np.hstack([np.empty((2, 0)), *found])
    if not len(factors):
        return None, None, None
    return float(np.median(factors)), float(factors.max()), int(at[factors.argmax()])


def _known(run: Run) -> tuple[Numbers, Numbers]:
    """Return the updates after which the loss of `run` has a logarithm, and that logarithm."""
    updates, losses = (run.history[name].to_numpy().astype(float) for name in ("update", "loss"))
    has_logarithm = np.isfinite(losses) & (losses > 0)
    return updates[has_logarithm], np.log(losses[has_logarithm])


def _apart(one: tuple[Numbers, Numbers], other: tuple[Numbers, Numbers]) -> Numbers:
    """Return the updates of `one` up to the end of `other`, and the factors between their losses.

    Between two evaluations the logarithm of a loss is a straight line.
    """
    if not len(other[0]):
        return np.empty((2, 0))
    is_common = (one[0] > 0) & (one[0] >= other[0][0]) & (one[0] <= other[0][-1])
    at, mine = one[0][is_common], one[1][is_common]
    return np.stack([at, np.exp(np.abs(mine - np.interp(at, *other)))])
