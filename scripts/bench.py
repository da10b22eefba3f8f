"""Print one table out of the modules `bench_*.py` beside this file, each with `rows(quick)`.

Usage: python scripts/bench.py [--quick] [NAME ...]     NAME: schedule, fold, startup, ...
"""

import importlib
import sys
from pathlib import Path

from distsgd.errors import unknown_name
from distsgd.report.terminal import console, print_table

COLUMNS = ("what", "measured", "against", "ratio", "reach")


def main(arguments: list[str]) -> None:
    """Print the rows of every module, or of those that are named."""
    folder = Path(__file__).parent
    known = sorted(path.stem.removeprefix("bench_") for path in folder.glob("bench_*.py"))
    named = [argument for argument in arguments if argument != "--quick"]
    for name in named:
        if name not in known:
            raise unknown_name("benchmark", name, known)
    modules = [importlib.import_module(f"bench_{name}") for name in named or known]
    found = [row for module in modules for row in module.rows(quick="--quick" in arguments)]
    shown = [[row.get(column, "") for column in COLUMNS] for row in found]
    print_table("medians of interleaved repetitions", COLUMNS, shown, console())


if __name__ == "__main__":
    main(sys.argv[1:])
