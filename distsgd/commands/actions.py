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
from distsgd.commands.signals import Terminated, stop_asked, terminable
from distsgd.errors import ConfigError, TraceError, check_name, check_seed, unknown_name
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
from distsgd.report import figure_files, timeline
from distsgd.report.comparison import Comparison, load_comparison
from distsgd.report.conclusions import conclusions
from distsgd.report.formatting import listed, troubles
from distsgd.report.numbers.summary import Summary
from distsgd.report.progress import live_progress, progress_of_runs
from distsgd.report.terminal import console, print_history, print_summary, print_table, say
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
    """Run a comparison, save each run as it finishes, and write the report into `out`.

    No number of `seeds` means those of the experiment, no number of `processes` one per core if the
    work is worth starting them. `on` says where simulated runs are made, see `runs.Place`; `fresh`
    makes runs again that `out` has already.
    """
    found = Execution(asked.setup(seeds))
    _warn(found.setup)
    check_writable(out)
    with locked(out):
        try:
            with terminable(), progress_of_runs(found.n_runs) as shown:
                found.carry_out(
                    out, processes=processes, is_fresh=fresh, watch=shown.watch, watch_live=shown.watch_live, on=on
                )
        except KeyboardInterrupt as interrupt:
            _interrupted(found, out)
            return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED
        return _finish(Comparison.of(found), out)


def _warn(setup: Setup) -> None:
    for text in setup.warnings:
        say(f"warning: {text}", Console(stderr=True))


def _interrupted(found: Execution, out: Path) -> None:
    text = f"stopped: {len(found.outcomes)} of {found.setup.n_runs} runs had finished"
    say(f"{text}; the same command goes on from there", Console(stderr=True))
    if found.outcomes:
        _finish(Comparison.of(found), out)


def _finish(found: Comparison, out: Path) -> int:
    found.report(out)
    terminal = console()
    print_summary(found.summary, terminal)
    for sentence in conclusions(found.summary) + troubles(found.summary.runs):
        terminal.print(f"- {sentence}", markup=False, highlight=False)
    for name in ("report.html", "summary.json"):
        say(f"wrote {out / name}")
    return FAILED if _has_failed(found.summary) else 0


def _has_failed(summary: Summary) -> bool:
    return any(line.status == "failed" for line in summary.runs) or any(trial.errors for trial in summary.trials)


def run(
    asked: Asked, label: str, *, fleet: str | None, on: str | None, seed: int, is_until_target: bool = False, out: Path
) -> int:
    """Run one algorithm of an experiment once, print its history and save it into `out`.

    `label` is its name there; no `fleet` and no engine (`on`) mean the first ones, and of several
    problems the first is taken. The run ends at the experiment's target if it `is_until_target`. A
    live run that Ctrl-C or SIGTERM stops is saved as far as it has come.
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
    say(f"{label} on {job.fleet}, seed {seed}: {_ending(done)}\nwrote {out}")
    return code


def _target(setup: Setup) -> float:
    if isinstance(setup.target, float):
        return setup.target
    given = "none" if setup.target is None else "that of another algorithm"
    raise ConfigError(f"--until-target needs a loss as target, not {given}; give it with --set target=0.2")


def _job(setup: Setup, label: str, seed: int) -> Job:
    """Return the run of the algorithm `label` on the only site, or say why there is none."""
    check_name("algorithm", label, setup.algorithms)
    algorithm = setup.algorithms[label]
    if isinstance(algorithm, Tunable):
        names = listed(list(algorithm.ranges))
        raise ConfigError(f"{label} is to be tuned; give a value: --set 'algorithms.\"{label}\".{names}=0.1'")
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
    """Compute a saved run again, and say whether every bit is the same; 1 if not.

    The file `experiment` has its algorithm and its problem, for a run that does not say; there the
    algorithm is called `algorithm`, by default as it was recorded. The replay is saved into `out`.
    """
    saved = load(folder)
    made = make_again(saved, experiment, algorithm)
    try:
        again = replayed(saved, *made)
    except TraceError as error:
        say(str(error))
        return FAILED
    order = again.trace
    lost = f", {order.n_lost} times a worker was lost" if order.n_lost else ""
    said = "equal bit for bit"
    if again.difference:
        said = f"close, as its problem is (a parameter differs by {again.difference:.2g} of the largest one)"
    say(f"{said}: {order.n_updates:,} updates by {order.workers} workers, {order.steps.sum():,} gradients{lost}")
    if out is not None:
        say(f"wrote {again.save(out)}")
    return 0


def report(folder: Path, kind: str = "") -> int:
    """Write the report of a saved comparison again, from its runs; figures too, if of a `kind`."""
    saved = load_comparison(folder)
    if kind and kind not in figure_files.FORMATS:
        raise unknown_name("kind of figure", kind, figure_files.FORMATS)
    check_writable(folder)
    with locked(folder):
        code = _finish(saved, folder)
        if kind:
            written = figure_files.write(saved.summary, saved.outcomes, folder / "figures", kind)
            say(f"wrote {len(written)} files into {folder / 'figures'}")
        return code


def trace(folder: Path, perfetto: Path) -> int:
    """Write the timeline of the run in `folder` into the file `perfetto`, a Chrome trace."""
    saved = load(folder)
    files.write(perfetto, timeline.perfetto(saved.trace, timeline.delays(saved)))
    say(f"wrote {perfetto}; open it at https://ui.perfetto.dev")
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
    """Return the whole numbers in `text`, which commas separate, each once; nothing gives none.

    `name` is that of the option, for the error: a `ConfigError` if a part is no such number.
    """
    parts = [part.strip() for part in text.split(",")] if text else []
    wrong = [part for part in parts if not part.isdecimal() or int(part) < at_least]
    if wrong:
        raise ConfigError(f"{name} must be whole numbers >= {at_least} such as 4 or 4,16, not {wrong[0]!r}")
    return list(dict.fromkeys(int(part) for part in parts))
