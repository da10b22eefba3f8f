"""Print one table out of the modules `bench_*.py` beside this file, each with `rows(quick=...)`.

Usage: python scripts/bench.py [--quick] [NAME ...]     NAME: schedule, fold, startup, ...
"""

import importlib
import sys
import warnings
from pathlib import Path

from table import Line

from distsgd.errors import DistsgdError, DistsgdWarning, unknown_name
from distsgd.report.terminal import console, print_table


def chosen(names: list[str]) -> list[str]:
    """Return the benchmarks that are named, or all of them."""
    folder = Path(__file__).parent
    known = sorted(path.stem.removeprefix("bench_") for path in folder.glob("bench_*.py"))
    for name in names:
        if name not in known:
            raise unknown_name("benchmark", name, known)
    return names or known


def main(arguments: list[str]) -> None:
    """Print the rows of every module, or of those that are named."""
    # A benchmark of what a run costs to begin has a budget of next to nothing, on purpose.
    warnings.simplefilter("ignore", DistsgdWarning)
    names = chosen([argument for argument in arguments if argument != "--quick"])
    modules = [importlib.import_module(f"bench_{name}") for name in names]
    rows = [row for module in modules for row in module.rows(quick="--quick" in arguments)]
    print_table("medians of interleaved repetitions", Line._fields, rows, console())


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except DistsgdError as error:
        sys.exit(f"bench: {error}")
