"""The results of a comparison as a data frame: the numbers of the summary, a column for each."""

from typing import Any

import polars as pl

from distsgd.report.numbers.summary import Result, Summary

_LABELS = ("problem", "fleet", "algorithm", "engine")
_COUNTS = ("workers", "finished", "failed", "dropped")
_SPREADS = ("loss", "test_loss", "accuracy", "loss_at_equal_time", "seconds", "wall_seconds", "updates", "gradients")
_OTHERS = ("seconds_to_target", "machine_seconds_to_target", "mean_staleness", "utilisation")
_UNKNOWN = (None, None, None)


def table(summary: Summary) -> pl.DataFrame:
    """Return a row per problem, fleet and algorithm; see `distsgd.Comparison.table`."""
    spreads = [column for name in _SPREADS for column in _columns(name)]
    schema = (
        dict.fromkeys(_LABELS, pl.String)
        | dict.fromkeys([*_COUNTS, "reached_target"], pl.Int64)
        | dict.fromkeys([*spreads, *_OTHERS], pl.Float64)
    )
    return pl.DataFrame([_row(one) for one in summary.results], schema=schema)


def _row(result: Result) -> dict[str, Any]:
    row = {name: getattr(result, name) for name in (*_LABELS, *_COUNTS, "utilisation")}
    for name in _SPREADS:
        row |= zip(_columns(name), getattr(result, name) or _UNKNOWN, strict=True)
    return row | {
        "reached_target": getattr(result.time_to_target, "reached", None),
        "seconds_to_target": getattr(result.time_to_target, "median_s", None),
        "machine_seconds_to_target": getattr(result.time_to_target, "machine_s", None),
        "mean_staleness": getattr(result.staleness, "mean", None),
    }


def _columns(name: str) -> tuple[str, str, str]:
    """Return the columns of a spread, in its order: low, median and high."""
    return f"{name}_low", name, f"{name}_high"
