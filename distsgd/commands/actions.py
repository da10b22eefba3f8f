"""What the commands do, once their arguments are parsed. Each returns the exit code."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from distsgd import files, problems
from distsgd.algorithms import registry
from distsgd.commands.progress import Terminated, live_progress, progress, stop_asked, terminable
from distsgd.errors import ConfigError, TraceError, check_seed, unknown_name
from distsgd.experiment import file as experiment
from distsgd.experiment import tables
from distsgd.experiment.execution import Execution
from distsgd.experiment.file import Experiment
from distsgd.experiment.recorded import make_again, source_of
from distsgd.experiment.runs import run_once
from distsgd.experiment.setup import Job, Setup
from distsgd.experiment.values import Tunable
from distsgd.files import check_writable
from distsgd.fold.replay import replay as replayed
from distsgd.live.machine.folder import locked
from distsgd.report import figures, timeline
from distsgd.report.answer import answer
from distsgd.report.comparison import Comparison, load_comparison
from distsgd.report.numbers.summary import Summary
from distsgd.report.terminal import console, print_history, print_summary, print_table
from distsgd.report.text import listed, troubles
from distsgd.run import Run, check_replaceable, load

FAILED, INTERRUPTED, TERMINATED = 1, 130, 143
"""Exit codes: a run ended in an unexpected error; Ctrl-C or SIGTERM stopped the command."""


class Asked(NamedTuple):
    """Which experiment: a file, and what the command line changes in it."""

    file: Path | None = None
    """None for the built-in one."""
    staleness: str = ""
    workers: str = ""
    """Whole numbers with commas, or nothing; see `Experiment.with_fleets`."""
    changes: Sequence[str] = ()
    """Lines of TOML, see `experiment.parse`."""
    is_quick: bool = False
    """Whether to spend less, see `Experiment.quick`."""

    def setup(self, seeds: int | None = None) -> Setup:
        """Return what it describes, with that many seeds if a number is given."""
        return self._built(self._described().with_seeds(seeds))

    def setup_on(self, engine: str | None, fleet: str | None) -> Setup:
        """Return what it describes on one engine and one fleet, None for the first ones."""
        return self._built(self._described().on(engine, fleet))

    def source(self, label: str) -> dict[str, Any]:
        """Return what a run of the algorithm `label` is made from, see `Run.source`."""
        return source_of(self._described(), label, self._folder)

    @property
    def _folder(self) -> Path:
        return Path() if self.file is None else self.file.parent

    def _described(self) -> Experiment:
        read = experiment.builtin if self.file is None else partial(experiment.read, self.file)
        return read(self.changes).with_fleets(
            whole_numbers("staleness", self.staleness, at_least=0), whole_numbers("workers", self.workers)
        )

    def _built(self, described: Experiment) -> Setup:
        return (described.quick() if self.is_quick else described).build(self._folder)


def compare(asked: Asked, *, seeds: int | None, processes: int | None, on: str, fresh: bool, out: Path) -> int:
    """Run a comparison, save each run as it finishes, and write the report.

    Parameters
    ----------
    asked : Asked
        The experiment.
    seeds : int or None
        How many seeds; None for those of the experiment.
    processes : int or None
        How many work at once; None for one per core if the work is worth starting them.
    on : str
        Where simulated runs are made, see `runs.Place`.
    fresh : bool
        Whether runs are made again that `out` has already.
    out : Path
        Folder of the comparison.

    Returns
    -------
    int
        0, or why not.
    """
    found = Execution(asked.setup(seeds))
    _warn(found.setup)
    check_writable(out)
    with locked(out):
        try:
            with terminable(), progress(found.n_runs) as shown:
                found.carry_out(
                    out, processes=processes, is_fresh=fresh, watch=shown.watch, watch_live=shown.watch_live, on=on
                )
        except KeyboardInterrupt as interrupt:
            _interrupted(found, out)
            return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED
        return _finish(Comparison.of(found), out)


def _warn(setup: Setup) -> None:
    terminal = Console(stderr=True)
    for text in setup.warnings:
        terminal.print(f"warning: {text}", markup=False, highlight=False, soft_wrap=True)


def _interrupted(found: Execution, out: Path) -> None:
    text = f"stopped: {len(found.outcomes)} of {found.setup.n_runs} runs had finished"
    Console(stderr=True).print(f"{text}; the same command goes on from there", soft_wrap=True)
    if found.outcomes:
        _finish(Comparison.of(found), out)


def _finish(found: Comparison, out: Path) -> int:
    found.report(out)
    terminal = console()
    print_summary(found.summary, terminal)
    for sentence in answer(found.summary) + troubles(found.summary.runs):
        terminal.print(f"- {sentence}", markup=False, highlight=False)
    for name in ("report.html", "summary.json"):
        _say(f"wrote {out / name}")
    return FAILED if _has_failed(found.summary) else 0


def _say(text: str) -> None:
    console().print(text, markup=False, highlight=False, soft_wrap=True)


def _has_failed(summary: Summary) -> bool:
    return any(line.status == "failed" for line in summary.runs) or any(trial.errors for trial in summary.trials)


def run(
    asked: Asked, label: str, *, fleet: str | None, on: str | None, seed: int, is_until_target: bool = False, out: Path
) -> int:
    """Run one algorithm of an experiment once, print its history and save it.

    A live run that Ctrl-C or SIGTERM stops is saved as far as it has come.

    Parameters
    ----------
    asked : Asked
        The experiment; of several problems the first.
    label : str
        Name of the algorithm in the experiment.
    fleet : str or None
        Name of the fleet in the experiment; None for the first one.
    on : str or None
        Name of the engine; None for the first one of the experiment.
    seed : int
        Seed of the run.
    is_until_target : bool, default False
        Whether the run ends where it meets the experiment's target.
    out : Path
        Folder of the run.

    Returns
    -------
    int
        0, or why the run was stopped.
    """
    setup = asked.setup_on(on, fleet)
    job = _job(setup, label, check_seed(seed))
    check_writable(out.parent)
    check_replaceable(out)
    _warn(setup)
    target = _target(setup) if is_until_target else None
    if setup.engines == ("simulate",):
        code, done = 0, run_once(setup, job, target=target)
    else:
        with stop_asked() as stop, live_progress(setup) as watch:
            done = run_once(setup, job, target=target, stop=stop, watch=watch)
        code = stop.code if done.status == "stopped" else 0
    replace(done, source=asked.source(label)).save(out)
    print_history(done.history, console())
    _say(f"{label} on {job.fleet}, seed {seed}: {_ending(done)}\nwrote {out}")
    return code


def _target(setup: Setup) -> float:
    if isinstance(setup.target, float):
        return setup.target
    given = "none" if setup.target is None else "that of another algorithm"
    msg = f"--until-target needs a loss as target, not {given}; give it with --set target=0.2"
    raise ConfigError(msg)


def _job(setup: Setup, label: str, seed: int) -> Job:
    """Return the run of the algorithm `label` on the only site, or say why there is none."""
    if label not in setup.algorithms:
        raise unknown_name("algorithm", label, setup.algorithms)
    algorithm = setup.algorithms[label]
    if isinstance(algorithm, Tunable):
        names = listed(list(algorithm.ranges))
        msg = f"{label} is to be tuned; give a value: --set 'algorithms.\"{label}\".{names}=0.1'"
        raise ConfigError(msg)
    place = (next(iter(setup.problems)), next(iter(setup.sites)), label)
    for one in setup.left_out:
        if one[:3] == place:
            raise ConfigError(one.reason)
    return Job(*place, seed, algorithm)


def _ending(done: Run) -> str:
    if done.diverged_at is not None:
        return f"diverged at update {done.diverged_at}"
    if done.status == "stopped":
        return f"stopped after {done.history['update'][-1]:,} updates"
    return done.status


def replay(folder: Path, *, experiment: Path | None, algorithm: str | None, out: Path | None) -> int:
    """Compute a saved run again, and say whether it is the same.

    Parameters
    ----------
    folder : Path
        Folder of the run.
    experiment : Path or None
        Experiment file with its algorithm and its problem, for a run that does not say.
    algorithm : str or None
        Name of the algorithm in the experiment; None for the recorded one.
    out : Path or None
        Folder of the replay; None if it is not to be saved.

    Returns
    -------
    int
        0 if every bit is the same, else 1.
    """
    saved = load(folder)
    made = make_again(saved, experiment, algorithm)
    try:
        again = replayed(saved, *made)
    except TraceError as error:
        _say(str(error))
        return FAILED
    order = again.trace
    lost = f", {order.n_lost} times a worker was lost" if order.n_lost else ""
    _say(
        f"equal bit for bit: {order.n_updates:,} updates by {order.workers} workers, "
        f"{order.steps.sum():,} gradients{lost}"
    )
    if out is not None:
        _say(f"wrote {again.save(out)}")
    return 0


def report(folder: Path, kind: str = "") -> int:
    """Write the report of a saved comparison again, from its runs.

    Parameters
    ----------
    folder : Path
        Folder of the comparison.
    kind : str
        Of the figures to write beside it, into ``figures``; none for no kind.

    Returns
    -------
    int
        0, or 1 if a run of it failed.
    """
    saved = load_comparison(folder)
    if kind and kind not in figures.FORMATS:
        raise unknown_name("kind of figure", kind, figures.FORMATS)
    check_writable(folder)
    with locked(folder):
        code = _finish(saved, folder)
        if kind:
            written = figures.write(saved.summary, saved.outcomes, folder / "figures", kind)
            _say(f"wrote {len(written)} files into {folder / 'figures'}")
        return code


def trace(folder: Path, perfetto: Path) -> int:
    """Write the timeline of the run in `folder` into the file `perfetto`, a Chrome trace."""
    saved = load(folder)
    files.write(perfetto, timeline.perfetto(saved.trace, timeline.delays(saved)))
    _say(f"wrote {perfetto}; open it at https://ui.perfetto.dev")
    return 0


def algorithms() -> int:
    """Print every algorithm: its name, its parameters with their defaults, its paper."""
    rows = [[name, _parameters(entry.constructor), entry.paper] for name, entry in registry.items()]
    print_table("algorithms", ("name", "parameters", "paper"), rows, console())
    return 0


def list_problems() -> int:
    """Print every problem with its parameters and their defaults, and the data it can read."""
    rows = [[name, _parameters(make)] for name, make in problems.registry.items()]
    print_table("problems", ("name", "parameters"), rows, console())
    readers = [[name, _parameters(make)] for name, make in tables.readers().items()]
    print_table("data", ("name", "parameters"), readers, console())
    return 0


def _parameters(make: Callable[..., Any]) -> str:
    given = inspect.signature(make).parameters.values()
    return ", ".join(one.name if one.default is one.empty else f"{one.name}={one.default!r}" for one in given)


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
