"""What is compared: algorithms, problems and fleets as objects, checked and ready to run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from itertools import product
from typing import Any, NamedTuple

import msgspec

from distsgd.algorithm import Algorithm, check_algorithm
from distsgd.data.partition import class_histogram
from distsgd.errors import ConfigError, check_count, check_name, check_number, check_seeds
from distsgd.experiment.labels import by_label
from distsgd.experiment.outcome import Outcome
from distsgd.experiment.sites import (
    AnyFleet,
    Engine,
    LeftOut,
    Site,
    check_engines,
    check_sizes,
    find_sites,
    modelled,
    n_workers,
    reason_against,
    reason_against_order,
)
from distsgd.experiment.target import Reference
from distsgd.experiment.values import Tunable, Tuning
from distsgd.fold.drivers.interleaved import check_interleavable
from distsgd.fold.problem_check import check_problem
from distsgd.fold.request import ModelFleet, RunConfig, RunRequest
from distsgd.fold.settings_check import of_fleet, of_problem
from distsgd.live.options import Live, LiveFleet
from distsgd.problem import Problem, problem_settings


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

    Algorithms, problems and fleets are given by the names under which the report shows them; a
    single problem is called by its name. A number of seeds stands for 0, 1, 2 and so on. The
    `target` is the training loss whose first crossing is timed, or the algorithm that sets it. With
    several engines each fleet is compared on each. Settings that do not fit together are a
    `ConfigError`, also where no algorithm can run on any of the fleets.
    """

    algorithms: Mapping[str, Algorithm | Tunable]
    problem: Problem | Mapping[str, Problem]
    fleets: Mapping[str, ModelFleet]
    config: RunConfig
    seeds: Sequence[int] = (0, 1, 2)
    target: float | Reference | None = None
    note: str = ""
    tuning: Tuning = field(default_factory=Tuning)
    engine: Engine | Sequence[Engine] = "simulate"
    live: Live = field(default_factory=Live)

    def __post_init__(self) -> None:
        checked = {
            "algorithms": by_label("algorithms", self.algorithms),
            "fleets": by_label("fleets", self.fleets),
            "seeds": check_seeds("seeds", self.seeds),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        check_count("number of seeds", len(self.seeds))
        for label, problem in self.problems.items():
            check_problem(problem, "problem" if problem is self.problem else f"problems[{label!r}]")
        for algorithm in self.algorithms.values():
            check_algorithm(_lowest(algorithm))
        self._check_target()
        self._check_tuning()
        self._check_samples()
        self._check_live()

    def _check_samples(self) -> None:
        partition, is_interleaved = self.config.partition, self.config.reads == "interleaved"
        for problem in self.problems.values():
            for machines in self._machines.values():
                if partition.is_divided and (workers := n_workers(machines)):
                    partition.divide(problem.data, workers, self.seeds[0])
            for algorithm in self.algorithms.values() if is_interleaved else ():
                check_interleavable(_lowest(algorithm), problem)

    def _check_live(self) -> None:
        every = self._machines.items()
        live = {label: machines for label, machines in every if isinstance(machines, LiveFleet)}
        if live and self.config.budget.unit == "seconds":
            raise ConfigError(
                "seconds are virtual, and no budget of a live run; give epochs, updates or"
                ' gradients, or engine = "simulate"'
            )
        if "ray" in self.engines and find_spec("ray") is None:
            raise ConfigError("ray is not installed; install it with: pip install 'ray[default]'")
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
        check_name("target.reference", self.target.reference, self.algorithms)
        if self.target.fleet is not None:
            check_name("target.fleet", self.target.fleet, self.sites)

    def _check_tuning(self) -> None:
        if self.tuning.fleet is not None:
            check_name("tuning.fleet", self.tuning.fleet, self.fleets)
        shared = set(self.seeds) & set(self.tuning.seed_list)
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
    def _machines(self) -> dict[str, AnyFleet]:
        return {label: site.machines for label, site in self.sites.items()}

    def machines_of(self, label: str) -> AnyFleet:
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
        return reason_against(self.request(Job(problem, label, "", self.seeds[0], algorithm)))

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
            found += of_problem(problem, self.config.batch, target=target, seed=self.seeds[0])
        for problem_label, label, name in self.places:
            algorithm, problem = _lowest(self.algorithms[name]), self.problems[problem_label]
            machines = modelled(self.sites[label].machines, algorithm)
            own = of_fleet(RunRequest(algorithm, problem, machines, self.config))
            found += [f"fleet {label!r}: {text}" for text in own]
        return list(dict.fromkeys(found))

    def request(self, job: Job, target: float | None = None) -> RunRequest[Any]:
        """Return the run of `job` before it is made; a `target` ends it."""
        machines, config = self.machines_of(job.fleet), replace(self.config, target=target)
        if isinstance(machines, LiveFleet):
            machines = machines.of(job.algorithm)
            config = replace(config, reads="consistent", atomic=True)  # interleaved reads are those of a model
        return RunRequest(job.algorithm, self.problems[job.problem], machines, config, job.seed)

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
    def settings(self) -> dict[str, Any]:
        """What all runs have in common, as JSON."""
        problems = {name: problem_settings(problem) for name, problem in self.problems.items()}
        several, config = isinstance(self.problem, Mapping), self.config
        common = {"problems": problems} if several else {"problem": next(iter(problems.values()))}
        return {
            **common,
            "budget": config.budget.settings,
            "batch": config.batch,
            "seeds": list(self.seeds),
            "evaluations": config.evaluations,
            "target": msgspec.to_builtins(self.target),
            "note": self.note,
            "partition": config.partition.settings,
            "reads": config.reads,
            "atomic": config.atomic,
            **{name: value for name, value in self._settings_if_any().items() if value},
            **({"histograms": self._histograms()} if config.partition.parts == "skewed" else {}),
        }

    def _settings_if_any(self) -> dict[str, Any]:
        """Return settings that are left out where they are empty."""
        live = {label: site for label, site in self.sites.items() if site.engine != "simulate"}
        return {
            "live": {label: site._asdict() | {"machines": site.machines.settings} for label, site in live.items()},
            "left_out": [one._asdict() for one in self.left_out],
            "warnings": self.warnings,
            "tuning": self.tuning.settings(self.tunables) if self.tunables else {},
        }

    def _histograms(self) -> list[dict[str, Any]]:
        """Return the samples of each class that each worker has, for the first seed, as JSON."""
        seed, found = self.seeds[0], []
        for (problem, one), (name, machines) in product(self.problems.items(), self._machines.items()):
            workers = n_workers(machines)
            parts = self.config.partition.divide(one.data, workers, seed) if workers else None
            if parts is None or one.data is None or not one.data.has_classes:
                continue  # a sampled order has no fleet, and a quadratic no classes
            known = class_histogram(parts, one.data.y)
            counted = {"classes": known.classes.tolist(), "counts": known.counts.tolist()}
            found.append({"problem": problem, "fleet": name, "seed": seed, **counted})
        return found

    @property
    def n_runs(self) -> int:
        """Number of runs, tuning left out."""
        return len(self.places) * len(self.seeds)

    def place(self, outcome: Outcome) -> tuple[int, ...]:
        """Return where a report has `outcome`: by problem, fleet, algorithm and seed."""
        return (
            list(self.problems).index(outcome.problem),
            list(self.sites).index(outcome.fleet),
            list(self.algorithms).index(outcome.algorithm),
            self.seeds.index(outcome.seed),
        )


def _lowest(algorithm: Algorithm | Tunable) -> Algorithm:
    return algorithm.lowest if isinstance(algorithm, Tunable) else algorithm
