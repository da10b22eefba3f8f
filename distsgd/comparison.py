"""A comparison: every algorithm on every fleet, over the same seeds and the same budget.

1. All algorithms see the same samples, machine times and starting points: a seed is common to them.
2. A run is saved when it has finished, so nothing is lost if the comparison is stopped.
3. A run never stops at the target; the time to it is read off its history. So budgets stay equal.
4. A run that ends in an unexpected error is listed, and the others go on.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from distsgd.algorithm import Algorithm, check_algorithm
from distsgd.errors import ConfigError, check_count, check_number
from distsgd.fleet import Fleet, StaleReads
from distsgd.problem import Problem
from distsgd.report.answer import answer
from distsgd.report.page import render
from distsgd.report.summary import FORMAT, Line, Outcome, Summary, summarise
from distsgd.run import Run, check_writable, decode, load, unwritable
from distsgd.schedule import schedule
from distsgd.simulation import simulate

AnyFleet: TypeAlias = Fleet | StaleReads

BUDGETS = ("epochs", "updates", "gradients", "seconds")
"""Names of the budgets; a run has exactly one."""


@dataclass(frozen=True)
class Setup:
    """What is compared, checked and ready to run.

    Parameters
    ----------
    algorithms : mapping of str to Algorithm
        By the name under which the report shows them.
    problem : Problem
        What they minimise.
    fleets : mapping of str to Fleet or StaleReads
        By the name under which the report shows them.
    budget : mapping of str to float
        Exactly one of epochs, updates, gradients, seconds (virtual) [s]; the same for every run.
    batch : int, default 32
        Samples per gradient.
    seeds : int or sequence of int, default 3
        The seeds, or how many: 0, 1, 2 and so on.
    evaluations : int, default 40
        Evaluations per run, equally spaced in the budget.
    target : float, optional
        Training loss whose first crossing is timed.
    note : str, default ""
        What a reader of the report should know.

    Raises
    ------
    ConfigError
        If nothing is left to run, or an algorithm cannot run on one of the fleets.
    """

    algorithms: Mapping[str, Algorithm]
    problem: Problem
    fleets: Mapping[str, AnyFleet]
    budget: Mapping[str, Any]
    batch: int = 32
    seeds: int | Sequence[int] = 3
    evaluations: int = 40
    target: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.seeds, int):
            object.__setattr__(self, "seeds", range(check_count("seeds", self.seeds)))
        for name in ("algorithms", "fleets", "seeds"):
            check_count(f"number of {name}", len(getattr(self, name)))
        for seed in self.cases:
            check_count("seed", seed, at_least=0)
        check_count("batch", self.batch)
        check_count("evaluations", self.evaluations)
        if self.target is not None:
            check_number("target", self.target)
        _check_budget(self.budget)
        for name, algorithm in self.algorithms.items():
            _check_runnable(name, algorithm, self.fleets)

    @property
    def cases(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(self.seeds) if isinstance(self.seeds, Iterable) else (self.seeds,)

    @property
    def settings(self) -> dict[str, Any]:
        """What all runs have in common, as JSON."""
        return {
            "problem": dict(self.problem.settings),
            "budget": dict(self.budget),
            "batch": self.batch,
            "seeds": list(self.cases),
            "evaluations": self.evaluations,
            "target": self.target,
            "note": self.note,
        }

    @property
    def n_runs(self) -> int:
        """Number of runs: algorithms times fleets times seeds."""
        return len(self.algorithms) * len(self.fleets) * len(self.cases)


def _check_budget(budget: Mapping[str, float]) -> None:
    if len(budget) != 1 or not set(budget) <= set(BUDGETS):
        given = " and ".join(budget) or "none"
        msg = f"the budget must be exactly one of {', '.join(BUDGETS)}, not {given}"
        raise ConfigError(msg)
    for name, amount in budget.items():
        check_number(name, amount, above=0)


def _check_runnable(name: str, algorithm: Algorithm, fleets: Mapping[str, AnyFleet]) -> None:
    check_algorithm(algorithm)
    for label, fleet in fleets.items():
        try:
            schedule(algorithm.cycle, fleet, updates=1)
        except ConfigError as error:
            msg = f"algorithm {name!r} on fleet {label!r}: {error}"
            raise ConfigError(msg) from None


def outcomes(setup: Setup, folder: Path | None = None) -> Iterator[Outcome]:
    """Run everything, and give each run as it finishes.

    Parameters
    ----------
    setup : Setup
        What is compared.
    folder : Path, optional
        Folder of the comparison, in which each run is saved at once.

    Yields
    ------
    Outcome
        Fleet by fleet, algorithm by algorithm, seed by seed.

    Raises
    ------
    ConfigError
        If settings turn out not to fit together.
    """
    for fleet in setup.fleets:
        for algorithm in setup.algorithms:
            for seed in setup.cases:
                outcome = _outcome(setup, algorithm, fleet, seed)
                if folder is not None and outcome.run is not None:
                    outcome.run.save(_run_folder(folder, outcome.run.hash))
                yield outcome


def _outcome(setup: Setup, algorithm: str, fleet: str, seed: int) -> Outcome:
    labels = (algorithm, fleet, seed)
    try:
        return Outcome(*labels, run=run_once(setup, *labels))
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 # whatever ends one run must not end the others
        return Outcome(*labels, error=f"{type(error).__name__}: {error}")


def run_once(
    setup: Setup, algorithm: str, fleet: str, seed: int, *, target: float | None = None
) -> Run:
    """Make one run of a comparison.

    Parameters
    ----------
    setup : Setup
        What is compared.
    algorithm, fleet : str
        Names in `setup`.
    seed : int
        Seed of the run, >= 0.
    target : float, optional
        Training loss that ends the run.

    Returns
    -------
    Run
        The run.

    Raises
    ------
    ConfigError
        If settings turn out not to fit together; it names algorithm and fleet.
    """
    try:
        return simulate(
            setup.algorithms[algorithm], setup.problem, setup.fleets[fleet], **setup.budget,
            batch=setup.batch, seed=seed, evaluations=setup.evaluations, target=target,
        )  # fmt: skip
    except ConfigError as error:
        msg = f"algorithm {algorithm!r} on fleet {fleet!r}: {error}"
        raise ConfigError(msg) from None


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
    """

    settings: dict[str, Any]
    outcomes: Sequence[Outcome] = field(repr=False)
    is_complete: bool = True

    def __str__(self) -> str:
        return "\n".join(answer(self.summary))

    @cached_property
    def summary(self) -> Summary:
        """Its numbers: the content of ``summary.json``."""
        return summarise(self.outcomes, self.settings, is_complete=self.is_complete)

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
        check_writable(target)
        for outcome in self.outcomes:
            if outcome.run is not None:
                outcome.run.save(_run_folder(target, outcome.run.hash))
        return self.report(target)

    def report(self, folder: Path) -> Path:
        """Write ``summary.json`` and ``report.html`` into `folder`, which holds the runs."""
        summary = msgspec.json.format(msgspec.json.encode(self.summary))
        _write(folder / "summary.json", summary)
        _write(folder / "report.html", render(self.summary, self.outcomes).encode())
        return folder


