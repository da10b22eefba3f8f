"""The command ``submit``: send a comparison to a Ray cluster, follow it, fetch its report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from distsgd.errors import ConfigError, check_count
from distsgd.experiment import file as experiment
from distsgd.experiment import tables
from distsgd.files import check_writable, write
from distsgd.live.ray import jobs as submission
from distsgd.live.ray.jobs import Order
from distsgd.report.terminal import say

FAILED, INTERRUPTED = 1, 130
"""Exit codes: the job did not succeed; Ctrl-C stopped the command, but not the job."""


def order(
    file: Path | None, changes: Sequence[str], *, seeds: int | None, is_quick: bool, storage: str | None
) -> Order:
    """Return what a job is to do: arguments of ``distsgd compare``, checked as far as possible.

    The `file` is an experiment, None for the built-in one; `changes` are lines of TOML, see
    `experiment.parse`; `storage` is a folder on the cluster, None for a fresh one. A `ConfigError`
    says that the experiment cannot be read, has a wrong key, or names a file that is not sent.
    """
    if file is None:
        experiment.builtin(changes)
    else:
        for path in tables.paths(msgspec.to_builtins(experiment.read(file, changes))):
            submission.check_sent(file, path)
    arguments = [part for change in changes for part in ("--set", change)]
    if seeds is not None:
        arguments += ["--seeds", str(check_count("seeds", seeds))]
    return Order(file, [*arguments, *["--quick"] * is_quick], storage)


def submit(order: Order, address: str, *, is_followed: bool, out: Path | None) -> int:
    """Send a comparison to a Ray cluster as a job, and print its id.

    The dashboard of the cluster listens at `address`. If the job `is_followed`, its log is printed
    until it ends, and its report is fetched into `out`, by default a folder with its id in
    ``results``.
    """
    if order.file is not None:
        submission.check_size(order.file)
    if out is not None:
        check_writable(out)
    job = submission.fresh_id(order)
    with submission.dashboard(address) as client:
        try:
            submission.submit(client, order, job)
            say(f"job {job}")
            return _followed(client, job, out) if is_followed else 0
        except KeyboardInterrupt:
            text = (
                f"stopped looking; job {job} goes on. distsgd submit --address {address}"
                f" --stop {job} stops it, --fetch {job} brings its report"
            )
            say(text, Console(stderr=True))
            return INTERRUPTED


def _followed(client: Any, job: str, out: Path | None) -> int:  # noqa: ANN401 # a class of ray
    """Print the log of a job until it ends, and fetch its report."""
    state = submission.follow(client, job, lambda text: print(text, end="", flush=True))
    say(f"job {job}: {state}")
    try:
        _fetch(client, job, out)
    except ConfigError:
        if state == submission.SUCCEEDED:
            raise
    return 0 if state == submission.SUCCEEDED else FAILED


def _fetch(client: Any, job: str, out: Path | None) -> None:  # noqa: ANN401 # a class of ray
    folder = Path("results", job) if out is None else out
    check_writable(folder)
    for name, content in submission.fetch(client, job).items():
        write(folder / name, content)
        say(f"wrote {folder / name}")


def ask(address: str, question: str, job: str, out: Path | None) -> int:
    """Ask a Ray cluster for the ``status`` or the ``logs`` of a job, to ``stop`` or ``fetch`` it.

    What is fetched comes into `out`, by default a folder with the job's id in ``results``.
    """
    with submission.dashboard(address) as client:
        if question == "status":
            say(client.get_job_status(job).value)
        elif question == "logs":
            print(client.get_job_logs(job), end="")
        elif question == "stop":
            client.stop_job(job)
            say(f"job {job} is asked to stop")
        else:
            _fetch(client, job, out)
    return 0
