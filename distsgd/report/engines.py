"""Simulated and live runs: which clock each has, who is whose twin, and how far they agree.

Virtual and wall seconds never meet: not on an axis, not in a ratio, not in an order. What live and
simulated runs share are updates, gradients, epochs and staleness.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from distsgd.report.statistics import Band, Curve, Numbers, band
from distsgd.run import Run

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

    The factor between the median losses over seeds after equally many updates, whichever is larger:
    `typical` is its median over the evaluations, `largest` is first met after update `at`. None
    where no two losses can be compared. Then the mean staleness of both.
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
        Settings of the comparison, which say who takes after whom.

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
            problem, fleet, against, algorithm, *_factors(_losses(runs), _losses(simulated)),
            mean_staleness(runs), mean_staleness(simulated),
        )  # fmt: skip


def mean_staleness(runs: Sequence[Run]) -> float | None:
    """Return the mean staleness of all updates of `runs`, None if no order is known."""
    all_of_them = stalenesses_of(runs)
    return float(all_of_them.mean()) if len(all_of_them) else None


def stalenesses_of(runs: Sequence[Run]) -> npt.NDArray[np.int64]:
    """Return the staleness of each update of each of `runs`."""
    return np.concatenate([run.trace.staleness for run in runs])


def _losses(runs: Sequence[Run]) -> Band:
    return band([
        Curve(
            run.history["update"].to_numpy().astype(np.float64), run.history["loss"].to_numpy(),
            is_diverged=run.status == "diverged",
        )
        for run in runs
    ])  # fmt: skip


def _factors(one: Band, other: Band) -> tuple[float | None, float | None, int | None]:
    """Return the typical and the largest factor between two medians, and where the latter is."""
    end = min(one.positions[-1], other.positions[-1])
    at = np.union1d(one.positions, other.positions)
    at = at[(at > 0) & (at <= end)]
    mine, theirs = _held(one, at), _held(other, at)
    is_known = np.isfinite(mine) & np.isfinite(theirs) & (np.minimum(mine, theirs) > 0)
    if not is_known.any():
        return None, None, None
    factors = np.exp(np.abs(np.log(mine[is_known] / theirs[is_known])))
    return float(np.median(factors)), float(factors.max()), int(at[is_known][factors.argmax()])


def _held(own: Band, at: Numbers) -> Numbers:
    """Return the median of the last evaluation at or before each position."""
    place = np.searchsorted(own.positions, at, side="right") - 1
    return np.where(place < 0, np.nan, own.median[place])
