"""What a saved run was made from: tables of an experiment, and the values that they describe."""

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from distsgd.algorithm import Algorithm, settings
from distsgd.errors import ConfigError, check_name
from distsgd.experiment import file as experiment
from distsgd.experiment import tables
from distsgd.experiment.file import Experiment
from distsgd.experiment.tables import Table
from distsgd.experiment.values import Tunable, Tuning
from distsgd.problem import Problem, problem_settings
from distsgd.run import Run


class Source(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The content of `Run.source`: tables of an experiment, and where relative paths start."""

    algorithm: Table
    problem: Table
    folder: str


class Made(NamedTuple):
    """What a run can be replayed with."""

    algorithm: Algorithm
    problem: Problem


def source_of(described: Experiment, label: str, folder: Path) -> dict[str, Any]:
    """Return the `Run.source` of a run of `label` on the first problem; paths start at `folder`."""
    problem = next(iter(_problems(described).values()))
    source = Source(described.algorithms[label], problem, str(folder.resolve()))
    return dict(msgspec.to_builtins(source))


def make_again(run: Run, file: Path | None = None, label: str | None = None) -> Made:
    """Return the algorithm and the problem of a saved run, which may say what it was made from.

    If it does not, or a `file` or `label` is given, they are looked for in the experiment `file`,
    by default the built-in one: the recorded algorithm, or the one called `label`, which may be
    another. Where nothing fits, that is a `ConfigError`.
    """
    if run.source and file is None and label is None:
        source = tables.typed(run.source, Source, "the source of the run")
        folder = Path(source.folder)
        algorithm = tables.algorithm("recorded", source.algorithm, folder, Tuning())
        return Made(algorithm, tables.problem(source.problem, folder, "problem"))
    described = experiment.builtin() if file is None else experiment.read(file)
    folder = Path() if file is None else file.parent
    made = Made(_algorithm(described, folder, label, run), _problem(described, folder, run))
    if file is None and problem_settings(made.problem) != run.settings["problem"]:
        raise _unknown("problem", run)
    return made


def _algorithm(described: Experiment, folder: Path, label: str | None, run: Run) -> Algorithm:
    known = described.algorithms
    if label is not None:
        check_name("algorithm", label, known)
        return _with_numbers(tables.algorithm(label, known[label], folder, described.tuning), run)
    for name, table in known.items():
        found = _with_numbers(tables.algorithm(name, table, folder, described.tuning), run)
        if settings(found) == run.settings["algorithm"]:
            return found
    raise _unknown("algorithm", run)


def _unknown(kind: str, run: Run) -> ConfigError:
    return ConfigError(
        f"the run does not say what it was made from, and no {kind} of the experiment is the "
        f"recorded one, {run.settings[kind]['name']}; give its --experiment FILE, and --algorithm "
        "NAME to see what differs"
    )


def _with_numbers(found: Algorithm | Tunable, run: Run) -> Algorithm:
    """Return an algorithm, whose tuned parameters are those that were recorded."""
    if isinstance(found, Algorithm):
        return found
    recorded = run.settings["algorithm"]["hyper"]
    return found.make(**{name: recorded.get(name, one.low) for name, one in found.ranges.items()})


def _problem(described: Experiment, folder: Path, run: Run) -> Problem:
    """Return the problem that was recorded, or else the first one."""
    made: list[Problem] = [tables.problem(table, folder, place) for place, table in _problems(described).items()]
    return next((one for one in made if problem_settings(one) == run.settings["problem"]), made[0])


def _problems(described: Experiment) -> dict[str, Table]:
    """Return the tables of the problems by their place."""
    if described.problem is not None:
        return {"problem": described.problem}
    return {f"problems.{name}": table for name, table in (described.problems or {}).items()}
