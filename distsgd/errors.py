"""Errors by blame: the caller's configuration, a peer, the mathematics.

A message gives the argument, the bound, the value, and then what to do. A run that diverges is not
an error: it is a result whose status says so.
"""

import difflib
import math
from collections.abc import Iterable


class DistsgdError(Exception):
    """The base of every error that distsgd raises on purpose."""


class ConfigError(DistsgdError, ValueError):
    """The caller's: an argument, a file or a combination of settings that cannot be used."""


class WireError(DistsgdError):
    """A peer's: a message that is malformed, or that its sender may not send now."""


class WorkerLost(DistsgdError):  # noqa: N818 # it names what happened
    """A peer's: workers ended, and the run cannot go on without them."""


class TraceError(DistsgdError):
    """A peer's: an order that no server can have served, so it cannot be folded or replayed."""


def check_number(
    name: str, value: float, *, above: float | None = None, at_least: float | None = None,
    below: float | None = None, unit: str = "", finite: bool = True,
) -> float:  # fmt: skip
    """Return `value` as a float, or raise a `ConfigError` that names the bound it breaks."""
    bounds = [
        f"{sign} {bound:g}{unit}"
        for sign, bound in ((">", above), (">=", at_least), ("<", below))
        if bound is not None
    ]
    number = _number(name, value)
    inside = (
        not math.isnan(number)
        and (above is None or number > above)
        and (at_least is None or number >= at_least)
        and (below is None or number < below)
    )
    if inside and (math.isfinite(number) or not finite):
        return number
    bounds += ["finite"] * finite
    msg = f"{name} must be {' and '.join(bounds) or 'a number'}, not {value!r}"
    raise ConfigError(msg)


def _number(name: str, value: object) -> float:
    if isinstance(value, (str, bytes, bool)):
        msg = f"{name} must be a number, not {value!r}"
        raise ConfigError(msg)
    try:
        return float(value)  # type: ignore[arg-type] # whatever float() takes is a number here
    except (TypeError, ValueError):
        msg = f"{name} must be a number, not {value!r}"
        raise ConfigError(msg) from None


def check_count(name: str, value: int, *, at_least: int = 1) -> int:
    """Return `value` as an int, or raise a `ConfigError` that names the bound it breaks."""
    number = _number(name, value)
    if not number.is_integer() or number < at_least:
        msg = f"{name} must be a whole number >= {at_least}, not {value!r}"
        raise ConfigError(msg)
    return int(value)


def check_seed(seed: int) -> int:
    """Return `seed` as an int of 63 bits, or raise a `ConfigError`."""
    if check_count("seed", seed, at_least=0) < 2**63:
        return int(seed)
    msg = f"seed must be < 2**63, not {seed}"
    raise ConfigError(msg)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """Return the error for a name that does not exist, with the nearest one that does."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    return ConfigError(f"unknown {kind} {name!r}; {hint}")
