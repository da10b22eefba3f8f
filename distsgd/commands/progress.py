"""Runs on their way: what a terminal shows of them, and the signals that stop them."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
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


class Terminated(KeyboardInterrupt):
    """SIGTERM has come, which stops the command as Ctrl-C does."""


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], *signals: signal.Signals) -> Iterator[None]:
    """Let `handler` be called for some signals while the block runs."""
    before = {one: signal.signal(one, handler) for one in signals}
    try:
        yield
    finally:
        for one, own in before.items():
            signal.signal(one, own)


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` while the block runs."""

    def end(*_: object) -> None:
        raise Terminated

    with _handled(end, signal.SIGTERM):
        yield


class Stop:
    """Says whether a signal has asked to stop; a second one does not wait for that."""

    code = 0
    """Exit code of the signal that came, as a shell has it; 0 if none did."""

    def __call__(self) -> bool:
        """Return whether a signal has come."""
        return self.code > 0

    def note(self, number: int, _: object) -> None:
        """Note the signal with this `number`."""
        if self.code:
            raise KeyboardInterrupt
        self.code = 128 + number


@contextmanager
def stop_asked() -> Iterator[Stop]:
    """Let Ctrl-C and SIGTERM ask to stop while the block runs, instead of ending it."""
    stop = Stop()
    with _handled(stop.note, signal.SIGINT, signal.SIGTERM):
        yield stop


class Shown(NamedTuple):
    """What is told how far runs are, so that a terminal shows it."""

    watch: Watch
    watch_live: LiveWatch


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


def _bar(*more: ProgressColumn) -> Progress:
    """Return a bar that a terminal shows; elsewhere it is disabled, and `Task` prints lines."""
    terminal = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *more)
    return Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal)


@contextmanager
def progress(total: int) -> Iterator[Shown]:
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
