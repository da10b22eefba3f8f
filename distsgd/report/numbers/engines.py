"""Simulated and live runs: the clock of each, which are twins, and how far twins agree.

Virtual and wall seconds never meet: not on an axis, not in a ratio, not in an order. What live and
simulated runs share are updates, gradients, epochs and staleness.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from distsgd.run import Run
from distsgd.statistics.spreads import Numbers

Engine: TypeAlias = Literal["simulate", "local", "ray"]
Clock: TypeAlias = Literal["virtual", "wall"]

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

    Parameters
    ----------
    settings : dict
        Settings of the comparison.

    Returns
    -------
    dict of str to dict
        The label of the simulated fleet that each takes after, its engine, and its processes.
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


class Runs(NamedTuple):
    """The finished runs of one algorithm on one problem and fleet."""

    problem: str
    fleet: str
    algorithm: str
    runs: Sequence[Run]


def agreements(cells: Sequence[Runs], settings: Mapping[str, Any]) -> list[Agreement]:
    """Return how far live and simulated runs agree, for each pair of them.

    Parameters
    ----------
    cells : sequence of Runs
        All that ran.
    settings : dict
        Settings of the comparison, which name the modelled fleet of each live one.

    Returns
    -------
    list of Agreement
        One per problem, live fleet and algorithm that ran on both.
    """
    known = {cell[:3]: cell.runs for cell in cells}
    return list(_agreements(known, live_fleets(settings)))


def _agreements(
    known: Mapping[tuple[str, str, str], Sequence[Run]], live: Mapping[str, dict[str, Any]]
) -> Iterator[Agreement]:
    for (problem, fleet, algorithm), runs in known.items():
        against = live.get(fleet, {}).get("fleet", "")
        simulated = known.get((problem, against, algorithm), ())
        if not runs or not simulated:
            continue
        yield Agreement(
            problem,
            fleet,
            against,
            algorithm,
            *_factors(runs, simulated),
            mean_staleness(runs),
            mean_staleness(simulated),
        )


def mean_staleness(runs: Sequence[Run]) -> float | None:
    """Return the mean staleness of all updates of `runs`, None if no order is known."""
    all_of_them = stalenesses_of(runs)
    return float(all_of_them.mean()) if len(all_of_them) else None


def stalenesses_of(runs: Sequence[Run]) -> npt.NDArray[np.int64]:
    """Return the staleness of each update of each of `runs`."""
    return np.concatenate([run.trace.staleness for run in runs])


def _factors(live: Sequence[Run], simulated: Sequence[Run]) -> tuple[float | None, float | None, int | None]:
    """Return the typical and the largest factor between two losses, and where the latter is."""
    twins = {run.settings["seed"]: run for run in simulated}
    pairs = [(run, twins[seed]) for run in live if (seed := run.settings["seed"]) in twins]
    found = [_apart(_known(one), _known(other)) for one, other in pairs]
    at = np.concatenate([np.empty(0), *(updates for updates, _ in found)])
    factors = np.concatenate([np.empty(0), *(own for _, own in found)])
    if not len(factors):
        return None, None, None
    return float(np.median(factors)), float(factors.max()), int(at[factors.argmax()])


def _known(run: Run) -> tuple[Numbers, Numbers]:
    """Return the updates after which the loss of `run` has a logarithm, and that logarithm."""
    updates, losses = (run.history[name].to_numpy().astype(float) for name in ("update", "loss"))
    has_logarithm = np.isfinite(losses) & (losses > 0)
    return updates[has_logarithm], np.log(losses[has_logarithm])


def _apart(one: tuple[Numbers, Numbers], other: tuple[Numbers, Numbers]) -> tuple[Numbers, Numbers]:
    """Return the updates of `one` up to the end of `other`, and the factors between their losses.

    Between two evaluations the logarithm of a loss is a straight line.
    """
    if not len(other[0]):
        return np.empty(0), np.empty(0)
    is_common = (one[0] > 0) & (one[0] >= other[0][0]) & (one[0] <= other[0][-1])
    at, mine = one[0][is_common], one[1][is_common]
    return at, np.exp(np.abs(mine - np.interp(at, *other)))
