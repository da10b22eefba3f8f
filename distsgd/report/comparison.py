"""A comparison: every algorithm on every problem and fleet, over the same seeds and budget.

1. All algorithms see the same samples, machine times and starting points: a seed is common to them.
2. A run is saved when it has finished, so nothing is lost if the comparison is stopped.
3. A run never stops at the target; the update that first met it is searched for afterwards. So
   budgets stay equal.
4. A folder may hold runs of many comparisons: each has the name of its settings, and none is ever
   written over by another. Summary and report are those of the latest, and name its runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from distsgd.algorithm import Algorithm
from distsgd.data.partition import SHARED, Partition
from distsgd.errors import ConfigError, check_seeds, warn
from distsgd.experiment.execution import Execution
from distsgd.experiment.labels import by_label
from distsgd.experiment.outcome import Outcome
from distsgd.experiment.runs import Watch, run_folder
from distsgd.experiment.setup import Setup
from distsgd.experiment.sites import Engine
from distsgd.experiment.target import Reference, Target
from distsgd.experiment.trials import Trial
from distsgd.experiment.values import Tunable, Tuning
from distsgd.files import check_writable, read, save_or_keep, sealed, unsealed, write
from distsgd.fold.request import ModelFleet, ReadsName, RunConfig
from distsgd.live.options import Live
from distsgd.order.budget import Budget
from distsgd.problem import Problem
from distsgd.report.conclusions import conclusions
from distsgd.report.numbers.summary import FORMAT, Line, Summary, summarise
from distsgd.report.page import render
from distsgd.run import identify, is_live, load_as


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a comparison found.

    Parameters
    ----------
    settings : dict
        What all runs have in common, as JSON.
    outcomes : sequence of Outcome
        A run, or an error, per algorithm, fleet and seed.
    is_complete : bool, default True
        Whether everything that was asked for has run.
    trials : sequence of Trial
        What tuning tried.
    targets : mapping of str to Target
        The training loss to reach, by problem.
    """

    settings: dict[str, Any]
    outcomes: Sequence[Outcome] = field(repr=False)
    is_complete: bool = True
    trials: Sequence[Trial] = field(default=(), repr=False)
    targets: Mapping[str, Target] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Execution) -> "Comparison":
        """Return what has been found: runs in the order of the set-up, however they came."""
        outcomes = sorted(found.outcomes, key=found.setup.place)
        is_complete = len(outcomes) == found.setup.n_runs
        return cls(found.setup.settings, outcomes, is_complete, found.trials, found.targets)

    def __str__(self) -> str:
        return "\n".join(conclusions(self.summary))

    @cached_property
    def summary(self) -> Summary:
        """Its numbers: the content of ``summary.json``."""
        return summarise(
            self.outcomes, self.settings, is_complete=self.is_complete, trials=self.trials, targets=self.targets
        )

    def save(self, folder: str | Path) -> Path:
        """Write ``summary.json``, ``report.html`` and the runs into `folder`.

        Parameters
        ----------
        folder : str or Path
            Folder of the comparison; it is made. Other content of it is left alone.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        ConfigError
            If the folder cannot be written.
        """
        target = Path(folder)
        runs = [one.run for one in self.outcomes if one.run is not None]
        has_live = any(is_live(run.settings) for run in runs)
        save_or_keep(self._write, target, is_unique=has_live)
        return target

    def _write(self, folder: Path) -> None:
        check_writable(folder)
        for outcome in self.outcomes:
            if outcome.run is not None:
                outcome.run.write(run_folder(folder, outcome.run.hash))
        self.report(folder)

    def report(self, folder: Path) -> Path:
        """Write ``summary.json`` and ``report.html`` into `folder`, which holds the runs.

        Those of another configuration are kept, under names with its hash.
        """
        summary = sealed(self.summary)
        _keep_other(folder, summary)
        write(folder / "summary.json", summary)
        write(folder / "report.html", render(self.summary, self.outcomes).encode())
        return folder


class _Compared(msgspec.Struct):
    is_complete: bool
    settings: dict[str, Any]
    algorithms: dict[str, Any]
    fleets: dict[str, Any]

    @property
    def name(self) -> str:
        return identify({"all": self.settings, "of": self.algorithms, "on": self.fleets})[:12]


def _keep_other(folder: Path, summary: bytes) -> None:
    """Rename a complete summary of another configuration, and its report."""
    try:
        path = folder / "summary.json"
        other: _Compared = unsealed(read(path), _Compared, path, FORMAT)
    except (OSError, ConfigError):
        return
    if other.is_complete and other.name != msgspec.json.decode(summary, type=_Compared).name:
        for kept in ("summary.json", "report.html"):
            path = folder / kept
            if path.exists():
                path.replace(path.with_stem(f"{path.stem}-{other.name}"))


