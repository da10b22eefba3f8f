"""Whether a replay is the run that was recorded; and if it is not, where they part."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.errors import ConfigError, TraceError
from distsgd.run import Run, versions


def check_replayable(run: Run) -> None:
    """Raise a `ConfigError` if `run` has no order, or was made by another version of distsgd."""
    if run.settings.get("fleet", {}).get("kind") == "shared_memory":
        raise ConfigError(
            "a lock-free run cannot be replayed, because no server served its workers in an order; "
            "make it again, or simulate it with reads='interleaved'"
        )
    was, now = run.versions["distsgd"], versions()["distsgd"]
    if was != now:
        raise ConfigError(
            f"the run was made by distsgd {was}, whose rules may differ from those of this one, "
            f"{now}; replay it with distsgd {was}, or make it again"
        )


def check_same(name: str, asked: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """Raise a `ConfigError` with the first key in which settings differ, or why none is known."""
    for one in (asked, recorded):
        if "unidentified" in one:
            raise ConfigError(f"the {name} to replay cannot be told from others: {one['unidentified']}")
    if asked != recorded:
        key, now, was = _first_difference("", asked, recorded)
        key = key.replace("rules.", "rule ")
        if key == "identity":
            raise ConfigError(
                f"the {name} to replay must be the recorded one, but its methods or attributes are "
                "others; what changes while it works belongs into a functools.cached_property"
            )
        raise ConfigError(f"the {name} to replay must be the recorded one, whose {key} was {was!r}, not {now!r}")


def _first_difference(key: str, asked: Any, recorded: Any) -> tuple[str, Any, Any]:  # noqa: ANN401 # JSON
    if isinstance(asked, Mapping) and isinstance(recorded, Mapping):
        for name in (*recorded, *asked):
            pair = asked.get(name, "missing"), recorded.get(name, "missing")
            if pair[0] != pair[1]:
                return _first_difference(f"{key}.{name}" if key else name, *pair)
    return key, asked, recorded


def check_equal(replayed: Run, recorded: Run, *, has_own_points: bool) -> None:
    """Raise a `TraceError` that says in which bit a replay parts from what was recorded.

    Two NaN are equal. Only the parameters at the end are compared unless the replay
    `has_own_points`, those at which the recorded run was evaluated.
    """
    if has_own_points:
        _check_history(replayed, recorded)
    is_same = _is_same(replayed.x, recorded.x)
    if not is_same.all():
        first, last = int(is_same.argmin()), recorded.history["update"][-1]
        until = f"the history is equal up to update {last}, but " if has_own_points else ""
        msg = (
            f"the replay differs from the run: {until}the final "
            f"parameters differ in {np.count_nonzero(~is_same)} of {is_same.size} coordinates, "
            f"first at coordinate {first}: {float(replayed.x[first])!r}, and was "
            f"{float(recorded.x[first])!r}"
        )
        raise TraceError(msg + _changed_packages(recorded))


CLOSE = 0.01
"""Largest difference of a parameter of a replay that is close, relative to the largest one."""


def check_close(replayed: Run, recorded: Run) -> float:
    """Return how far a replay of a problem without equal bits is from what was recorded.

    That is the largest difference of a final parameter, relative to the largest one. A replay that
    is farther than `CLOSE` is a `TraceError`: small differences grow in a long run, but such a run
    shows nothing about the other.
    """
    if _is_same(replayed.x, recorded.x).all():
        return 0.0
    size = float(np.abs(recorded.x).max())
    difference = float(np.abs(replayed.x - recorded.x).max()) / size if size else math.inf
    if not difference <= CLOSE:
        msg = f"the replay differs from the run: a parameter by {difference:.2g} of the largest one, {size:.3g}"
        raise TraceError(f"{msg}; close is at most {CLOSE}{_changed_packages(recorded)}")
    return difference


def _check_history(replayed: Run, recorded: Run) -> None:
    updates = recorded.history["update"].to_list()
    for row, update in enumerate(updates):
        for name in recorded.history.columns:
            now, was = replayed.history[name][row], recorded.history[name][row]
            if not _is_same(np.array([now]), np.array([was])).all():
                since = f"after update {updates[row - 1]}" if row else "at the starting point"
                msg = (
                    f"the replay differs from the run: at update {update} {name} is {now!r}, and "
                    f"was {was!r}; they part {since}"
                )
                raise TraceError(msg + _changed_packages(recorded))


def _is_same(now: NDArray[Any], was: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which numbers have equal bits, or are both NaN."""
    are_nan = (now != now) & (was != was)  # noqa: PLR0124 # only NaN differs from itself
    is_same: NDArray[np.bool_] = (now.view(f"i{now.itemsize}") == was.view(f"i{was.itemsize}")) | are_nan
    return is_same


def _changed_packages(recorded: Run) -> str:
    now = versions()
    changed = [
        f"{name} {was}, now {now.get(name, 'missing')}"
        for name, was in recorded.versions.items()
        if now.get(name) != was
    ]
    return f" (it was made with {'; '.join(changed)})" if changed else ""
