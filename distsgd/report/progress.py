"""Runs on their way: what a terminal or a notebook shows of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from distsgd.experiment.outcome import Outcome
from distsgd.experiment.runs import LiveWatch, Watch
from distsgd.experiment.setup import Job, Setup
from distsgd.fold.request import Progress as LiveProgress
from distsgd.report.formatting import number
from distsgd.report.terminal import say


class Shown(NamedTuple):
    """What is told how far runs are, so that a reader sees it; None where nobody is to see it."""

    watch: Watch | None = None
    watch_live: LiveWatch | None = None


EVERY_S = 10.0
"""Time between two lines about runs on their way, where there is no terminal [s]."""


class Task:
    """What a `bar` shows; where there is no terminal, a line now and then says how far it has come.

    The bar, which shows nothing there, keeps the time.
    """

    def __init__(self, bar: Progress, unit: str, total: float) -> None:
        self._bar, self._unit, self._said_s = bar, unit, 0.0
        self._id = bar.add_task("starting", total=total)

    def update(self, **change: Any) -> None:  # noqa: ANN401 # as rich has it
        """Show a `change`, see `rich.progress.Progress.update`."""
        self._bar.update(self._id, **change)
        task = self._bar.tasks[self._id]
        elapsed_s = task.elapsed or 0.0
        if not self._bar.disable or elapsed_s < self._said_s + EVERY_S:
            return
        self._said_s = elapsed_s
        done = f"{task.completed:,.0f} of {task.total or 0:,.0f} {self._unit}"
        text = f"{done} ({task.percentage:.0f} %) after {elapsed_s:.0f} s, {task.description}"
        say(text, self._bar.console)


def is_watched() -> bool:
    """Return whether a person looks: standard error is a terminal, or this is a notebook."""
    terminal = Console(stderr=True)
    return terminal.is_terminal or terminal.is_jupyter


def _bar(*more: ProgressColumn) -> Progress:
    """Return a bar that a terminal or a notebook shows; elsewhere `Task` prints lines instead.

    A notebook without ``ipywidgets`` cannot show it.
    """
    terminal = Console(stderr=True)
    can_show = terminal.is_terminal or (terminal.is_jupyter and find_spec("ipywidgets") is not None)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *more)
    return Progress(*columns, console=terminal, transient=True, disable=not can_show)


@contextmanager
def progress_of_runs(total: int) -> Iterator[Shown]:
    """Show runs, time left, how many diverged, and how far a live run has come."""
    n_diverged = 0
    with _bar(MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task, told = Task(bar, "runs", total), Pace()

        def watch(outcome: Outcome) -> None:
            nonlocal n_diverged
            n_diverged += outcome.run is not None and outcome.run.status == "diverged"
            lost = f", {n_diverged} diverged" if n_diverged else ""
            task.update(advance=1, description=f"{outcome.algorithm} on {outcome.fleet}{lost}")

        def watch_live(job: Job, far: LiveProgress) -> None:
            task.update(description=f"{job.label} on {job.fleet}: {told(far)}")

        yield Shown(watch, watch_live)


@contextmanager
def live_progress(setup: Setup) -> Iterator[LiveWatch]:
    """Show how far a live run has come in its budget."""
    unit, total = setup.config.budget
    per_gradient = {"epochs": setup.config.batch / next(iter(setup.problems.values())).samples}
    with _bar(TaskProgressColumn(), TimeRemainingColumn()) as bar:
        task, told = Task(bar, unit, total), Pace()

        def watch(_: Job, far: LiveProgress) -> None:
            n_gradients = far.gradients * per_gradient.get(unit, 1.0)
            done = far.updates if unit == "updates" else n_gradients
            task.update(completed=done, description=told(far))

        yield watch


class Pace:
    """Puts how far a live run has come into a line.

    It remembers the last call: updates per second are those since then.
    """

    def __init__(self) -> None:
        self._updates, self._wall_seconds = 0, 0.0

    def __call__(self, far: LiveProgress) -> str:
        """Return the line for a run that has come so `far`."""
        lost = f" ({far.lost} lost)" if far.lost else ""
        workers = f"{far.alive} worker{'s' * (far.alive != 1)}{lost}"
        return (
            f"{far.updates:,} updates, {number(self._rate(far))}/s, loss {number(far.loss)}, "
            f"staleness {number(far.staleness)}, {workers}{_unsaved(far)}"
        )

    def _rate(self, far: LiveProgress) -> float | None:
        if far.wall_seconds < self._wall_seconds:  # another run has begun
            self._updates, self._wall_seconds = 0, 0.0
        time = far.wall_seconds - self._wall_seconds
        rate = (far.updates - self._updates) / time if time > 0 else None
        self._updates, self._wall_seconds = far.updates, far.wall_seconds
        return rate


def _unsaved(far: LiveProgress) -> str:
    if not far.unsaved:
        return ""
    last = "never written" if far.saved is None else f"last written at update {far.saved:,}"
    return f", checkpoint failed {far.unsaved} time{'s' * (far.unsaved != 1)}, {last}"
