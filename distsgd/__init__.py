"""Predict how distributed SGD converges, before paying for the cluster.

The names below are all that a user needs; each is imported when it is first asked for, so that
``import distsgd`` stays cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

from distsgd import display
from distsgd.version import VERSION

if TYPE_CHECKING:
    from distsgd import algorithms as algorithms
    from distsgd import data as data
    from distsgd import problems as problems
    from distsgd import sklearn as sklearn
    from distsgd.data.partition import Partition as Partition
    from distsgd.errors import ConfigError as ConfigError
    from distsgd.errors import DistsgdWarning as DistsgdWarning
    from distsgd.experiment.target import Reference as Reference
    from distsgd.experiment.values import Range as Range
    from distsgd.experiment.values import Tunable as Tunable
    from distsgd.experiment.values import Tuning as Tuning
    from distsgd.fold.replay import replay as replay
    from distsgd.fold.simulate import simulate as simulate
    from distsgd.live.launch import launch as launch
    from distsgd.live.options import Live as Live
    from distsgd.live.ray_options import RayOptions as RayOptions
    from distsgd.order.fleet import Failures as Failures
    from distsgd.order.fleet import Fleet as Fleet
    from distsgd.order.fleet import fixed_staleness as fixed_staleness
    from distsgd.order.fleet import stale_reads as stale_reads
    from distsgd.order.laws import Law as Law
    from distsgd.order.laws import constant as constant
    from distsgd.order.laws import empirical as empirical
    from distsgd.order.laws import exponential as exponential
    from distsgd.order.laws import gamma as gamma
    from distsgd.order.laws import lognormal as lognormal
    from distsgd.order.laws import pareto as pareto
    from distsgd.order.laws import shifted_exponential as shifted_exponential
    from distsgd.order.laws import uniform as uniform
    from distsgd.problem import Evaluation as Evaluation
    from distsgd.problem import Problem as Problem
    from distsgd.report.compare import compare as compare
    from distsgd.report.comparison import Comparison as Comparison
    from distsgd.run import Run as Run
    from distsgd.run import load as load
    from distsgd.trace import Trace as Trace

__version__ = VERSION

_ROOMS = ("algorithms", "data", "problems", "sklearn")
_NAMES = {
    "report.comparison": "Comparison",
    "report.compare": "compare",
    "data.partition": "Partition",
    "errors": "ConfigError DistsgdWarning",
    "order.fleet": "Failures Fleet fixed_staleness stale_reads",
    "order.laws": "Law constant empirical exponential gamma lognormal pareto shifted_exponential uniform",
    "live.options": "Live",
    "live.launch": "launch",
    "live.ray_options": "RayOptions",
    "problem": "Evaluation Problem",
    "experiment.target": "Reference",
    "run": "Run load",
    "experiment.values": "Range Tunable Tuning",
    "fold.replay": "replay",
    "fold.simulate": "simulate",
    "trace": "Trace",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [*_ROOMS, *_HOMES]  # noqa: PLE0604 # all of them are strings; ruff does not follow the star


def _load_display() -> display.Display:
    from distsgd.report import notebook  # noqa: PLC0415 # a run that is not shown needs no charts

    return notebook


display.load = _load_display


def __getattr__(name: str) -> Any:  # noqa: ANN401 # whatever the name stands for
    if name in _ROOMS:
        return importlib.import_module(f"distsgd.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'distsgd' has no attribute {name!r}")
    return getattr(importlib.import_module(f"distsgd.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
