"""An experiment file: typed configuration in TOML, and what it builds.

A wrong key, name or value is a `ConfigError` that says where it stands and what is nearest to it.
Nothing is computed here.
"""

import contextlib
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from distsgd.data.partition import SHARED, Partition
from distsgd.errors import ConfigError, check_name, check_seeds
from distsgd.experiment import tables
from distsgd.experiment.setup import Setup
from distsgd.experiment.tables import Table
from distsgd.experiment.target import Reference
from distsgd.experiment.values import Tuning
from distsgd.fold.request import RunKeys

QUICK_SEEDS = 2
QUICK_SHARE = 0.2
QUICK_TRIALS = 4
QUICK_EVALUATIONS = 25
"""A quick comparison has this many seeds, trials and evaluations at most, and this share of the
budget."""


class Experiment(RunKeys, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """The content of an experiment file, which REFERENCE.md describes key by key.

    Exactly one of `problem` and `problems` is given.
    """

    algorithms: dict[str, Table]
    fleets: dict[str, Table]
    problem: Table | None = None
    problems: dict[str, Table] | None = None
    seeds: int | list[int] = 3
    target: float | Reference | None = None
    note: str = ""
    tuning: Tuning = Tuning()
    partition: Table | None = None
    engine: str | list[str] = "simulate"
    live: Table = msgspec.field(default_factory=dict)

    def with_fleets(self, staleness: Sequence[int], workers: Sequence[int]) -> "Experiment":
        """Return the experiment on other fleets; unchanged if none is asked for.

        There is a fleet of exactly each `staleness`, and the experiment's fleets of machines with
        each number of `workers`; where it has none, that is a `ConfigError`. A target or a tuning
        on a fleet that is gone is on the first fleet, or on each.
        """
        machines = {name: table for name, table in self.fleets.items() if "workers" in table}
        if workers and not machines:
            raise ConfigError("workers needs a fleet that is described by its workers; this experiment has none")
        sized = {
            f"{name}, {count} workers" if len(machines) > 1 else f"{count} workers": table | {"workers": count}
            for name, table in machines.items()
            for count in workers
        }
        exact = {f"staleness {tau}": {"staleness": tau} for tau in staleness}
        fleets = {**sized, **exact}
        return self._on(fleets) if fleets else self

    def _on(self, fleets: dict[str, Table]) -> "Experiment":
        target, tuning = self.target, self.tuning
        if isinstance(target, Reference) and target.fleet not in fleets:
            target = msgspec.structs.replace(target, fleet=None)
        if tuning.fleet not in fleets:
            tuning = msgspec.structs.replace(tuning, fleet=None)
        return msgspec.structs.replace(self, fleets=fleets, target=target, tuning=tuning)

    def with_seeds(self, seeds: int | None) -> "Experiment":
        """Return the experiment with that many seeds: 0, 1, 2 and so on; None changes nothing."""
        return self if seeds is None else msgspec.structs.replace(self, seeds=seeds)

    def on(self, engine: str | None, fleet: str | None) -> "Experiment":
        """Return the experiment on one of its fleets and one engine, None for its first ones."""
        name = next(iter(self.fleets), "") if fleet is None else fleet
        check_name("fleet", name, self.fleets)
        first = self.engine[:1] if isinstance(self.engine, list) else self.engine
        alone = self._on({name: self.fleets[name]})
        return msgspec.structs.replace(alone, engine=first if engine is None else engine)

    def quick(self) -> "Experiment":
        """Return the experiment with a fifth of its budget, and fewer seeds and trials."""
        seeds = self.seeds if isinstance(self.seeds, list) else list(range(self.seeds))
        name, amount = self.config(SHARED).budget
        less = amount * QUICK_SHARE if isinstance(amount, float) else max(1, int(amount * QUICK_SHARE))
        tuning = msgspec.structs.replace(
            self.tuning,
            trials=min(self.tuning.trials, QUICK_TRIALS),
            refinements=0,
            seeds=list(self.tuning.seed_list[:QUICK_SEEDS]),
        )
        changed = {
            name: less,
            "seeds": seeds[:QUICK_SEEDS],
            "tuning": tuning,
            "evaluations": min(self.evaluations, QUICK_EVALUATIONS),
        }
        return msgspec.structs.replace(self, **changed)

    def build(self, folder: Path = Path()) -> Setup:
        """Return what the experiment compares, checked; paths and own code start at `folder`."""
        return Setup(
            algorithms={
                name: tables.algorithm(name, own, folder, self.tuning) for name, own in self.algorithms.items()
            },
            problem=self._problems(folder),
            fleets={name: tables.fleet(name, own) for name, own in self.fleets.items()},
            config=self.config(tables.construct(Partition, self.partition or {}, "[partition]")),
            seeds=check_seeds("seeds", self.seeds),
            target=self.target,
            note=self.note,
            tuning=self.tuning,
            engine=self.engine,  # type: ignore[arg-type] # a set-up knows the names of engines
            live=tables.live(self.live),
        )

    def _problems(self, folder: Path) -> Any:  # noqa: ANN401 # a Problem, or several by label
        if (self.problem is None) == (self.problems is None):
            raise ConfigError("an experiment needs exactly one of [problem] and [problems.LABEL]")
        if self.problem is not None:
            return tables.problem(self.problem, folder, "problem")
        labelled = self.problems or {}
        return {name: tables.problem(own, folder, f"problems.{name}") for name, own in labelled.items()}


def read(path: Path, changes: Sequence[str] = ()) -> Experiment:
    """Return the experiment in the TOML file `path`, or raise a `ConfigError`; see `parse`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        msg = f"cannot read {path} ({reason}); give an experiment file, or none for the built-in one"
        raise ConfigError(msg) from None
    return parse(text, str(path), changes)


def builtin(changes: Sequence[str] = ()) -> Experiment:
    """Return the experiment that comes with distsgd: every algorithm, two problems on digits."""
    file = resources.files("distsgd").joinpath("builtin.toml")
    return parse(file.read_text(encoding="utf-8"), "builtin.toml", changes)


def parse(text: str, name: str, changes: Sequence[str] = ()) -> Experiment:
    """Return the experiment in the TOML `text`, which errors call `name`; it is not yet built.

    The `changes` are lines of TOML that are put over it, such as ``fleets.machines.latency = 0.1``;
    a value that is no TOML is text, since a shell takes quotes away. What is not TOML, an unknown
    key or a value of a wrong type is a `ConfigError`.
    """
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of too many digits, tables too deep
        raise ConfigError(f"{name} is not valid TOML: {error}") from None
    for change in changes:
        _put_over(table, _changed(change))
    return tables.typed(table, Experiment, name)


def _changed(change: str) -> Table:
    key, equals, value = change.partition("=")
    quoted = f"{key} = {msgspec.json.encode(value.strip()).decode()}"
    for line in (change, quoted) if equals else ():
        with contextlib.suppress(ValueError, RecursionError):
            return tomllib.loads(line)
    raise ConfigError(f"set must be KEY=VALUE such as fleets.LABEL.latency=0.1, not {change!r}")


def _put_over(table: Table, changes: Table) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(table.get(key), dict):
            _put_over(table[key], value)
        else:
            table[key] = value
