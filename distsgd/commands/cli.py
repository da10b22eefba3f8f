"""The command line: argument parsing only, so that ``distsgd --help`` starts at once."""

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from typer.exceptions import TyperException

from distsgd.errors import DistsgdError, own_traceback
from distsgd.version import VERSION

BAD_INPUT, INTERRUPTED = 2, 130
"""Exit codes: the caller's mistake, which one sentence explains; Ctrl-C."""

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

File: TypeAlias = Annotated[
    Path | None, typer.Argument(help="Experiment file (TOML). Default: the built-in comparison.")
]
Experiment: TypeAlias = Annotated[Path | None, typer.Option(help="Experiment file (TOML). Default: the built-in one.")]
Staleness: TypeAlias = Annotated[str, typer.Option(help="Fleets of exactly these stalenesses instead, such as 0,4,16.")]
Workers: TypeAlias = Annotated[
    str, typer.Option(help="The fleets of machines with these numbers of workers, such as 4,16.")
]
Changes: TypeAlias = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Another value for a key of the experiment.")
]
Job: TypeAlias = Annotated[str | None, typer.Option(metavar="ID", help="Of this job instead, which was sent before.")]
Quick: TypeAlias = Annotated[bool, typer.Option("--quick", help="Two seeds, four trials, a fifth of the budget.")]


def _show_version(is_asked: bool) -> None:
    if is_asked:
        print(f"distsgd {VERSION}")
        raise typer.Exit


@app.callback()
def options(
    *,
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Predict how distributed SGD converges, before paying for the cluster."""


@app.command(
    epilog="Example: distsgd compare mine.toml --workers 4,16 --set fleets.machines.compute='exponential(1.0)'"
)
def compare(
    experiment: File = None,
    *,
    staleness: Staleness = "",
    workers: Workers = "",
    changes: Changes = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds.")] = None,
    processes: Annotated[int | None, typer.Option(help="Runs at the same time. Default: one per core.")] = None,
    on: Annotated[str, typer.Option(help="Where simulated runs are made: local, or on a ray cluster.")] = "local",
    fresh: Annotated[bool, typer.Option("--fresh", help="Make runs again that the folder has already.")] = False,
    quick: Quick = False,
    out: Annotated[Path, typer.Option(help="Folder of report, summary and runs.")] = Path("results/comparison"),
) -> int:
    """Tune and compare algorithms on fleets, and write a report; goes on where it was stopped."""
    from distsgd.commands import actions

    asked = actions.Asked(experiment, staleness, workers, changes or (), quick)
    return actions.compare(asked, seeds=seeds, processes=processes, on=on, fresh=fresh, out=out)


@app.command(epilog="Example: distsgd run Downpour --staleness 16 --set algorithms.Downpour.learning_rate=0.5")
def run(
    algorithm: Annotated[str, typer.Argument(help="Name of an algorithm in the experiment.")],
    *,
    experiment: Experiment = None,
    fleet: Annotated[str | None, typer.Option(help="Name of a fleet. Default: the first.")] = None,
    staleness: Staleness = "",
    workers: Workers = "",
    changes: Changes = None,
    on: Annotated[
        str | None, typer.Option(help="simulate, or live: local or ray. Default: as the experiment says.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    until_target: Annotated[
        bool, typer.Option("--until-target", help="End where the experiment's target is met.")
    ] = False,
    quick: Quick = False,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("results/run"),
) -> int:
    """Run one algorithm once; print its history, and save it."""
    from distsgd.commands import actions

    asked = actions.Asked(experiment, staleness, workers, changes or (), quick)
    return actions.run(asked, algorithm, fleet=fleet, on=on, seed=seed, is_until_target=until_target, out=out)


@app.command(epilog="Example: distsgd submit mine.toml --address http://head:8265 --wait")
def submit(
    experiment: File = None,
    *,
    address: Annotated[
        str, typer.Option(help="Where the dashboard of the Ray cluster listens.")
    ] = "http://127.0.0.1:8265",
    wait: Annotated[bool, typer.Option("--wait", help="Follow the log, and fetch the report when done.")] = False,
    changes: Changes = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds.")] = None,
    quick: Quick = False,
    storage: Annotated[
        str | None, typer.Option(help="Folder on the cluster to work in. Default: a fresh one on the head.")
    ] = None,
    status: Job = None,
    logs: Job = None,
    stop: Job = None,
    fetch: Job = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report here. Default: results/ID.")] = None,
) -> int:
    """Send a comparison to a Ray cluster as a job; or ask for the status of a job, or its logs."""
    from distsgd.commands import submit as submitting

    asked = {"status": status, "logs": logs, "stop": stop, "fetch": fetch}
    for question, job in asked.items():
        if job is not None:
            return submitting.ask(address, question, job, out)
    order = submitting.order(experiment, changes or (), seeds=seeds, is_quick=quick, storage=storage)
    return submitting.submit(order, address, is_followed=wait, out=out)


@app.command(epilog="Example: distsgd replay results/run")
def replay(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a saved run.")],
    *,
    experiment: Annotated[
        Path | None, typer.Option(help="Experiment file of the run. Default: what the run was made from.")
    ] = None,
    algorithm: Annotated[
        str | None, typer.Option(help="Name of its algorithm there. Default: the recorded one.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the replay.")] = None,
) -> int:
    """Compute a saved run again; say whether every bit is the same, or where it differs first."""
    from distsgd.commands import actions

    return actions.replay(folder, experiment=experiment, algorithm=algorithm, out=out)


@app.command(epilog="Example: distsgd report results/comparison --figures pdf")
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a saved comparison.")],
    *,
    figures: Annotated[str, typer.Option(help="Every picture as svg, png or pdf, or its data as csv or parquet.")] = "",
) -> int:
    """Write the report of a saved comparison again, and its figures."""
    from distsgd.commands import actions

    return actions.report(folder, figures)


@app.command(epilog="Example: distsgd trace results/run --perfetto timeline.json")
def trace(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a saved run.")],
    *,
    perfetto: Annotated[Path, typer.Option(help="File of the Chrome trace.")] = Path("timeline.json"),
) -> int:
    """Write the timeline of a run for Perfetto: what every worker and the server did when."""
    from distsgd.commands import actions

    return actions.trace(folder, perfetto)


@app.command(epilog="Example: distsgd algorithms")
def algorithms() -> int:
    """List the algorithms: name, parameters with defaults, paper."""
    from distsgd.commands import actions

    return actions.algorithms()


@app.command(epilog="Example: distsgd problems")
def problems() -> int:
    """List the problems and the data, with their parameters."""
    from distsgd.commands import actions

    return actions.list_problems()


def main() -> None:
    """Run the command line, and exit with 0, 2 for bad input, or 130 after Ctrl-C."""
    try:
        sys.exit(app(args=sys.argv[1:] or ["--help"], standalone_mode=False))
    except (TyperException, DistsgdError) as error:
        text = error.format_message() if isinstance(error, TyperException) else str(error)
        own = own_traceback(error.__cause__) if error.__cause__ else ""
        print(f"{own}distsgd: {' '.join(text.split())}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except MemoryError as error:
        print(f"distsgd: this needs more memory than there is: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left to print would fail at the exit
        print("distsgd: cannot write the output: the disk is full", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except (KeyboardInterrupt, typer.Abort):
        print("distsgd: stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