class _Saved(msgspec.Struct):
    is_complete: bool
    settings: dict[str, Any]
    runs: list[Line]
    trials: list[Trial] = []
    targets: dict[str, Target] = {}


def load_comparison(folder: str | Path) -> Comparison:
    """Return the comparison that was saved in `folder`.

    Raises
    ------
    ConfigError
        If the folder holds none, or one that is incomplete, damaged or of another format.
    """
    path = Path(folder) / "summary.json"
    try:
        content = read(path)
    except OSError as error:
        raise _no_summary(Path(folder), error) from None
    saved: _Saved = unsealed(content, _Saved, path, FORMAT)
    loaded = [_loaded(Path(folder), line) for line in saved.runs]
    return Comparison(saved.settings, loaded, saved.is_complete, saved.trials, saved.targets)


def _no_summary(folder: Path, error: OSError) -> ConfigError:
    if (folder / "runs").is_dir():
        msg = f"{folder} has no report yet: its comparison has not finished; run it again to go on"
        return ConfigError(msg)
    msg = f"{folder} holds no comparison (summary.json: {error.strerror}); give the folder of one"
    return ConfigError(msg)


def _loaded(folder: Path, line: Line) -> Outcome:
    labels = (line.algorithm, line.fleet, line.seed)
    if line.status == "failed":
        return Outcome(*labels, error=line.error, problem=line.problem)
    run = load_as(run_folder(folder, line.hash), line.hash)
    return Outcome(*labels, run=run, problem=line.problem)


def compare(
    algorithms: Algorithm | Tunable | Mapping[str, Algorithm | Tunable],
    problem: Problem | Mapping[str, Problem],
    fleets: ModelFleet | Mapping[str, ModelFleet],
    *,
    epochs: float | None = None,
    updates: int | None = None,
    gradients: int | None = None,
    seconds: float | None = None,
    batch: int = 32,
    seeds: int | Sequence[int] = 3,
    evaluations: int = 40,
    target: float | Reference | None = None,
    note: str = "",
    tuning: Tuning | None = None,
    partition: Partition = SHARED,
    reads: ReadsName = "consistent",
    atomic: bool = True,
    engine: Engine | Sequence[Engine] = "simulate",
    live: Live | None = None,
    processes: int | None = 1,
    watch: Watch | None = None,
) -> Comparison:
    """Run every algorithm on every problem and fleet, over the same seeds and the same budget.

    Parameters
    ----------
    algorithms : Algorithm, Tunable or mapping of str to these
        By the name under which the report shows them; a single one is called by its name.
    problem : Problem or mapping of str to Problem
        What they minimise; a single one is called by its name.
    fleets : Fleet, StaleReads or mapping of str to these
        The machines; a single one is called "fleet".
    epochs, updates, gradients, seconds : float, optional
        The budget of every run, exactly one of them; seconds are virtual [s].
    batch : int, default 32
        Samples per gradient.
    seeds : int or sequence of int, default 3
        The seeds, or how many: 0, 1, 2 and so on.
    evaluations : int, default 40
        Evaluations per run, equally spaced in the budget.
    target : float or Reference, optional
        Training loss whose first crossing is timed; it does not stop a run.
    note : str, default ""
        What a reader of the report should know.
    tuning : Tuning, optional
        How every `Tunable` among the algorithms is tuned.
    partition : Partition, optional
        Which samples a worker sees; by default all, with replacement.
    reads : {"consistent", "interleaved"}, default "consistent"
        See `distsgd.simulate`.
    atomic : bool, default True
        See `distsgd.simulate`.
    engine : {"simulate", "local", "ray"} or sequence of these, default "simulate"
        Whether runs are simulated, launched on this machine, or on a Ray cluster. With several,
        each fleet is compared on each; live runs are made one at a time, after the others.
    live : Live, optional
        How live runs are made, for example ``distsgd.Live(delay=distsgd.exponential(0.01))``.
    processes : int, optional
        How many work at once; None for one per core if the work is worth starting them.
    watch : callable, optional
        Called with each outcome as it comes, those of tuning first.

    Returns
    -------
    Comparison
        All runs, and their summary.

    Raises
    ------
    ConfigError
        If settings do not fit together.
    """
    budget = Budget.of({"epochs": epochs, "updates": updates, "gradients": gradients, "seconds": seconds})
    config = RunConfig(budget, batch, evaluations=evaluations, partition=partition, reads=reads, atomic=atomic)
    setup = Setup(
        by_label("algorithms", algorithms),
        problem,
        by_label("fleets", fleets),
        config,
        check_seeds("seeds", seeds),
        target,
        note,
        tuning or Tuning(),
        engine,
        live or Live(),
    )
    warn(setup.warnings)
    found = Execution(setup)
    found.carry_out(watch=watch, processes=processes)
    return Comparison.of(found)
