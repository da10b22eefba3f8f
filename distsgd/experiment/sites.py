"""Where runs are made: fleets on engines, and which algorithms cannot run there."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Literal, NamedTuple, TypeAlias, get_args

from distsgd.algorithm import Algorithm, Cycle
from distsgd.errors import ConfigError, check_count, check_name
from distsgd.fold.request import ModelFleet
from distsgd.live.lock_free.launch import check_lock_free
from distsgd.live.options import Live, LiveFleet, LiveRequest
from distsgd.order.fleet import Fleet, StaleReads
from distsgd.order.schedule import schedule
from distsgd.problem import Problem

AnyFleet: TypeAlias = ModelFleet | LiveFleet
Engine: TypeAlias = Literal["simulate", "local", "ray"]
"""What gives a run its order: a model of machines, processes of this machine, or a Ray cluster."""
ENGINES: tuple[Engine, ...] = get_args(Engine)

_SUFFIXES: dict[Engine, str] = {"simulate": "", "local": ", live", "ray": ", live on Ray"}


class Site(NamedTuple):
    """Where runs are made: a fleet by its label, on an engine."""

    fleet: str
    engine: Engine
    machines: AnyFleet


class LeftOut(NamedTuple):
    """Runs that are not made, since an algorithm cannot run there, and why."""

    problem: str
    fleet: str
    algorithm: str
    reason: str


def check_engines(engine: Engine | Sequence[Engine]) -> tuple[Engine, ...]:
    """Return the engines, each once, or raise a `ConfigError` that names the nearest one."""
    given = (engine,) if isinstance(engine, str) else tuple(engine)
    check_count("number of engines", len(given))
    for name in given:
        check_name("engine", str(name), ENGINES)
    return tuple(dict.fromkeys(given))


def find_sites(fleets: Mapping[str, ModelFleet], engines: Sequence[Engine], live: Live) -> dict[str, Site]:
    """Return where runs are made, by the label of the report: each fleet on each engine.

    A live fleet is called after the one that it takes after. One without a live counterpart is a
    `ConfigError`, as are two with one name.
    """
    found: dict[str, Site] = {}
    for (fleet, machines), engine in product(fleets.items(), engines):
        label = f"{fleet}{_SUFFIXES[engine]}"
        if label in found:
            raise ConfigError(f"two fleets would be called {label!r}; rename one")
        found[label] = Site(fleet, engine, _on(engine, fleet, machines, live))
    return found


def _on(engine: Engine, label: str, fleet: ModelFleet, live: Live) -> AnyFleet:
    if engine == "simulate":
        return fleet
    try:
        return live.like(fleet, engine)
    except ConfigError as error:
        raise ConfigError(f"fleet {label!r}: {error}") from None


def n_workers(machines: AnyFleet) -> int:
    """Return the number of workers; a sampled order has none, 0."""
    return 0 if isinstance(machines, StaleReads) else machines.workers


def modelled(machines: AnyFleet, algorithm: Algorithm) -> ModelFleet:
    """Return machines of a model on which a schedule of `algorithm` can be tried."""
    if isinstance(machines, LiveFleet):
        return Fleet(machines.workers_of(algorithm))
    return machines


def check_sizes(label: str, machines: LiveFleet, name: str, problem: Problem) -> None:
    """Raise a `ConfigError` if there are more workers than samples, or shards than parameters."""
    sizes = {
        "workers": (machines.workers, problem.samples, "samples"),
        "live.shards": (machines.shards, problem.dimension, "parameters"),
    }
    for what, (value, most, of) in sizes.items():
        if value > most:
            raise ConfigError(f"fleet {label!r}: {what} must be <= {most}, the {of} of {name}, not {value}")


@lru_cache(maxsize=1024)  # a round of many workers takes a while to schedule
def reason_against_order(fleet: ModelFleet, cycle: Cycle) -> str:
    """Return why workers of `fleet` cannot repeat `cycle`, in a sentence; nothing if they can."""
    try:
        schedule(cycle, fleet, updates=1)
    except ConfigError as error:
        return str(error)
    return ""


def reason_against(request: LiveRequest) -> str:
    """Return why a live run cannot be made, in a sentence; nothing if it can."""
    if not request.algorithm.lock_free:
        return ""
    if request.fleet.kind == "ray":
        return f"{request.algorithm.name} shares memory, which Ray's processes do not; use downpour"
    try:
        check_lock_free(request)
    except ConfigError as error:
        return str(error)
    return ""
