"""What the commands do, once their arguments are parsed. Each returns the exit code."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from distsgd import experiment, problems
from distsgd.algorithms import registry
from distsgd.comparison import Comparison, Setup, load_comparison, outcomes, run_once
from distsgd.errors import ConfigError, check_count, unknown_name
from distsgd.report.answer import answer
from distsgd.report.summary import Outcome, Summary
from distsgd.report.terminal import console, print_history, print_summary, print_table
from distsgd.report.text import troubles
from distsgd.run import check_writable

FAILED, INTERRUPTED = 1, 130
"""Exit codes: a run ended in an unexpected error; Ctrl-C stopped the command."""


def compare(
    file: Path | None, *, staleness: str, workers: str, seeds: int | None, quick: bool, out: Path
) -> int:
    """Run a comparison, save each run as it finishes, and write the report.

    Parameters
    ----------
    file : Path or None
        Experiment file; None for the built-in one.
    staleness, workers : str
        Whole numbers with commas, or nothing; see `Experiment.with_fleets`.
    seeds : int or None
        How many seeds; None for those of the experiment.
    quick : bool
        Whether to spend less, see `Experiment.quick`.
    out : Path
        Folder of the comparison.

    Returns
    -------
    int
        0, or why not.
    """
    setup = _setup(file, staleness, workers, seeds, quick=quick)
    check_writable(out)
    found: list[Outcome] = []
    try:
        with _progress(setup.n_runs) as advance:
            for outcome in outcomes(setup, out):
                found.append(outcome)
                advance(f"{outcome.algorithm} on {outcome.fleet}")
    except KeyboardInterrupt:
        return _interrupted(setup, found, out)
    return _finish(Comparison(setup.settings, found), out)


def _setup(
    file: Path | None, staleness: str, workers: str, seeds: int | None, *, quick: bool
) -> Setup:
    described = experiment.builtin() if file is None else experiment.read(file)
    described = described.with_fleets(
        whole_numbers("staleness", staleness, at_least=0), whole_numbers("workers", workers)
    ).with_seeds(seeds)
    folder = Path() if file is None else file.parent
    return (described.quick() if quick else described).build(folder)


def _interrupted(setup: Setup, found: list[Outcome], out: Path) -> int:
    Console(stderr=True).print(f"stopped: {len(found)} of {setup.n_runs} runs had finished")
    if found:
        _finish(Comparison(setup.settings, found, is_complete=False), out)
    return INTERRUPTED


def _finish(comparison: Comparison, out: Path) -> int:
    comparison.report(out)
    terminal = console()
    print_summary(comparison.summary, terminal)
    for sentence in answer(comparison.summary) + troubles(comparison.summary.runs):
        terminal.print(f"- {sentence}", markup=False, highlight=False)
    for name in ("report.html", "summary.json"):
        terminal.print(f"wrote {out / name}", markup=False, highlight=False, soft_wrap=True)
    return FAILED if _has_failed(comparison.summary) else 0


def _has_failed(summary: Summary) -> bool:
    return any(line.status == "failed" for line in summary.runs)


def run(
    label: str, file: Path | None, *, fleet: str | None, staleness: str, workers: str, seed: int,
    quick: bool, out: Path,
) -> int:  # fmt: skip
    """Run one algorithm of an experiment once, print its history and save it.

    Parameters
    ----------
    label : str
        Name of the algorithm in the experiment.
    file : Path or None
        Experiment file; None for the built-in one.
    fleet : str or None
        Name of the fleet in the experiment; None for the first one.
    staleness, workers : str
        As for `compare`.
    seed : int
        Seed of the run.
    quick : bool
        Whether to spend less, see `Experiment.quick`.
    out : Path
        Folder of the run.

    Returns
    -------
    int
        0.
    """
    setup = _setup(file, staleness, workers, None, quick=quick)
    machines = next(iter(setup.fleets)) if fleet is None else fleet
    for kind, name, known in (
        ("algorithm", label, setup.algorithms), ("fleet", machines, setup.fleets),
    ):  # fmt: skip
        if name not in known:
            raise unknown_name(kind, name, known)
    check_count("seed", seed, at_least=0)
    check_writable(out.parent)
    done = run_once(setup, label, machines, seed, target=setup.target)
    done.save(out)
    terminal = console()
    print_history(done.history, terminal)
    ended = done.status if done.diverged_at is None else f"diverged at update {done.diverged_at}"
    text = f"{label} on {machines}, seed {seed}: {ended}\nwrote {out}"
    terminal.print(text, markup=False, highlight=False, soft_wrap=True)
    return 0


def report(folder: Path) -> int:
    """Write the report of a saved comparison again, from its runs."""
    comparison = load_comparison(folder)
    check_writable(folder)
    return _finish(comparison, folder)


def algorithms() -> int:
    """Print every algorithm: its name, its parameters with their defaults, its paper."""
    rows = [[name, _parameters(entry.constructor), entry.paper] for name, entry in registry.items()]
    print_table("algorithms", ("name", "parameters", "paper"), rows, console())
    return 0


def list_problems() -> int:
    """Print every problem with its parameters and their defaults, and the data it can read."""
    rows = [[name, _parameters(make)] for name, make in problems.registry.items()]
    print_table("problems", ("name", "parameters"), rows, console())
    readers = [[name, _parameters(make)] for name, make in experiment.readers().items()]
    print_table("data", ("name", "parameters"), readers, console())
    return 0


def _parameters(make: Callable[..., Any]) -> str:
    given = inspect.signature(make).parameters.values()
    return ", ".join(
        one.name if one.default is one.empty else f"{one.name}={one.default!r}" for one in given
    )


def whole_numbers(name: str, text: str, *, at_least: int = 1) -> list[int]:
    """Return the whole numbers in `text`, which commas separate.

    Parameters
    ----------
    name : str
        Name of the option, for the error.
    text : str
        Such as ``0,4,16``; nothing gives no numbers.
    at_least : int, default 1
        Lowest number allowed.

    Returns
    -------
    list of int
        In the order of the text, without repetitions.

    Raises
    ------
    ConfigError
        If a part is no such number.
    """
    parts = [part.strip() for part in text.split(",")] if text else []
    wrong = [part for part in parts if not part.isdecimal() or int(part) < at_least]
    if wrong:
        msg = f"{name} must be whole numbers >= {at_least} such as 4 or 4,16, not {wrong[0]!r}"
        raise ConfigError(msg)
    return list(dict.fromkeys(int(part) for part in parts))


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """Show a bar on a terminal, and nothing elsewhere."""
    terminal = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    shown = Progress(
        *columns, TimeElapsedColumn(), console=terminal, transient=True,
        disable=not terminal.is_terminal,
    )  # fmt: skip
    with shown as progress:
        task = progress.add_task("starting", total=total)
        yield lambda text: progress.update(task, advance=1, description=text)
