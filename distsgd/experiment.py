"""An experiment file: typed configuration in TOML, and what it builds.

A wrong key, name or value is a `ConfigError` that says where it stands and what is nearest to it.
Nothing is computed here.
"""

import contextlib
import inspect
import math
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from distsgd import algorithms, data, problems
from distsgd.comparison import BUDGETS, AnyFleet, Setup
from distsgd.errors import ConfigError, check_count, unknown_name
from distsgd.fleet import Failures, Fleet, fixed_staleness, stale_reads
from distsgd.laws import Law

Table: TypeAlias = dict[str, Any]

QUICK_SEEDS = 2
QUICK_SHARE = 0.2
"""A quick comparison has at most this many seeds, and this share of the budget."""


class Breakdowns(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Table ``failures`` of a fleet, see `distsgd.fleet.Failures`."""

    mean_time: float
    repair: float

    def build(self) -> Failures:
        """Return the failures."""
        return Failures(self.mean_time, self.repair)


class Machines(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A fleet of machines, see `distsgd.fleet.Fleet`; a law is text: ``exponential(1.0)``."""

    workers: int
    compute: str | list[str] = "constant(1.0)"
    speeds: list[float] | None = None
    latency: float = 0.0
    bandwidth: float = math.inf
    service: float = 0.0
    shards: int = 1
    failures: Breakdowns | None = None

    def build(self) -> AnyFleet:
        """Return the fleet."""
        return Fleet(
            self.workers, _laws(self.compute), speeds=self.speeds, latency=self.latency,
            bandwidth=self.bandwidth, service=self.service, shards=self.shards,
            failures=None if self.failures is None else self.failures.build(),
        )  # fmt: skip


def _laws(text: str | list[str]) -> Law | list[Law]:
    return Law.parse(text) if isinstance(text, str) else [Law.parse(one) for one in text]


class ExactStaleness(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Equal workers in turn: every gradient has the same staleness."""

    staleness: int

    def build(self) -> AnyFleet:
        """Return the fleet."""
        return fixed_staleness(check_count("staleness", self.staleness, at_least=0))


class SampledStaleness(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Each gradient is read a sampled number of versions ago."""

    stale_reads: str
    seed: int = 0

    def build(self) -> AnyFleet:
        """Return the order."""
        return stale_reads(Law.parse(self.stale_reads), self.seed)


FleetTable: TypeAlias = Machines | ExactStaleness | SampledStaleness


class Experiment(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The content of an experiment file, which README.md describes key by key.

    Exactly one of `epochs`, `updates`, `gradients` and `seconds` is the budget of every run.
    """

    problem: Table
    algorithms: dict[str, Table]
    fleets: dict[str, Table]
    epochs: float | None = None
    updates: int | None = None
    gradients: int | None = None
    seconds: float | None = None
    batch: int = 32
    seeds: int | list[int] = 3
    evaluations: int = 40
    target: float | None = None
    note: str = ""

    def with_fleets(self, staleness: Sequence[int], workers: Sequence[int]) -> "Experiment":
        """Return the experiment on other fleets.

        Parameters
        ----------
        staleness : sequence of int
            A fleet of exactly this staleness for each.
        workers : sequence of int
            The experiment's fleets of machines with each of these numbers of workers.

        Returns
        -------
        Experiment
            With only the fleets that were asked for; unchanged if none was.

        Raises
        ------
        ConfigError
            If `workers` is given and the experiment has no fleet of machines.
        """
        machines = {name: table for name, table in self.fleets.items() if "workers" in table}
        if workers and not machines:
            msg = "workers needs a fleet that is described by its workers; this experiment has none"
            raise ConfigError(msg)
        sized = {
            _sized(name, count, of=len(machines)): table | {"workers": count}
            for name, table in machines.items()
            for count in workers
        }
        exact = {f"staleness {tau}": {"staleness": tau} for tau in staleness}
        return msgspec.structs.replace(self, fleets={**sized, **exact} or self.fleets)

    def with_seeds(self, seeds: int | None) -> "Experiment":
        """Return the experiment with that many seeds: 0, 1, 2 and so on; None changes nothing."""
        return self if seeds is None else msgspec.structs.replace(self, seeds=seeds)

    def quick(self) -> "Experiment":
        """Return the experiment with two seeds at most and a fifth of the budget."""
        seeds = self.seeds if isinstance(self.seeds, list) else list(range(self.seeds))
        (name, amount), = self.budget.items()  # fmt: skip
        less = (
            amount * QUICK_SHARE if isinstance(amount, float) else max(1, int(amount * QUICK_SHARE))
        )
        return msgspec.structs.replace(self, **{name: less, "seeds": seeds[:QUICK_SEEDS]})

    @property
    def budget(self) -> dict[str, float]:
        """The budget that was given, by name."""
        given = {name: getattr(self, name) for name in BUDGETS}
        return {name: amount for name, amount in given.items() if amount is not None}

    def build(self, folder: Path = Path()) -> Setup:
        """Return what the experiment compares, checked and ready to run.

        Parameters
        ----------
        folder : Path
            Folder from which relative paths of data files start.

        Returns
        -------
        Setup
            Problem, algorithms and fleets as objects.

        Raises
        ------
        ConfigError
            If a name, a key or a value cannot be used.
        """
        return Setup(
            algorithms={name: _algorithm(name, own) for name, own in self.algorithms.items()},
            problem=_problem(self.problem, folder),
            fleets={name: _fleet(name, own) for name, own in self.fleets.items()},
            budget=self.budget,
            batch=self.batch,
            seeds=self.seeds,
            evaluations=self.evaluations,
            target=self.target,
            note=self.note,
        )


def read(path: Path) -> Experiment:
    """Return the experiment in the TOML file `path`.

    Raises
    ------
    ConfigError
        If the file cannot be read, is not TOML, or has an unknown key or a value of a wrong type.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        msg = (
            f"cannot read {path} ({reason}); give an experiment file, or none for the built-in one"
        )
        raise ConfigError(msg) from None
    return parse(text, str(path))


def builtin() -> Experiment:
    """Return the experiment that comes with distsgd: every algorithm, softmax on digits."""
    file = resources.files("distsgd").joinpath("builtin.toml")
    return parse(file.read_text(encoding="utf-8"), "builtin.toml")


def parse(text: str, name: str) -> Experiment:
    """Return the experiment in the TOML `text`, which errors call `name`."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        msg = f"{name} is not valid TOML: {error}"
        raise ConfigError(msg) from None
    experiment: Experiment = _typed(table, Experiment, name)
    return experiment


def _typed(table: Table, kind: type[Any], where: str) -> Any:  # noqa: ANN401 # a `kind`
    _check_keys(table, kind.__struct_fields__, where)
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        msg = f"{where}: {str(error).replace('`', '').replace('$.', '')}"
        raise ConfigError(msg) from None


def _check_keys(table: Table, known: Iterable[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise unknown_name(f"key in {where}:", key, known)


def _algorithm(label: str, table: Table) -> Any:  # noqa: ANN401 # an Algorithm
    where = f"[algorithms.{label}]"
    name, parameters = _named(table, "algorithm", where)
    if name not in algorithms.registry:
        raise unknown_name(f"algorithm in {where}:", name, algorithms.registry)
    return construct(algorithms.registry[name].constructor, parameters, where)


def _problem(table: Table, folder: Path) -> Any:  # noqa: ANN401 # a Problem
    name, parameters = _named(table, "name", "[problem]")
    if name not in problems.registry:
        raise unknown_name("problem in [problem]:", name, problems.registry)
    if "data" in parameters:
        parameters["data"] = _data(parameters["data"], folder)
    return construct(problems.registry[name], parameters, "[problem]")


def _data(given: str | Table, folder: Path) -> Any:  # noqa: ANN401 # a Data
    where = "[problem.data]"
    name, parameters = _named({"name": given} if isinstance(given, str) else given, "name", where)
    known = readers()
    if name not in known:
        raise unknown_name(f"data in {where}:", name, known)
    if "path" in parameters:
        parameters["path"] = folder / str(parameters["path"])
    return construct(known[name], parameters, where)


def readers() -> dict[str, Callable[..., Any]]:
    """Return the data that an experiment file can name: by name, what reads or makes them."""
    return {"digits": data.digits, "svmlight": data.svmlight, "sparse": data.sparse}


def _fleet(label: str, table: Table) -> AnyFleet:
    where = f"[fleets.{label}]"
    kinds = {"staleness": ExactStaleness, "stale_reads": SampledStaleness}
    kind = next((kind for key, kind in kinds.items() if key in table), Machines)
    with located(where):
        fleet: AnyFleet = _typed(table, kind, where).build()
        return fleet


def _named(table: Table, key: str, where: str) -> tuple[str, Table]:
    if not isinstance(table, dict) or not isinstance(table.get(key), str):
        msg = f"{where} needs the key {key!r} with a name as its value"
        raise ConfigError(msg)
    return table[key], {name: value for name, value in table.items() if name != key}


def construct(make: Callable[..., Any], parameters: Table, where: str) -> Any:  # noqa: ANN401 # what `make` makes
    """Return ``make(**parameters)``, with errors that say where the parameters stand.

    Parameters
    ----------
    make : callable
        Constructor, whose signature says which parameters there are.
    parameters : dict
        Its arguments by name.
    where : str
        Name of the table that holds them.

    Returns
    -------
    object
        What `make` returns.

    Raises
    ------
    ConfigError
        If a parameter is unknown, missing or out of bounds.
    """
    known = inspect.signature(make).parameters
    _check_keys(parameters, known, where)
    missing = [
        name for name, one in known.items() if one.default is one.empty and name not in parameters
    ]
    if missing:
        msg = f"{where} needs the key {missing[0]!r}"
        raise ConfigError(msg)
    with located(where):
        return make(**parameters)


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Let a `ConfigError` of the block begin with `where`, unless it does so already."""
    try:
        yield
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if where in text else f"{where} {text}") from None


def _sized(name: str, count: int, of: int) -> str:
    plain = f"{count} workers"
    return plain if of == 1 else f"{name}, {plain}"
