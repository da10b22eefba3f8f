"""What is compared: algorithms, problems and fleets as objects, checked and ready to run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple, TypeAlias

import msgspec

from distsgd.algorithm import Algorithm, check_algorithm
from distsgd.data.partition import SHARED, Partition, class_histogram
from distsgd.errors import ConfigError, check_count, check_number, check_seed, unknown_name
from distsgd.fleet import Fleet, StaleReads
from distsgd.fold import ReadsName, check_reads
from distsgd.interleave import check_interleavable
from distsgd.problem import Problem
from distsgd.report.findings import Reference
from distsgd.report.summary import Outcome
from distsgd.schedule import schedule
from distsgd.search import Tunable, Tuning
from distsgd.simulation import run_settings

AnyFleet: TypeAlias = Fleet | StaleReads

BUDGETS = ("epochs", "updates", "gradients", "seconds")
"""Names of the budgets; a run has exactly one."""


class Job(NamedTuple):
    """One run that is to be made: its labels, its seed and its algorithm."""

    problem: str
    fleet: str
    label: str
    seed: int
    algorithm: Algorithm


@dataclass(frozen=True, eq=False)
class Setup:
    """What is compared, checked and ready to run.

    Parameters
    ----------
    algorithms : mapping of str to Algorithm or Tunable
        By the name under which the report shows them.
    problem : Problem or mapping of str to Problem
        What they minimise; a single one is called by its name.
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
    target : float or Reference, optional
        Training loss whose first crossing is timed, or the algorithm that sets it.
    note : str, default ""
        What a reader of the report should know.
    tuning : Tuning, optional
        How every `Tunable` is tuned.
    partition : Partition, optional
        Which samples a worker sees; by default all, with replacement.
    reads : {"consistent", "interleaved"}, default "consistent"
        See `distsgd.simulate`.
    atomic : bool, default True
        See `distsgd.simulate`.

    Raises
    ------
    ConfigError
        If nothing is left to run, or an algorithm cannot run on one of the fleets.
    """

    algorithms: Mapping[str, Algorithm | Tunable]
    problem: Problem | Mapping[str, Problem]
    fleets: Mapping[str, AnyFleet]
    budget: Mapping[str, Any]
    batch: int = 32
    seeds: int | Sequence[int] = 3
    evaluations: int = 40
    target: float | Reference | None = None
    note: str = ""
    tuning: Tuning = field(default_factory=Tuning)
    partition: Partition = SHARED
    reads: ReadsName = "consistent"
    atomic: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.seeds, int):
            object.__setattr__(self, "seeds", range(check_count("seeds", self.seeds)))
        for name in ("algorithms", "problems", "fleets", "seeds"):
            check_count(f"number of {name}", len(getattr(self, name)))
        for seed in self.cases:
            check_seed(seed)
        check_count("batch", self.batch)
        check_count("evaluations", self.evaluations)
        _check_budget(self.budget)
        self._check_target()
        self._check_tuning()
        for name, algorithm in self.algorithms.items():
            _check_runnable(name, algorithm, self.fleets)
        self._check_manner()

    def _check_manner(self) -> None:
        check_reads(self.reads, "auto", is_atomic=self.atomic)
        for problem in self.problems.values():
            for fleet in self.fleets.values():
                if isinstance(fleet, Fleet) and self.partition.is_divided:
                    self.partition.divide(problem.data, fleet.workers, self.cases[0])
            for algorithm in self.algorithms.values() if self.reads == "interleaved" else ():
                check_interleavable(_lowest(algorithm), problem)

    def _check_target(self) -> None:
        if not isinstance(self.target, Reference):
            self.target is None or check_number("target", self.target)
            return
        if self.target.reference not in self.algorithms:
            raise unknown_name("target.reference", self.target.reference, self.algorithms)
        if self.target.fleet not in {None, *self.fleets}:
            raise unknown_name("target.fleet", str(self.target.fleet), self.fleets)

    def _check_tuning(self) -> None:
        if self.tuning.fleet not in {None, *self.fleets}:
            raise unknown_name("tuning.fleet", str(self.tuning.fleet), self.fleets)
        shared = set(self.cases) & set(self.tuning.cases)
        if self.tunables and shared:
            msg = (
                f"tuning.seeds must not hold seeds of the comparison, such as {min(shared)};"
                " choose others"
            )
            raise ConfigError(msg)

    @property
    def problems(self) -> dict[str, Problem]:
        """The problems by label."""
        if isinstance(self.problem, Mapping):
            return dict(self.problem)
        return {self.problem.name: self.problem}

    @property
    def tunables(self) -> dict[str, Tunable]:
        """The algorithms that are to be tuned."""
        return {name: one for name, one in self.algorithms.items() if isinstance(one, Tunable)}

    @property
    def cases(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(self.seeds) if isinstance(self.seeds, Iterable) else (self.seeds,)

    @property
    def settings(self) -> dict[str, Any]:
        """What all runs have in common, as JSON."""
        problems = {name: dict(problem.settings) for name, problem in self.problems.items()}
        several = isinstance(self.problem, Mapping)
        common = {"problems": problems} if several else {"problem": next(iter(problems.values()))}
        return {
            **common,
            "budget": dict(self.budget),
            "batch": self.batch,
            "seeds": list(self.cases),
            "evaluations": self.evaluations,
            "target": msgspec.to_builtins(self.target),
            "note": self.note,
            "partition": self.partition.settings,
            "reads": self.reads,
            "atomic": self.atomic,
            **({"tuning": self.tuning.settings(self.tunables)} if self.tunables else {}),
            **({"histograms": self._histograms()} if self.partition.parts == "skewed" else {}),
        }

    def _histograms(self) -> list[dict[str, Any]]:
        """Return the samples of each class that each worker has, for the first seed, as JSON."""
        seed, found = self.cases[0], []
        for (problem, one), (name, fleet) in product(self.problems.items(), self.fleets.items()):
            workers = fleet.workers if isinstance(fleet, Fleet) else 0
            parts = self.partition.divide(one.data, workers, seed) if workers else None
            if parts is None or one.data is None:
                continue  # a sampled order has no fleet, and a quadratic no classes
            known = class_histogram(parts, one.data.y)
            found.append({
                "problem": problem, "fleet": name, "seed": seed,
                "classes": known.classes.tolist(), "counts": known.counts.tolist(),
            })  # fmt: skip
        return found

    @property
    def n_runs(self) -> int:
        """Number of runs: problems times fleets times algorithms times seeds, tuning left out."""
        return len(self.problems) * len(self.fleets) * len(self.algorithms) * len(self.cases)

    def place(self, outcome: Outcome) -> tuple[int, ...]:
        """Return where a report has `outcome`: by problem, fleet, algorithm and seed."""
        return (
            list(self.problems).index(outcome.problem), list(self.fleets).index(outcome.fleet),
            list(self.algorithms).index(outcome.algorithm), self.cases.index(outcome.seed),
        )  # fmt: skip

    def run_settings(self, job: Job) -> dict[str, Any]:
        """Return the settings that the run of `job` will have, and so its hash, before it runs."""
        return run_settings(
            job.algorithm, self.problems[job.problem], self.fleets[job.fleet], self.budget,
            seed=job.seed, **self.manner,
        )  # fmt: skip

    @property
    def manner(self) -> dict[str, Any]:
        """What `simulate` is told for every run alike, beside the budget."""
        return {
            "batch": self.batch, "evaluations": self.evaluations, "partition": self.partition,
            "reads": self.reads, "atomic": self.atomic,
        }  # fmt: skip


def _check_budget(budget: Mapping[str, float]) -> None:
    if len(budget) != 1 or not set(budget) <= set(BUDGETS):
        given = " and ".join(budget) or "none"
        msg = f"the budget must be exactly one of {', '.join(BUDGETS)}, not {given}"
        raise ConfigError(msg)
    for name, amount in budget.items():
        check_number(name, amount, above=0)


def _check_runnable(
    name: str, algorithm: Algorithm | Tunable, fleets: Mapping[str, AnyFleet]
) -> None:
    one = _lowest(algorithm)
    check_algorithm(one)
    for label, fleet in fleets.items():
        try:
            schedule(one.cycle, fleet, updates=1)
        except ConfigError as error:
            msg = f"algorithm {name!r} on fleet {label!r}: {error}"
            raise ConfigError(msg) from None


def _lowest(algorithm: Algorithm | Tunable) -> Algorithm:
    return algorithm.lowest if isinstance(algorithm, Tunable) else algorithm
