"""Start-up: what a user waits for before anything happens."""

import statistics
import subprocess
import sys
import time

from table import Line

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import distsgd": ["-c", "import distsgd"],
    "distsgd --help": ["-m", "distsgd", "--help"],
}


def rows(*, quick: bool = False) -> list[Line]:
    """Return the median time of each command, over interleaved repetitions.

    Parameters
    ----------
    quick : bool
        Whether to repeat 3 times instead of 15.

    Returns
    -------
    list of Line
        Medians.
    """
    repetitions = 3 if quick else 15
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(repetitions):
        for name, arguments in COMMANDS.items():
            times[name].append(seconds_of(arguments))
    medians = {name: statistics.median(measured) for name, measured in times.items()}
    bare = medians["python -c pass"]
    return [
        Line(
            what=name,
            measured=f"{median * 1e3:.0f} ms",
            against=f"{bare * 1e3:.0f} ms for a bare Python",
            ratio=f"{median / bare:.2f}",
            reach="under 300 ms",
        )
        for name, median in medians.items()
        if name != "python -c pass"
    ]


def seconds_of(arguments: list[str]) -> float:
    """Return how long a Python process with these arguments takes [s]."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start
