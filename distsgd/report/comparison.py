"""A comparison: every algorithm on every problem and fleet, over the same seeds and budget.

1. All algorithms see the same samples, machine times and starting points: a seed is common to them.
2. A run is saved when it has finished, so nothing is lost if the comparison is stopped.
3. A run never stops at the target; the update that first met it is searched for afterwards. So
   budgets stay equal.
4. A folder may hold runs of many comparisons: each has the name of its settings, and none is ever
   written over by another. Summary and report are those of the latest, and name its runs.
"""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import altair as alt
import msgspec
import polars as pl

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
from distsgd.fold.layers import LayerRates
from distsgd.fold.request import ModelFleet, ReadsName, RunConfig
from distsgd.live.machine.folder import locked
from distsgd.live.options import Live
from distsgd.order.budget import Budget
from distsgd.problem import Problem
from distsgd.report import notebook
from distsgd.report.conclusions import conclusions
from distsgd.report.formatting import counts_text
from distsgd.report.numbers.groups import finished
from distsgd.report.numbers.summary import FORMAT, Line, Summary, summarise
from distsgd.report.numbers.table import table
from distsgd.report.page import render
from distsgd.report.pictures.charts import Picture
from distsgd.report.pictures.registry import pictures
from distsgd.report.progress import Shown, is_watched, progress_of_runs
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

    def __repr__(self) -> str:
        labels = ("algorithm", "fleet", "seed")
        counts = [len({getattr(one, name) for one in self.outcomes}) for name in labels]
        of = ", ".join(f"{count} {name}{'s' * (count != 1)}" for count, name in zip(counts, labels, strict=True))
        ended = counts_text(Counter("failed" if one.run is None else one.run.status for one in self.outcomes))
        last = [loss for _, run in finished(self.outcomes) for loss in run.history["loss"].tail(1)]
        losses = f"; losses {min(last):.4g} to {max(last):.4g}" if last else ""
        return f"Comparison({of}; {ended or 'no run'}{losses})"

    def _repr_html_(self) -> str:
        return notebook.comparison_html(self.summary, self._pictures)

    @cached_property
    def summary(self) -> Summary:
        """Its numbers: the content of ``summary.json``."""
        return summarise(
            self.outcomes, self.settings, is_complete=self.is_complete, trials=self.trials, targets=self.targets
        )

    @cached_property
    def _pictures(self) -> list[Picture]:
        return pictures(self.summary, self.outcomes)

    def table(self) -> pl.DataFrame:
        """Return its results: a row per problem, fleet and algorithm, the numbers of `summary`.

        Returns
        -------
        polars.DataFrame
            The labels ``problem``, ``fleet``, ``algorithm`` and ``engine``; the counts ``workers``,
            ``finished`` and ``failed`` (runs) and ``dropped`` (pushes); at the end of the runs
            ``loss``, ``test_loss``, ``accuracy``, ``seconds`` (virtual) or ``wall_seconds`` [s],
            ``updates`` and ``gradients``, and ``loss_at_equal_time``: medians over seeds, each with
            the ends of its band, such as ``loss_low`` and ``loss_high``; ``seconds_to_target`` and
            ``machine_seconds_to_target`` [s], and in how many runs it was met, ``reached_target``;
            ``mean_staleness`` [versions] and ``utilisation``. Null where a number does not apply.
            Pandas has it by ``to_pandas()``.
        """
        return table(self.summary)

    def plot(
        self, picture: str = "loss", *, problem: str | None = None, fleet: str | None = None, view: str | None = None
    ) -> alt.LayerChart:
        """Return a picture of the report, as an Altair chart.

        A notebook shows it; ``save("loss.png")`` writes it, also as SVG, PDF or HTML.

        Parameters
        ----------
        picture : str, default "loss"
            Its name. Of all fleets together: ``"loss-against-staleness"``, ``"speed-up"``,
            ``"profiles"``, ``"learning-rate-map"`` and ``"sensitivity"``; of one problem on one
            fleet: ``"loss"``, ``"time-to-target"``, ``"ratios"``, ``"staleness"``, ``"classes"``,
            ``"timeline"``, ``"both-losses"`` and ``"both-staleness"``. A picture is there where the
            comparison has what it shows.
        problem, fleet : str, optional
            Which of several pictures of that name; by default the first.
        view : str, optional
            What a reader of the report can choose above the picture, for example ``"updates"``; by
            default its first view.

        Returns
        -------
        altair.LayerChart
            The picture with its data, a title and a legend.

        Raises
        ------
        ConfigError
            If there is no such picture, problem, fleet or view; it names the nearest.
        """
        return notebook.chart(self.summary, self._pictures, picture, view, problem=problem, fleet=fleet)

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
    layer_rates: LayerRates | None = None,
    layer_norms: bool = False,
    engine: Engine | Sequence[Engine] = "simulate",
    live: Live | None = None,
    processes: int | None = None,
    folder: str | Path | None = None,
    progress: bool | None = None,
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
    layer_rates, layer_norms : optional
        Factors on the learning rate by layer, and whether histories have the norm of each layer's
        gradient, as in `simulate`.
    engine : {"simulate", "local", "ray"} or sequence of these, default "simulate"
        Whether runs are simulated, launched on this machine, or on a Ray cluster. With several,
        each fleet is compared on each; live runs are made one at a time, after the others.
    live : Live, optional
        How live runs are made, for example ``distsgd.Live(delay=distsgd.exponential(0.01))``.
    processes : int, optional
        How many work at once; by default one per core if the work is worth starting them.
    folder : str or Path, optional
        Where each run is saved as soon as it has finished, and the report at the end, see
        `Comparison.save`. A run that is saved there is not made again: where a comparison was
        stopped, the same call goes on. Runs of other comparisons may be there, too.
    progress : bool, optional
        Whether to show on standard error how far it is; by default where that is a terminal, and in
        a notebook.
    watch : callable, optional
        Called with each outcome as it comes, those of tuning first.

    Returns
    -------
    Comparison
        All runs, and their summary.

    Raises
    ------
    ConfigError
        If settings do not fit together, what is compared cannot be sent to other processes, or the
        folder cannot be written or is in use.
    """
    budget = Budget.of({"epochs": epochs, "updates": updates, "gradients": gradients, "seconds": seconds})
    config = RunConfig(
        budget,
        batch,
        evaluations=evaluations,
        partition=partition,
        reads=reads,
        atomic=atomic,
        layer_rates=layer_rates,
        layer_norms=layer_norms,
    )
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
    is_shown = is_watched() if progress is None else progress
    found, place = Execution(setup), None if folder is None else Path(folder)
    with contextlib.ExitStack() as stack:
        if place is not None:
            check_writable(place)
            stack.enter_context(locked(place))
        shown = stack.enter_context(progress_of_runs(found.n_runs)) if is_shown else Shown()
        told = _both(watch, shown.watch)
        found.carry_out(place, processes=processes, watch=told, watch_live=shown.watch_live)
        comparison = Comparison.of(found)
        if place is not None:
            comparison.report(place)
        return comparison


def _both(*watches: Watch | None) -> Watch:
    """Return what tells an outcome to each of `watches`."""

    def watch(outcome: Outcome) -> None:
        for one in watches:
            if one is not None:
                one(outcome)

    return watch
