"""The numbers of a comparison: what ``summary.json``, the page and the terminal all say.

Every number that a reader sees comes from here. A number that is not finite is null in JSON: a
diverged run has no final loss. Nothing is null for lack of trying.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np

from distsgd.experiment.outcome import Outcome
from distsgd.experiment.sites import Engine
from distsgd.experiment.target import Target
from distsgd.experiment.trials import Trial, Tuned, choose
from distsgd.report.numbers.engines import (
    Agreement,
    Clock,
    agreements,
    clock_of,
    engine_of,
    engine_on,
    live_fleets,
    mean_staleness,
    stalenesses_of,
)
from distsgd.report.numbers.findings import (
    Contrast,
    Growth,
    ProfileLine,
    Scaling,
    Tunings,
    Unsettled,
    compared,
    contrasts,
    growths,
    profiles,
    scaling,
    unsettled,
)
from distsgd.report.numbers.groups import finished, grouped
from distsgd.report.numbers.measurements import Measurement, measurements, reached, workers_of
from distsgd.run import Run
from distsgd.statistics.inference import Known
from distsgd.statistics.spreads import Numbers, Spread, band_name, median_time, spread

FORMAT = 2
"""Number of the layout of ``summary.json``."""

Settings: TypeAlias = dict[str, Any]


class TimeToTarget(msgspec.Struct, frozen=True):
    """When the training loss first met the target: seconds, updates, gradients, epochs.

    Seconds are those of the `clock`; `machine_s` is the median over the workers that took part, all
    together. A run that missed counts as later than every time: in a spread it is infinite, and a
    median is None if half of the runs missed. No time is known worse than to the share `precision`
    of itself, or to one update.
    """

    target: float
    reached: int
    median_s: float | None
    seconds: Spread
    updates: Spread
    gradients: Spread
    epochs: Spread
    clock: Clock = "virtual"
    machine_s: float | None = None
    precision: float = 0.0


class Staleness(msgspec.Struct, frozen=True):
    """Staleness of the server updates, all seeds together."""

    mean: float
    largest: int


class Result(msgspec.Struct, frozen=True):
    """One algorithm on one fleet, over seeds; spreads are of the last evaluation.

    `seconds` are virtual, None for live runs; `wall_seconds` are theirs alone. `loss` is that at
    the end of the budget; `loss_at_equal_time` that when the first run on the fleet ends,
    `equal_time` [s]. `workers` is how many took part.
    """

    algorithm: str
    fleet: str
    finished: int
    failed: int
    status: dict[str, int]
    loss: Spread | None = None
    test_loss: Spread | None = None
    accuracy: Spread | None = None
    seconds: Spread | None = None
    updates: Spread | None = None
    gradients: Spread | None = None
    time_to_target: TimeToTarget | None = None
    staleness: Staleness | None = None
    dropped: int = 0
    utilisation: float | None = None
    problem: str = ""
    engine: Engine = "simulate"
    wall_seconds: Spread | None = None
    loss_at_equal_time: Spread | None = None
    equal_time: float | None = None
    workers: int = 0


class Line(msgspec.Struct, frozen=True):
    """One run: where it is, and how it ended (`failed`: an error stopped it).

    The time to the target, virtual or wall, is not before `target_not_before` [s].
    """

    algorithm: str
    fleet: str
    seed: int
    status: Literal["done", "target", "diverged", "stopped", "failed"]
    diverged_at: int | None = None
    hash: str = ""
    error: str = ""
    problem: str = ""
    seconds_to_target: float | None = None
    engine: Engine = "simulate"
    wall_seconds_to_target: float | None = None
    target_not_before: float | None = None


class Summary(msgspec.Struct, frozen=True):
    """A comparison as numbers: the content of ``summary.json``; REFERENCE.md has its schema."""

    is_complete: bool
    band: str
    settings: Settings
    versions: dict[str, str]
    algorithms: dict[str, Settings]
    fleets: dict[str, Settings]
    results: list[Result]
    runs: list[Line]
    problems: dict[str, Settings] = {}
    targets: dict[str, Target] = {}
    contrasts: list[Contrast] = []
    unsettled: list[Unsettled] = []
    growths: list[Growth] = []
    profiles: list[ProfileLine] = []
    scaling: list[Scaling] = []
    tuned: list[Tuned] = []
    trials: list[Trial] = []
    agreements: list[Agreement] = []
    format: int = FORMAT

    @property
    def cases(self) -> list[tuple[str, str]]:
        """The pairs of problem and fleet that have results, in their order."""
        return list(dict.fromkeys((result.problem, result.fleet) for result in self.results))

    @property
    def simulated_of(self) -> dict[str, str]:
        """The live fleets that have results, with the simulated ones that they take after."""
        seen = {result.fleet for result in self.results}
        pairs = {name: own["fleet"] for name, own in live_fleets(self.settings).items()}
        return {live: fleet for live, fleet in pairs.items() if {live, fleet} <= seen}

    def engine_on(self, fleet: str) -> Engine:
        """Return the engine of the runs on `fleet`."""
        return engine_on(self.settings, fleet)

    def of_fleet(self, fleet: str, problem: str | None = None) -> list[Result]:
        """Return the results on one fleet, of one problem or of all, as the algorithms go."""
        return [result for result in self.results if result.fleet == fleet and problem in {None, result.problem}]


def summarise(
    outcomes: Sequence[Outcome],
    settings: Settings,
    *,
    is_complete: bool,
    trials: Sequence[Trial] = (),
    targets: Mapping[str, Target] | None = None,
) -> Summary:
    """Return the numbers of a comparison.

    Parameters
    ----------
    outcomes : sequence of Outcome
        What ran, in any order; algorithms and fleets keep the order in which they appear.
    settings : dict
        Settings of the whole comparison, as JSON.
    is_complete : bool
        Whether every run that was asked for is among `outcomes`.
    trials : sequence of Trial
        What tuning tried.
    targets : mapping of str to Target, optional
        The training loss to reach, by problem; by default the number in ``settings["target"]``.

    Returns
    -------
    Summary
        Results per problem, fleet and algorithm, contrasts between them, and a line per run.
    """
    cells = grouped(outcomes, lambda one: (one.problem, one.fleet, one.algorithm))
    runs = {place: [run for _, run in finished(cell)] for place, cell in cells.items()}
    ran = finished(outcomes)
    known = _given(outcomes, settings) if targets is None else dict(targets)
    losses = {problem: target.loss for problem, target in known.items()}
    found, tuned = measurements(outcomes, losses), choose(trials)
    # A live run has what has a meaning for its algorithm; its fleet is described as a whole.
    live = {name: own["machines"] for name, own in live_fleets(settings).items()}
    fleets: dict[str, Settings] = {one.fleet: live.get(one.fleet) or run.settings["fleet"] for one, run in ran}
    tunings = Tunings(tuned, _tuned_on(fleets, settings))
    orders = compared(found, tunings)
    results = [_result(cell, found, losses.get(cell[0].problem), settings) for cell in cells.values()]
    return Summary(
        is_complete=is_complete,
        band=band_name(max([1, *map(len, runs.values())])),
        settings=settings,
        versions=ran[0][1].versions if ran else {},
        algorithms={one.algorithm: run.settings["algorithm"] for one, run in ran},
        fleets=fleets,
        results=results,
        runs=[_line(one, losses.get(one.problem), engine_on(settings, one.fleet)) for one in outcomes],
        problems={one.problem: run.settings.get("problem", {}) for one, run in ran},
        targets=known,
        contrasts=contrasts(orders),
        unsettled=unsettled(orders),
        growths=_growths(found, results, tunings),
        profiles=profiles(_of_first_engine(found, settings)),
        scaling=scaling(found, fleets),
        tuned=tuned,
        trials=list(trials),
        agreements=agreements(runs, settings),
    )


def _given(outcomes: Sequence[Outcome], settings: Settings) -> dict[str, Target]:
    target = settings.get("target")
    if not isinstance(target, (int, float)):
        return {}
    return {one.problem: Target(float(target), "given") for one in outcomes}


def _tuned_on(fleets: Mapping[str, Any], settings: Settings) -> dict[str, str]:
    """Return on which fleet the algorithms of each fleet were tuned."""
    everywhere = settings.get("tuning", {}).get("fleet", "each")
    own = {name: live_fleets(settings).get(name, {}).get("fleet", name) for name in fleets}
    return own if everywhere == "each" else dict.fromkeys(fleets, everywhere)


def _growths(found: Sequence[Measurement], results: Sequence[Result], tunings: Tunings) -> list[Growth]:
    """Return what staleness did to the losses of the algorithms that it reached, per problem."""
    groups = grouped(results, lambda one: (one.problem, one.engine)).values()
    return [line for own in groups for line in _grown(found, own, tunings)]


def _grown(found: Sequence[Measurement], results: Sequence[Result], tunings: Tunings) -> list[Growth]:
    means = {(one.fleet, one.algorithm): one.staleness.mean if one.staleness else 0.0 for one in results}
    on_fleets = grouped(means, lambda place: place[0])
    levels = {fleet: max(means[place] for place in places) for fleet, places in on_fleets.items()}
    fresh, worst = (extreme(levels, key=levels.__getitem__) for extreme in (min, max))
    are_stale = {algorithm for (fleet, algorithm), mean in means.items() if fleet == worst and mean > 0}
    problem = results[0].problem
    own = [one for one in found if one.problem == problem and one.algorithm in are_stale]
    return growths(own, fresh, worst, tunings) if fresh != worst else []


def _of_first_engine(measurements: Sequence[Measurement], settings: Settings) -> list[Measurement]:
    """Return the measurements of one engine: times of different engines must not be compared."""
    engines = [engine_on(settings, one.fleet) for one in measurements]
    return [one for one, engine in zip(measurements, engines, strict=True) if engine == engines[0]]


def _column(run: Run, name: str) -> Numbers:
    return run.history[name].to_numpy().astype(np.float64)


def _result(cell: Sequence[Outcome], found: Sequence[Measurement], target: float | None, settings: Settings) -> Result:
    runs = [run for _, run in finished(cell)]
    first = cell[0]
    counts = Result(
        problem=first.problem,
        algorithm=first.algorithm,
        fleet=first.fleet,
        finished=len(runs),
        failed=len(cell) - len(runs),
        status=dict(Counter(run.status for run in runs)),
        engine=engine_on(settings, first.fleet),
    )
    place = (first.problem, first.fleet, first.algorithm)
    own = [one for one in found if one[:3] == place]
    return msgspec.structs.replace(counts, **_measured(runs, own, target)) if runs else counts


def _measured(runs: Sequence[Run], found: Sequence[Measurement], target: float | None) -> dict[str, Any]:
    staleness, mean = stalenesses_of(runs), mean_staleness(runs)
    is_live = engine_of(runs[0]) != "simulate"
    equal = [one.loss_at_equal_time.high for one in found if one.loss_at_equal_time is not None]
    return {
        "loss": _final(runs, "loss"),
        "test_loss": _final(runs, "test_loss"),
        "accuracy": _final(runs, "accuracy", worst=-math.inf),
        "seconds": None if is_live else _final(runs, "seconds"),
        "wall_seconds": _final(runs, "wall_seconds") if is_live else None,
        "updates": _final(runs, "update"),
        "gradients": _final(runs, "gradients"),
        "time_to_target": None if target is None else _time_to_target(runs, found, target),
        "staleness": None if mean is None else Staleness(mean, int(staleness.max())),
        "dropped": sum(run.trace.n_dropped for run in runs),
        "utilisation": _utilisation(runs),
        "loss_at_equal_time": spread(np.array(equal)) if equal else None,
        "equal_time": found[0].equal_time or None,
        "workers": max(workers_of(run) for run in runs),
    }


def _final(runs: Sequence[Run], column: str, worst: float = math.inf) -> Spread | None:
    applies = any(np.isfinite(_column(run, column)).any() for run in runs)
    last = np.array([_column(run, column)[-1] for run in runs])
    return spread(last, worst=worst) if applies else None


def _utilisation(runs: Sequence[Run]) -> float | None:
    """Return the mean over the workers that took part, None if none did."""
    shares = np.concatenate([run.trace.utilisation for run in runs])
    known = shares[~np.isnan(shares)]
    return float(known.mean()) if len(known) else None


def _time_to_target(runs: Sequence[Run], found: Sequence[Measurement], target: float) -> TimeToTarget:
    seconds = [one.seconds for one in found if one.seconds is not None]
    met = [time for time in seconds if math.isfinite(time.high)]
    machine = [one.machine_seconds.high for one in found if one.machine_seconds is not None]
    updates, gradients, epochs = (
        _ends([reached(run, target, name) for run in runs]) for name in ("update", "gradients", "epoch")
    )
    return TimeToTarget(
        target,
        len(met),
        median_time([time.high for time in seconds]),
        _ends(seconds),
        updates,
        gradients,
        epochs,
        clock_of(engine_of(runs[0])),
        median_time(machine),
        max((1.0 - time.low / time.high for time in met if time.high > 0), default=0.0),
    )


def _ends(times: Sequence[Known]) -> Spread:
    return spread(np.array([time.high for time in times]))


def _line(outcome: Outcome, target: float | None, engine: Engine) -> Line:
    labels, run = (outcome.algorithm, outcome.fleet, outcome.seed), outcome.run
    if run is None:
        return Line(*labels, status="failed", error=outcome.error, problem=outcome.problem, engine=engine)
    time = None if target is None else reached(run, target)
    met = None if time is None or not math.isfinite(time.high) else time.high
    is_live = engine != "simulate"
    return Line(
        *labels,
        status=run.status,
        diverged_at=run.diverged_at,
        hash=run.hash,
        problem=outcome.problem,
        seconds_to_target=None if is_live else met,
        engine=engine,
        wall_seconds_to_target=met if is_live else None,
        target_not_before=None if time is None else time.low,
    )
