"""Predict how distributed SGD converges, before paying for the cluster.

The names below are all that a user needs; each is imported when it is first asked for, so that
``import distsgd`` stays cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distsgd import algorithms as algorithms
    from distsgd import data as data
    from distsgd import problems as problems
    from distsgd.comparison import Comparison as Comparison
    from distsgd.comparison import compare as compare
    from distsgd.data.partition import Partition as Partition
    from distsgd.errors import ConfigError as ConfigError
    from distsgd.errors import DistsgdWarning as DistsgdWarning
    from distsgd.fleet import Failures as Failures
    from distsgd.fleet import Fleet as Fleet
    from distsgd.fleet import fixed_staleness as fixed_staleness
    from distsgd.fleet import stale_reads as stale_reads
    from distsgd.laws import Law as Law
    from distsgd.laws import constant as constant
    from distsgd.laws import empirical as empirical
    from distsgd.laws import exponential as exponential
    from distsgd.laws import gamma as gamma
    from distsgd.laws import lognormal as lognormal
    from distsgd.laws import pareto as pareto
    from distsgd.laws import shifted_exponential as shifted_exponential
    from distsgd.laws import uniform as uniform
    from distsgd.live.fleet import Live as Live
    from distsgd.live.launch import launch as launch
    from distsgd.live.ray_options import RayOptions as RayOptions
    from distsgd.run import Run as Run
    from distsgd.run import load as load
    from distsgd.search import Range as Range
    from distsgd.search import Tunable as Tunable
    from distsgd.search import Tuning as Tuning
    from distsgd.simulation import replay as replay
    from distsgd.simulation import simulate as simulate
    from distsgd.target import Reference as Reference
    from distsgd.trace import Trace as Trace

__version__ = "0.1.0"

_ROOMS = ("algorithms", "data", "problems")
_NAMES = {
    "comparison": ("Comparison", "compare"),
    "data.partition": ("Partition",),
    "errors": ("ConfigError", "DistsgdWarning"),
    "fleet": ("Failures", "Fleet", "fixed_staleness", "stale_reads"),
    "laws": (
        "Law", "constant", "empirical", "exponential", "gamma", "lognormal", "pareto",
        "shifted_exponential", "uniform",
    ),
    "live.fleet": ("Live",),
    "live.launch": ("launch",),
    "live.ray_options": ("RayOptions",),
    "target": ("Reference",),
    "run": ("Run", "load"),
    "search": ("Range", "Tunable", "Tuning"),
    "simulation": ("replay", "simulate"),
    "trace": ("Trace",),
}  # fmt: skip
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [*_ROOMS, *_HOMES]  # noqa: PLE0604 # all of them are strings; ruff does not follow the star


def __getattr__(name: str) -> Any:  # noqa: ANN401 # whatever the name stands for
    if name in _ROOMS:
        return importlib.import_module(f"distsgd.{name}")
    if name not in _HOMES:
        msg = f"module 'distsgd' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"distsgd.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
