"""What is compared: algorithms, problems and fleets as objects, checked and ready to run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from itertools import product
from typing import Any, NamedTuple

import msgspec

from distsgd.algorithm import Algorithm, check_algorithm
from distsgd.data.partition import SHARED, Partition, class_histogram
from distsgd.errors import ConfigError, check_batch, check_budget, check_count, check_number, check_seeds, unknown_name
from distsgd.experiment.labels import by_label
from distsgd.experiment.outcome import Outcome
from distsgd.experiment.sites import (
    AnyFleet,
    Engine,
    LeftOut,
    Machines,
    Site,
    check_engines,
    check_sizes,
    find_sites,
    launch_case,
    modelled,
    n_workers,
    reason_against,
    reason_against_order,
)
from distsgd.experiment.target import Reference
from distsgd.experiment.values import Tunable, Tuning
from distsgd.fold.fold import ReadsName, check_reads
from distsgd.fold.interleaved import check_interleavable
from distsgd.fold.problem_check import check_problem
from distsgd.fold.settings_check import of_fleet, of_problem
from distsgd.fold.simulate import run_settings
from distsgd.live.options import Live, LiveFleet
from distsgd.live.request import Launch
from distsgd.problem import Problem, problem_settings

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

    engine : {"simulate", "local", "ray"} or sequence of these, default "simulate"
        What gives the runs their order; with several, each fleet is compared on each.
    live : Live, optional
        How live runs are made.

    Raises
    ------
    ConfigError
        If settings do not fit together, or no algorithm can run on any of the fleets.
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
    engine: Engine | Sequence[Engine] = "simulate"
    live: Live = field(default_factory=Live)

    def __post_init__(self) -> None:
        checked = {
            "algorithms": by_label("algorithms", self.algorithms),
            "fleets": by_label("fleets", self.fleets),
            "seeds": check_seeds("seeds", self.seeds),
            "batch": check_batch(self.batch),
            "evaluations": check_count("evaluations", self.evaluations),
            "budget": _checked_budget(self.budget),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        check_count("number of seeds", len(self.cases))
        for label, problem in self.problems.items():
            is_alone = problem is self.problem
            check_problem(problem, "problem" if is_alone else f"problems[{label!r}]")
        for algorithm in self.algorithms.values():
            check_algorithm(_lowest(algorithm))
        self._check_target()
        self._check_tuning()
        self._check_manner()
        self._check_live()

    def _check_manner(self) -> None:
        check_reads(self.reads, "auto", is_atomic=self.atomic)
        for problem in self.problems.values():
            for machines in self._machines.values():
                if self.partition.is_divided and (workers := n_workers(machines)):
                    self.partition.divide(problem.data, workers, self.cases[0])
            for algorithm in self.algorithms.values() if self.reads == "interleaved" else ():
                check_interleavable(_lowest(algorithm), problem)

    def _check_live(self) -> None:
        every = self._machines.items()
        live = {label: machines for label, machines in every if isinstance(machines, LiveFleet)}
        if live and "seconds" in self.budget:
            msg = (
                "seconds are virtual, and no budget of a live run; give epochs, updates or"
                ' gradients, or engine = "simulate"'
            )
            raise ConfigError(msg)
        if "ray" in self.engines and find_spec("ray") is None:
            msg = "ray is not installed; install it with: pip install 'ray[default]'"
            raise ConfigError(msg)
        for (name, problem), (label, machines) in product(self.problems.items(), live.items()):
            check_sizes(label, machines, name, problem)
        if not self.n_runs:
            first = self.left_out[0]
            where = f"algorithm {first.algorithm!r} on fleet {first.fleet!r}"
            raise ConfigError(f"{where}: {first.reason}")

    def _check_target(self) -> None:
        if not isinstance(self.target, Reference):
            self.target is None or check_number("target", self.target)
            return
        if self.target.reference not in self.algorithms:
            raise unknown_name("target.reference", self.target.reference, self.algorithms)
        if self.target.fleet not in {None, *self.sites}:
            raise unknown_name("target.fleet", str(self.target.fleet), self.sites)

    def _check_tuning(self) -> None:
        if self.tuning.fleet not in {None, *self.fleets}:
            raise unknown_name("tuning.fleet", str(self.tuning.fleet), self.fleets)
        shared = set(self.cases) & set(self.tuning.cases)
        if self.tunables and shared:
            msg = f"tuning.seeds must not hold seeds of the comparison, such as {min(shared)}; choose others"
            raise ConfigError(msg)

    @cached_property
    def problems(self) -> dict[str, Problem]:
        """The problems by label."""
        return by_label("problems", self.problem)

    @cached_property
    def engines(self) -> tuple[Engine, ...]:
        """The engines, each once."""
        return check_engines(self.engine)

    @cached_property
    def sites(self) -> dict[str, Site]:
        """Where runs are made, by the label of the report: each fleet on each engine."""
        return find_sites(self.fleets, self.engines, self.live)

    @property
    def _machines(self) -> dict[str, Machines]:
        return {label: site.machines for label, site in self.sites.items()}

    def machines_of(self, label: str) -> Machines:
        """Return what the runs of a fleet's or a site's `label` run on; tuning knows fleets."""
        return self.sites[label].machines if label in self.sites else self.fleets[label]

    @cached_property
    def left_out(self) -> list[LeftOut]:
        """What does not run, and why."""
        return [
            LeftOut(problem, label, name, reason)
            for problem, label in product(self.problems, self.sites)
            for name in self.algorithms
            if (reason := self._reason_against(problem, label, name))
        ]

    def _reason_against(self, problem: str, label: str, name: str) -> str:
        site, algorithm = self.sites[label], _lowest(self.algorithms[name])
        if name in self.tunables and (reason := self.reason_not_to_tune(site.fleet, name)):
            return reason
        if reason := reason_against_order(modelled(site.machines, algorithm), algorithm.cycle):
            return reason
        if not isinstance(site.machines, LiveFleet):
            return ""
        job = Job(problem, label, "", self.cases[0], algorithm)
        return reason_against(site.machines, self._case(site.machines, job))

    def reason_not_to_tune(self, fleet: str, name: str) -> str:
        """Return why the algorithm `name` cannot be tuned for `fleet`; nothing if it can."""
        place = self.tuning.fleet or fleet
        reason = reason_against_order(self.fleets[place], _lowest(self.algorithms[name]).cycle)
        return f"it cannot be tuned on {place}: {reason}" if reason and place != fleet else reason

    @cached_property
    def warnings(self) -> list[str]:
        """What is possible and hardly ever meant, in sentences."""
        target = None if isinstance(self.target, Reference) else self.target
        found = []
        for problem in self.problems.values():
            found += of_problem(problem, self.batch, target=target, seed=self.cases[0])
        for problem_label, label, name in self.places:
            algorithm, problem = _lowest(self.algorithms[name]), self.problems[problem_label]
            machines = modelled(self.sites[label].machines, algorithm)
            own = of_fleet(machines, problem, algorithm, self.budget, batch=self.batch, partition=self.partition)
            found += [f"fleet {label!r}: {text}" for text in own]
        return list(dict.fromkeys(found))

    def _case(self, machines: LiveFleet, job: Job) -> Launch:
        problem = self.problems[job.problem]
        return launch_case(machines, job.algorithm, problem, self.budget, seed=job.seed, **self.live_manner)

    @property
    def places(self) -> list[tuple[str, str, str]]:
        """Problem, site and algorithm of all runs, by their labels."""
        left_out = {one[:3] for one in self.left_out}
        every = product(self.problems, self.sites, self.algorithms)
        return [place for place in every if place not in left_out]

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
        problems = {name: problem_settings(problem) for name, problem in self.problems.items()}
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
            **self._live_settings(),
            **({"left_out": [one._asdict() for one in self.left_out]} if self.left_out else {}),
            **({"warnings": self.warnings} if self.warnings else {}),
            **({"tuning": self.tuning.settings(self.tunables)} if self.tunables else {}),
            **({"histograms": self._histograms()} if self.partition.parts == "skewed" else {}),
        }

    def _live_settings(self) -> dict[str, Any]:
        """Return which fleets are live, and which modelled fleet each takes after."""
        live = {
            label: {"fleet": site.fleet, "engine": site.engine, "machines": site.machines.settings}
            for label, site in self.sites.items()
            if site.engine != "simulate"
        }
        return {"live": live} if live else {}

    def _histograms(self) -> list[dict[str, Any]]:
        """Return the samples of each class that each worker has, for the first seed, as JSON."""
        seed, found = self.cases[0], []
        known_machines = self._machines.items()
        for (problem, one), (name, machines) in product(self.problems.items(), known_machines):
            workers = n_workers(machines)
            parts = self.partition.divide(one.data, workers, seed) if workers else None
            if parts is None or one.data is None:
                continue  # a sampled order has no fleet, and a quadratic no classes
            known = class_histogram(parts, one.data.y)
            found.append(
                {
                    "problem": problem,
                    "fleet": name,
                    "seed": seed,
                    "classes": known.classes.tolist(),
                    "counts": known.counts.tolist(),
                }
            )
        return found

    @property
    def n_runs(self) -> int:
        """Number of runs, tuning left out."""
        return len(self.places) * len(self.cases)

    def place(self, outcome: Outcome) -> tuple[int, ...]:
        """Return where a report has `outcome`: by problem, fleet, algorithm and seed."""
        return (
            list(self.problems).index(outcome.problem),
            list(self.sites).index(outcome.fleet),
            list(self.algorithms).index(outcome.algorithm),
            self.cases.index(outcome.seed),
        )

    def run_settings(self, job: Job) -> dict[str, Any]:
        """Return the settings that the run of `job` will have, and so its hash, before it runs."""
        machines, problem = self.machines_of(job.fleet), self.problems[job.problem]
        if not isinstance(machines, LiveFleet):
            return run_settings(job.algorithm, problem, machines, self.budget, seed=job.seed, **self.manner)
        return self._case(machines, job).settings(machines.kind_for(job.algorithm))

    @property
    def manner(self) -> dict[str, Any]:
        """What `simulate` is told for every run alike, beside the budget."""
        return {**self.live_manner, "reads": self.reads, "atomic": self.atomic}

    @property
    def live_manner(self) -> dict[str, Any]:
        """What `launch` is told for every run alike, beside the budget."""
        return {"batch": self.batch, "evaluations": self.evaluations, "partition": self.partition}


def _checked_budget(budget: Mapping[str, float]) -> dict[str, float]:
    if len(budget) != 1 or not set(budget) <= set(BUDGETS):
        given = " and ".join(budget) or "none"
        msg = f"the budget must be exactly one of {', '.join(BUDGETS)}, not {given}"
        raise ConfigError(msg)
    for name, amount in budget.items():
        check_number(name, amount, above=0)
    return check_budget(budget)


def _lowest(algorithm: Algorithm | Tunable) -> Algorithm:
    return algorithm.lowest if isinstance(algorithm, Tunable) else algorithm
