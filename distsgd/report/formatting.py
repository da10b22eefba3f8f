"""Numbers and lists as text: the same in the terminal, on the page and in its sentences."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distsgd.experiment.sites import Engine
from distsgd.experiment.trials import Trial
from distsgd.report.numbers.engines import clock_of
from distsgd.report.numbers.findings import Contrast
from distsgd.report.numbers.summary import Line, Result
from distsgd.statistics.spreads import Spread

MISSING = "-"
"""Stands for a number that is not finite or does not apply."""


def number(value: float | None) -> str:
    """Return `value` to three significant digits, and a dash for one that is not finite."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    if value == 0 or float(value).is_integer():
        return f"{value:.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


def spread_text(spread: Spread | None) -> str:
    """Return the median of `spread`, and its band in brackets unless it has no width."""
    if spread is None:
        return MISSING
    if spread.low == spread.high:
        return number(spread.median)
    return f"{number(spread.median)} [{number(spread.low)}, {number(spread.high)}]"


def time_text(result: Result) -> str:
    """Return the time to target of `result`, and in how many runs it was met."""
    time = result.time_to_target
    if time is None:
        return MISSING
    runs = f"{time.reached} of {result.finished}"
    if time.median_s is None:
        return f"missed ({runs} met it)"
    return f"{number(time.median_s)} s ({runs})"


def status_text(result: Result) -> str:
    """Return how the runs of `result` ended, with their counts."""
    return counts_text(result.status | ({"failed": result.failed} if result.failed else {}))


def counts_text(counts: Mapping[str, int]) -> str:
    """Return how many runs ended in each way."""
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def values_text(parameters: Mapping[str, float]) -> str:
    """Return the values of some parameters, each behind its name."""
    return ", ".join(f"{name} {number(value)}" for name, value in parameters.items())


def listed(names: Sequence[str]) -> str:
    """Return `names` with commas, and an "and" before the last."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def few(names: Sequence[str], kind: str) -> str:
    """Return up to three `names`, and otherwise how many of which `kind` there are."""
    return listed(names) if len(names) <= 3 else f"{len(names)} {kind}"


def interval_text(median: float | None, low: float | None, high: float | None) -> str:
    """Return a number with its interval, or that too few seeds are known for one."""
    if low is None:
        return f"{number(median)} (too few seeds to say how sure)"
    end = "unbounded" if high is None or high == math.inf else number(high)
    if median is None or median == math.inf:
        return f"at least {number(low)}"
    return f"{number(median)} [{number(low)}, {end}]"


def ratio_text(contrast: Contrast) -> str:
    """Return how many times as much an algorithm needs, with the interval."""
    return interval_text(contrast.median, contrast.low, contrast.high)


_CELLS: dict[str, Callable[[Result], str]] = {
    "algorithm": lambda one: one.algorithm,
    "time to target": time_text,
    "machine time to target [s]": lambda one: number(one.time_to_target.machine_s if one.time_to_target else None),
    "loss at equal time": lambda one: spread_text(one.loss_at_equal_time),
    "training loss": lambda one: spread_text(one.loss),
    "test loss": lambda one: spread_text(one.test_loss),
    "accuracy": lambda one: spread_text(one.accuracy),
    "virtual time [s]": lambda one: _median_text(one.seconds or one.wall_seconds),
    "updates": lambda one: _median_text(one.updates),
    "mean staleness": lambda one: number(one.staleness.mean if one.staleness else None),
    "dropped": lambda one: str(one.dropped),
    "utilisation": lambda one: number(one.utilisation),
    "runs": status_text,
}
COLUMNS = tuple(_CELLS)
"""Headings of a table of results."""


def headings(engine: Engine) -> list[str]:
    """Return the headings of a table of results on one engine."""
    return [name.replace("virtual", clock_of(engine)) for name in COLUMNS]


def cells(result: Result) -> list[str]:
    """Return the cells of `result`, one per heading of `COLUMNS`."""
    return [show(result) for show in _CELLS.values()]


def _median_text(spread: Spread | None) -> str:
    return number(spread.median if spread else None)


_TRIAL_CELLS: dict[str, Callable[[Trial], str]] = {
    "problem": lambda one: one.problem or MISSING,
    "fleet": lambda one: one.fleet,
    "algorithm": lambda one: one.algorithm,
    "parameters": lambda one: values_text(one.parameters),
    "time to target [s]": lambda one: number(one.seconds),
    "training loss": lambda one: number(one.loss),
    "seeds": lambda one: ", ".join(map(str, one.seeds)),
    "ended": lambda one: counts_text(Counter(one.status)),
}
TRIAL_COLUMNS = tuple(_TRIAL_CELLS)
"""Headings of a table of trials."""


def trial_cells(trial: Trial) -> list[str]:
    """Return the cells of `trial`, one per heading of `TRIAL_COLUMNS`."""
    return [show(trial) for show in _TRIAL_CELLS.values()]


def pairs(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested `settings` as flat text: ``data.name`` for a key within a key."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= pairs(value, f"{prefix}{key}.")
        elif value is not None:
            several = value if isinstance(value, (list, tuple)) else [value]
            flat[f"{prefix}{key}"] = ", ".join(map(_plain, several))
    return flat


def _plain(value: object) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def troubles(lines: Sequence[Line]) -> list[str]:
    """Return a sentence for each run that did not spend its budget."""
    return [_trouble(line) for line in lines if line.status != "done"]


def _trouble(line: Line) -> str:
    where = f"{line.algorithm} on {line.fleet}, seed {line.seed}"
    if line.status == "diverged":
        return f"{where}: diverged, first seen at server update {line.diverged_at}"
    return f"{where}: {line.status} {line.error}".rstrip()
