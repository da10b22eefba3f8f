"""A comparison: every algorithm on every problem and fleet, over the same seeds and budget.

1. All algorithms see the same samples, machine times and starting points: a seed is common to them.
2. A run is saved when it has finished, so nothing is lost if the comparison is stopped.
3. A run never stops at the target; the update that first met it is searched for afterwards. So
   budgets stay equal.
4. A folder may hold runs of many comparisons: each has the name of its settings, and none is ever
   written over by another. Summary and report are those of the latest, and name its runs.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import altair as alt
import msgspec
import polars as pl

from distsgd.errors import ConfigError
from distsgd.experiment.execution import Execution
from distsgd.experiment.outcome import Outcome
from distsgd.experiment.runs import run_folder
from distsgd.experiment.target import Target
from distsgd.experiment.trials import Trial
from distsgd.files import check_writable, read, save_or_keep, sealed, unsealed, write
from distsgd.report import notebook
from distsgd.report.conclusions import conclusions
from distsgd.report.formatting import counts_text
from distsgd.report.numbers.groups import finished
from distsgd.report.numbers.summary import FORMAT, Line, Summary, summarise
from distsgd.report.numbers.table import table
from distsgd.report.page import render
from distsgd.report.pictures.charts import Picture
from distsgd.report.pictures.registry import pictures
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
