"""The command ``submit``: send a comparison to a Ray cluster, follow it, fetch its report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from distsgd.errors import ConfigError, check_count
from distsgd.experiment import file as experiment
from distsgd.files import check_writable, write
from distsgd.live.ray import jobs as submission
from distsgd.live.ray.jobs import Order
from distsgd.report.terminal import console

FAILED, INTERRUPTED = 1, 130
"""Exit codes: the job did not succeed; Ctrl-C stopped the command, but not the job."""


def order(
    file: Path | None, changes: Sequence[str], *, seeds: int | None, is_quick: bool, storage: str | None
) -> Order:
    """Return what a job is to do, checked as far as this machine can.

    Parameters
    ----------
    file : Path or None
        Experiment file; None for the built-in comparison.
    changes : sequence of str
        Lines of TOML, see `experiment.parse`.
    seeds : int or None
        How many seeds; None for those of the experiment.
    is_quick : bool
        Whether to spend less, see `Experiment.quick`.
    storage : str or None
        Folder on the cluster; None for a fresh one.

    Returns
    -------
    Order
        With the arguments of ``distsgd compare``.

    Raises
    ------
    ConfigError
        If the experiment cannot be read, or has a wrong key.
    """
    if file is None:
        experiment.builtin(changes)
    else:
        experiment.read(file, changes)
    arguments = [part for change in changes for part in ("--set", change)]
    if seeds is not None:
        arguments += ["--seeds", str(check_count("seeds", seeds))]
    return Order(file, [*arguments, *["--quick"] * is_quick], storage)


def submit(order: Order, address: str, *, is_followed: bool, out: Path | None) -> int:
    """Send a comparison to a Ray cluster as a job, and print its id.

    Parameters
    ----------
    order : Order
        What the job is to do.
    address : str
        Where the dashboard of the cluster listens.
    is_followed : bool
        Whether to print the job's log until it ends, and to fetch its report.
    out : Path or None
        Folder of the report; None for one with the job's id in ``results``.

    Returns
    -------
    int
        0, or why not.
    """
    if order.file is not None:
        submission.check_size(order.file)
    if out is not None:
        check_writable(out)
    job = submission.fresh_id(order)
    with submission.dashboard(address) as client:
        try:
            submission.submit(client, order, job)
            _say(f"job {job}")
            return _followed(client, job, out) if is_followed else 0
        except KeyboardInterrupt:
            text = (
                f"stopped looking; job {job} goes on. distsgd submit --address {address}"
                f" --stop {job} stops it, --fetch {job} brings its report"
            )
            Console(stderr=True).print(text, soft_wrap=True, highlight=False)
            return INTERRUPTED


def _followed(client: Any, job: str, out: Path | None) -> int:  # noqa: ANN401 # a class of ray
    """Print the log of a job until it ends, and fetch its report."""
    state = submission.follow(client, job, lambda text: print(text, end="", flush=True))
    _say(f"job {job}: {state}")
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
        _say(f"wrote {folder / name}")


def ask(address: str, question: str, job: str, out: Path | None) -> int:
    """Ask a Ray cluster for the ``status`` or the ``logs`` of a job, to ``stop`` or ``fetch`` it.

    Parameters
    ----------
    address : str
        Where the dashboard of the cluster listens.
    question : str
        One of these words.
    job : str
        Id of the job.
    out : Path or None
        Folder of what is fetched; None for one with the job's id in ``results``.

    Returns
    -------
    int
        0.
    """
    with submission.dashboard(address) as client:
        if question == "status":
            _say(client.get_job_status(job).value)
        elif question == "logs":
            print(client.get_job_logs(job), end="")
        elif question == "stop":
            client.stop_job(job)
            _say(f"job {job} is asked to stop")
        else:
            _fetch(client, job, out)
    return 0


def _say(text: str) -> None:
    console().print(text, markup=False, highlight=False, soft_wrap=True)