def _write(path: Path, content: bytes) -> None:
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.write_bytes(content)
        fresh.replace(path)
    except OSError as error:
        raise unwritable(path, error) from None


def _run_folder(folder: Path, name: str) -> Path:
    return folder / "runs" / name


class _Saved(msgspec.Struct):
    is_complete: bool
    settings: dict[str, Any]
    runs: list[Line]


def load_comparison(folder: str | Path) -> Comparison:
    """Return the comparison that was saved in `folder`.

    Raises
    ------
    ConfigError
        If the folder holds none, or one that is incomplete, damaged or of another format.
    """
    path = Path(folder) / "summary.json"
    try:
        content = path.read_bytes()
    except OSError as error:
        msg = (
            f"{folder} holds no comparison ({path.name}: {error.strerror}); give the folder of one"
        )
        raise ConfigError(msg) from None
    saved: _Saved = decode(content, _Saved, path, FORMAT)
    loaded = [_loaded(Path(folder), line) for line in saved.runs]
    return Comparison(saved.settings, loaded, is_complete=saved.is_complete)


def _loaded(folder: Path, line: Line) -> Outcome:
    labels = (line.algorithm, line.fleet, line.seed)
    if line.status == "failed":
        return Outcome(*labels, error=line.error)
    return Outcome(*labels, run=load(_run_folder(folder, line.hash)))


def compare(
    algorithms: Mapping[str, Algorithm], problem: Problem,
    fleets: AnyFleet | Mapping[str, AnyFleet], *,
    epochs: float | None = None, updates: int | None = None, gradients: int | None = None,
    seconds: float | None = None, batch: int = 32, seeds: int | Sequence[int] = 3,
    evaluations: int = 40, target: float | None = None, note: str = "",
    watch: Callable[[Outcome], None] | None = None,
) -> Comparison:  # fmt: skip
    """Run every algorithm on every fleet, over the same seeds and the same budget.

    Parameters
    ----------
    algorithms : mapping of str to Algorithm
        By the name under which the report shows them.
    problem : Problem
        What they minimise.
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
    target : float, optional
        Training loss whose first crossing is timed; it does not stop a run.
    note : str, default ""
        What a reader of the report should know.
    watch : callable, optional
        Called with each outcome as it comes.

    Returns
    -------
    Comparison
        All runs, and their summary.

    Raises
    ------
    ConfigError
        If settings do not fit together.
    """
    given = {"epochs": epochs, "updates": updates, "gradients": gradients, "seconds": seconds}
    setup = Setup(
        algorithms, problem, fleets if isinstance(fleets, Mapping) else {"fleet": fleets},
        {name: amount for name, amount in given.items() if amount is not None},
        batch, seeds, evaluations, target, note,
    )  # fmt: skip
    found = []
    for outcome in outcomes(setup):
        found.append(outcome)
        if watch is not None:
            watch(outcome)
    return Comparison(setup.settings, found)
