"""From a table of an experiment file to the object that it describes.

A wrong key, name or value is a `ConfigError` that says where it stands and what is nearest to it.
"""

import contextlib
import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, get_args, get_type_hints

import msgspec

from distsgd import algorithms, data, problems
from distsgd.algorithm import Algorithm
from distsgd.errors import ConfigError, check_count, check_name
from distsgd.experiment import own_code
from distsgd.experiment.values import TUNE, Range, Tunable, Tuning
from distsgd.fold.request import ModelFleet
from distsgd.live.options import Live
from distsgd.order.fleet import Failures, Fleet, fixed_staleness, stale_reads
from distsgd.order.laws import Law
from distsgd.problem import Problem

Table: TypeAlias = dict[str, Any]
Maker: TypeAlias = Callable[..., Any]
"""What makes an object of the parameters of a table."""
Struct = TypeVar("Struct", bound=msgspec.Struct)

_KINDS = {
    "algorithm": own_code.Kind(Algorithm, "distsgd.algorithms.serial(0.1)"),
    "problem": own_code.Kind(Problem, "distsgd.problems.softmax(data)"),
    "data": own_code.Kind(data.Data, "distsgd.data.from_arrays(x, y)"),
}
"""What functions of the user's own must return."""


class Breakdowns(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Table ``failures`` of a fleet, see `distsgd.order.fleet.Failures`."""

    mean_time: float
    repair: float

    def build(self) -> Failures:
        """Return the failures."""
        return Failures(self.mean_time, self.repair)


class Described(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A fleet of machines, see `distsgd.order.fleet.Fleet`; a law is text: ``exponential(1.0)``."""

    workers: int
    compute: str | list[str] = "constant(1.0)"
    speeds: list[float] | None = None
    slowdown: list[float] | None = None
    latency: float = 0.0
    bandwidth: float = math.inf
    service: float = 0.0
    shards: int = 1
    failures: Breakdowns | None = None

    def build(self) -> ModelFleet:
        """Return the fleet."""
        parts = {"compute": _laws(self.compute), "failures": self.failures and self.failures.build()}
        return Fleet(**msgspec.structs.asdict(self) | parts)


def _laws(text: str | list[str]) -> Law | list[Law]:
    return Law.parse(text) if isinstance(text, str) else [Law.parse(one) for one in text]


class ExactStaleness(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Equal workers in turn: every gradient has the same staleness."""

    staleness: int

    def build(self) -> ModelFleet:
        """Return the fleet."""
        return fixed_staleness(check_count("staleness", self.staleness, at_least=0))


class SampledStaleness(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Each gradient is read a sampled number of versions ago."""

    stale_reads: str
    seed: int = 0

    def build(self) -> ModelFleet:
        """Return the order."""
        return stale_reads(Law.parse(self.stale_reads), self.seed)


class LiveRuns(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How live runs are made, see `distsgd.Live`; a law is text."""

    workers: int | None = None
    shards: int = 1
    staleness: int | str | None = None
    delay: str | list[str] | None = None
    on_loss: str = "replace"
    heartbeat: float = 1.0
    checkpoint_every: float = 5.0
    writes: str = "racy"

    def build(self) -> Live:
        """Return the options."""
        laws = {
            "staleness": Law.parse(self.staleness) if isinstance(self.staleness, str) else self.staleness,
            "delay": self.delay if self.delay in (None, "fleet") else _laws(self.delay),
        }
        return Live(**msgspec.structs.asdict(self) | laws)


def live(table: Table) -> Live:
    """Return how live runs are made."""
    with located("[live]"):
        return typed(table, LiveRuns, "[live]").build()


FleetTable: TypeAlias = Described | ExactStaleness | SampledStaleness


def typed(table: Table, kind: type[Struct], where: str) -> Struct:
    """Return `table` as a `kind` of struct, with errors that say `where` it stands."""
    _check_keys(table, kind.__struct_fields__, where)
    try:
        return msgspec.convert(_counted(table, kind), kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {str(error).replace('`', '').replace('$.', '')}") from None


def _counted(given: Any, kind: Any) -> Any:  # noqa: ANN401 # a value of a table and its type
    """Return what was `given` with whole numbers such as 8.0 as counts, where `kind` has counts."""
    if isinstance(given, dict) and isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        kinds = get_type_hints(kind)
        return {key: _counted(value, kinds.get(key)) for key, value in given.items()}
    among = {kind, *get_args(kind)}
    if isinstance(given, list) and list[int] in among:
        return [_counted(one, int) for one in given]
    is_count = isinstance(given, float) and given.is_integer() and int in among
    return int(given) if is_count and float not in among else given


def _check_keys(table: Table, known: Collection[str], where: str) -> None:
    for key in table:
        check_name(f"key in {where}:", key, known)


def algorithm(label: str, table: Table, folder: Path, tuning: Tuning) -> Any:  # noqa: ANN401 # an Algorithm or a Tunable
    """Return the algorithm that is called `label`, tunable if a parameter is to be tuned.

    Own code, and relative paths of its parameters, start at `folder`.
    """
    where = f"[algorithms.{label}]"
    name, parameters = _named(table, "algorithm", where)
    known = {name: entry.constructor for name, entry in algorithms.registry.items()}
    make = _maker(name, "algorithm", known, folder, where)
    ranges = {
        key: _range(key, parameters.pop(key), tuning, where)
        for key, value in table.items()
        if value == TUNE or isinstance(value, dict)
    }
    schedule = _schedule(make, parameters, folder, where)
    made = partial(_scheduled, make, _resolved(make, parameters, folder, where), schedule, where)
    return Tunable(made, ranges) if ranges else made()


def _schedule(make: Maker, parameters: Table, folder: Path, where: str) -> Callable[[float], float] | None:
    """Take the schedule of an algorithm whose own parameters have none."""
    if "schedule" not in parameters or "schedule" in inspect.signature(make).parameters:
        return None
    with located(f"{where} schedule:"):
        return own_code.function(str(parameters.pop("schedule")), folder)


def _scheduled(
    make: Maker, fixed: Table, schedule: Callable[[float], float] | None, where: str, **tuned: float
) -> Algorithm:
    found: Algorithm = construct(make, fixed | tuned, where)
    return found if schedule is None else found._replace(schedule=schedule)


def _range(key: str, given: str | Table, tuning: Tuning, where: str) -> Range:
    if isinstance(given, str) and key != "learning_rate":
        raise ConfigError(f'{where} {key} = "{TUNE}" needs a range; give {{low = ..., high = ...}}')
    table = {"low": tuning.low, "high": tuning.high} if isinstance(given, str) else given
    return typed(table, Range, f"{where} {key}")


def problem(table: Table, folder: Path, place: str) -> Any:  # noqa: ANN401 # a Problem
    """Return the problem at `place`; relative paths and own code start at `folder`."""
    where = f"[{place}]"
    name, parameters = _named(table, "name", where)
    make = _maker(name, "problem", problems.registry, folder, where)
    if "data" in parameters:
        parameters["data"] = _data(parameters["data"], folder, f"[{place}.data]")
    return construct(make, _resolved(make, parameters, folder, where), where)


def _data(given: str | Table, folder: Path, where: str) -> Any:  # noqa: ANN401 # a Data
    name, parameters = _named({"name": given} if isinstance(given, str) else given, "name", where)
    make = _maker(name, "data", readers(), folder, where)
    return construct(make, _resolved(make, parameters, folder, where), where)


def _maker(name: str, kind: str, known: Mapping[str, Maker], folder: Path, where: str) -> Maker:
    """Return what is called `name`: a `known` one, or a function beside the file."""
    if own_code.is_own(name):
        with located(where):
            return own_code.maker(name, folder, _KINDS[kind])
    check_name(f"{kind} in {where}:", name, known)
    return known[name]


def _resolved(make: Maker, parameters: Table, folder: Path, where: str) -> Table:
    """Return `parameters` with their paths below `folder`, and the functions that they name."""
    known = inspect.signature(make).parameters
    found = dict(parameters)
    for key, value in parameters.items():
        if _is_path(key):
            found[key] = folder / str(value)
        elif isinstance(value, str) and own_code.is_own(value) and _takes_function(known.get(key)):
            with located(f"{where} {key}:"):
                found[key] = own_code.function(value, folder)
    return found


def _is_path(key: str) -> bool:
    return key == "path" or key.endswith("_path")


def paths(table: Table) -> Iterator[str]:
    """Yield the paths that an experiment names, in whatever table."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from paths(value)
        elif _is_path(key):
            yield str(value)


def _takes_function(parameter: inspect.Parameter | None) -> bool:
    """Return whether a parameter is a schedule, or its type says that it is a function."""
    return parameter is not None and (parameter.name == "schedule" or "Callable" in str(parameter.annotation))


def readers() -> dict[str, Maker]:
    """Return the data that an experiment file can name: by name, what reads or makes them."""
    names = ("digits", "sparse", "svmlight", "csv", "parquet", "npy", "npz")
    return {name: getattr(data, name) for name in names}


def fleet(label: str, table: Table) -> ModelFleet:
    """Return the fleet that is called `label`."""
    where = f"[fleets.{label}]"
    kinds: dict[str, type[FleetTable]] = {"staleness": ExactStaleness, "stale_reads": SampledStaleness}
    kind = next((kind for key, kind in kinds.items() if key in table), Described)
    with located(where):
        return typed(table, kind, where).build()


def _named(table: Table, key: str, where: str) -> tuple[str, Table]:
    if not isinstance(table, dict) or not isinstance(table.get(key), str):
        raise ConfigError(f"{where} needs the key {key!r} with a name as its value")
    return table[key], {name: value for name, value in table.items() if name != key}


def construct(make: Maker, parameters: Table, where: str) -> Any:  # noqa: ANN401 # what `make` makes
    """Return ``make(**parameters)``; a `ConfigError` says `where` they stand and what is wrong."""
    every = inspect.signature(make).parameters.values()
    known = {one.name: one for one in every if one.kind in {one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY}}
    if not any(one.kind is one.VAR_KEYWORD for one in every):
        _check_keys(parameters, known, where)
    missing = [name for name, one in known.items() if one.default is one.empty and name not in parameters]
    if missing:
        raise ConfigError(f"{where} needs the key {missing[0]!r}")
    with located(where):
        return make(**parameters)


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Let a `ConfigError` of the block begin with `where`, unless it does so already."""
    try:
        yield
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if where in text else f"{where} {text}") from error.__cause__
    except MemoryError as error:
        raise ConfigError(f"{where} needs more memory than there is: {error}") from None
