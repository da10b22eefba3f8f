"""The numbers of a comparison: what ``summary.json``, the page and the terminal all say.

Every number that a reader sees comes from here. A number that is not finite is null in JSON: a
diverged run has no final loss. Nothing is null for lack of trying.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np

from distsgd.report.engines import (
    Agreement,
    Clock,
    Engine,
    Runs,
    agreements,
    clock_of,
    engine_of,
    engine_on,
    live_fleets,
    mean_staleness,
    seconds_column,
    stalenesses_of,
)  # fmt: skip
from distsgd.report.findings import (
    Contrast,
    Mark,
    ProfileLine,
    Reference,
    Scaling,
    Target,
    contrasts,
    find_targets,
    profiles,
    scaling,
)  # fmt: skip
from distsgd.report.statistics import (
    Curve,
    Numbers,
    Spread,
    band_name,
    median_time,
    spread,
    time_to,
)  # fmt: skip
from distsgd.report.trials import Trial, Tuned, choose
from distsgd.run import Run

FORMAT = 2
"""Number of the layout of ``summary.json``."""

Settings: TypeAlias = dict[str, Any]


class Outcome(NamedTuple):
    """One run of a comparison: its labels, and either the run or the error that ended it."""

    algorithm: str
    fleet: str
    seed: int
    run: Run | None = None
    error: str = ""
    problem: str = ""


class TimeToTarget(msgspec.Struct, frozen=True):
    """When the training loss first met the target: seconds, updates, gradients, epochs.

    Seconds are those of the `clock`. A run that missed counts as later than every time: in a spread
    it is infinite, and `median_s` is None if half of the runs missed.
    """

    target: float
    reached: int
    median_s: float | None
    seconds: Spread
    updates: Spread
    gradients: Spread
    epochs: Spread
    clock: Clock = "virtual"


class Staleness(msgspec.Struct, frozen=True):
    """Staleness of the server updates, all seeds together."""

    mean: float
    largest: int


class Result(msgspec.Struct, frozen=True):
    """One algorithm on one fleet, over seeds; spreads are of the last evaluation.

    `seconds` are virtual, None for live runs; `wall_seconds` are theirs alone.
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


class Line(msgspec.Struct, frozen=True):
    """One run: where it is, and how it ended (`failed`: an error stopped it)."""

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
    def twins(self) -> dict[str, str]:
        """The live fleets that have results, with the simulated ones that they take after."""
        seen = {result.fleet for result in self.results}
        pairs = {name: own["fleet"] for name, own in live_fleets(self.settings).items()}
        return {live: fleet for live, fleet in pairs.items() if {live, fleet} <= seen}

    def engine_on(self, fleet: str) -> Engine:
        """Return the engine of the runs on `fleet`."""
        return engine_on(self.settings, fleet)

    def of_fleet(self, fleet: str, problem: str | None = None) -> list[Result]:
        """Return the results on one fleet, of one problem or of all, as the algorithms go."""
        return [
            result
            for result in self.results
            if result.fleet == fleet and problem in {None, result.problem}
        ]


def summarise(
    outcomes: Sequence[Outcome], settings: Settings, *, is_complete: bool,
    trials: Sequence[Trial] = (),
) -> Summary:  # fmt: skip
    """Return the numbers of a comparison.

    Parameters
    ----------
    outcomes : sequence of Outcome
        What ran, in any order; algorithms and fleets keep the order in which they appear.
    settings : dict
        Settings of the whole comparison, as JSON; a target, if any, is its key ``target``: a
        number, or the fields of a `findings.Reference`.
    is_complete : bool
        Whether every run that was asked for is among `outcomes`.
    trials : sequence of Trial
        What tuning tried.

    Returns
    -------
    Summary
        Results per problem, fleet and algorithm, contrasts between them, and a line per run.
    """
    cells: dict[tuple[str, str, str], list[Outcome]] = {}
    for one in outcomes:
        cells.setdefault((one.problem, one.fleet, one.algorithm), []).append(one)
    finished = _pairs(outcomes)
    targets = find_targets([_mark(*pair, None) for pair in finished], _asked(settings))
    losses = {problem: target.loss for problem, target in targets.items()}
    marks = [_mark(one, run, losses.get(one.problem)) for one, run in finished]
    live = {name: own["machines"] for name, own in live_fleets(settings).items()}
    # A live run has what has a meaning for its algorithm; its fleet is described as a whole.
    fleets = {
        one.fleet: live[one.fleet] if one.fleet in live else run.settings["fleet"]
        for one, run in finished
    }
    return Summary(
        is_complete=is_complete,
        band=band_name(max([1, *(len(_runs(cell)) for cell in cells.values())])),
        settings=settings,
        versions=finished[0][1].versions if finished else {},
        algorithms={one.algorithm: run.settings["algorithm"] for one, run in finished},
        fleets=fleets,
        results=[
            _result(cell, losses.get(cell[0].problem), engine_on(settings, cell[0].fleet))
            for cell in cells.values()
        ],
        runs=[
            _line(one, losses.get(one.problem), engine_on(settings, one.fleet)) for one in outcomes
        ],
        problems={one.problem: run.settings.get("problem", {}) for one, run in finished},
        targets=targets,
        contrasts=contrasts(marks),
        profiles=profiles(_of_first_engine(marks, settings)),
        scaling=scaling(marks, fleets),
        tuned=choose(trials),
        trials=list(trials),
        agreements=agreements([Runs(*key, _runs(cell)) for key, cell in cells.items()], settings),
    )


def _of_first_engine(marks: Sequence[Mark], settings: Settings) -> list[Mark]:
    """Return the marks of one engine: how often somebody is near the best must not mix several."""
    engines = [engine_on(settings, mark.fleet) for mark in marks]
    return [mark for mark, engine in zip(marks, engines, strict=True) if engine == engines[0]]


def _asked(settings: Settings) -> float | Reference | None:
    target = settings.get("target")
    return Reference(**target) if isinstance(target, dict) else target


def _mark(outcome: Outcome, run: Run, target: float | None) -> Mark:
    loss = float(_column(run, "loss")[-1])
    seconds = None if target is None else time_to(target, loss_curve(run, seconds_column(run)))
    return Mark(
        outcome.problem, outcome.fleet, outcome.algorithm, outcome.seed, seconds,
        loss if math.isfinite(loss) else None,
    )  # fmt: skip


def loss_curve(run: Run, against: str) -> Curve:
    """Return the training loss of `run` against the column `against` of its history."""
    positions, values = _column(run, against), _column(run, "loss")
    return Curve(positions, values, is_diverged=run.status == "diverged")


def _column(run: Run, name: str) -> Numbers:
    return run.history[name].to_numpy().astype(np.float64)


def _runs(cell: Sequence[Outcome]) -> list[Run]:
    return [outcome.run for outcome in cell if outcome.run is not None]


def _pairs(outcomes: Sequence[Outcome]) -> list[tuple[Outcome, Run]]:
    return [(outcome, outcome.run) for outcome in outcomes if outcome.run is not None]


def _result(cell: Sequence[Outcome], target: float | None, engine: Engine) -> Result:
    runs = _runs(cell)
    first = cell[0]
    counts = Result(
        problem=first.problem, algorithm=first.algorithm, fleet=first.fleet,
        finished=len(runs), failed=len(cell) - len(runs),
        status=dict(Counter(run.status for run in runs)),
        engine=engine,
    )  # fmt: skip
    return msgspec.structs.replace(counts, **_measured(runs, target)) if runs else counts


def _measured(runs: Sequence[Run], target: float | None) -> dict[str, Any]:
    staleness, mean = stalenesses_of(runs), mean_staleness(runs)
    is_live = engine_of(runs[0]) != "simulate"
    return {
        "loss": _final(runs, "loss"),
        "test_loss": _final(runs, "test_loss"),
        "accuracy": _final(runs, "accuracy", worst=-math.inf),
        "seconds": None if is_live else _final(runs, "seconds"),
        "wall_seconds": _final(runs, "wall_seconds") if is_live else None,
        "updates": _final(runs, "update"),
        "gradients": _final(runs, "gradients"),
        "time_to_target": None if target is None else _time_to_target(runs, target),
        "staleness": None if mean is None else Staleness(mean, int(staleness.max())),
        "dropped": sum(run.trace.n_dropped for run in runs),
        "utilisation": _utilisation(runs),
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


def _time_to_target(runs: Sequence[Run], target: float) -> TimeToTarget:
    columns = (seconds_column(runs[0]), "update", "gradients", "epoch")
    several = [[time_to(target, loss_curve(run, name)) for run in runs] for name in columns]
    seconds, updates, gradients, epochs = (
        spread(np.array(times, dtype=np.float64)) for times in several
    )
    reached = sum(time is not None for time in several[0])
    return TimeToTarget(
        target, reached, median_time(several[0]), seconds, updates, gradients, epochs,
        clock_of(engine_of(runs[0])),
    )  # fmt: skip


def _line(outcome: Outcome, target: float | None, engine: Engine) -> Line:
    labels, run = (outcome.algorithm, outcome.fleet, outcome.seed), outcome.run
    if run is None:
        return Line(
            *labels, status="failed", error=outcome.error, problem=outcome.problem, engine=engine
        )
    reached = None if target is None else time_to(target, loss_curve(run, seconds_column(run)))
    is_live = engine != "simulate"
    return Line(
        *labels, status=run.status, diverged_at=run.diverged_at, hash=run.hash,
        problem=outcome.problem, seconds_to_target=None if is_live else reached,
        engine=engine, wall_seconds_to_target=reached if is_live else None,
    )  # fmt: skip
