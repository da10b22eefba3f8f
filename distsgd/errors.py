"""Errors by blame: the caller's configuration, a peer, the mathematics.

A message gives the argument, the bound, the value, and then what to do. A run that diverges is not
an error: it is a result whose status says so.
"""

import contextlib
import difflib
import inspect
import math
import os
import pickle
import sysconfig
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path

_MOST_TEXT = 200
_MOST_SHOWN = 60
"""Characters in an error: of text that was given, and of any other object."""
_LITTLE_BYTES = 2.0**27
"""What there is always room for."""
_MOST_SEEDS = 1_000_000


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


class DistsgdWarning(UserWarning):
    """What can be done and is hardly ever meant: settings, or a problem that looks wrong."""


def check_number(
    name: str,
    value: float,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    unit: str = "",
    finite: bool = True,
) -> float:
    """Return `value` as a float, or raise a `ConfigError` that names the bound it breaks."""
    number = _number(name, value)
    is_inside = (
        not math.isnan(number)
        and (above is None or number > above)
        and (at_least is None or number >= at_least)
        and (below is None or number < below)
    )
    if is_inside and (math.isfinite(number) or not finite):
        return number
    known = ((">", above), (">=", at_least), ("<", below))
    bounds = [f"{sign} {bound:g}{unit}" for sign, bound in known if bound is not None] + ["finite"] * finite
    raise ConfigError(f"{name} must be {' and '.join(bounds) or 'a number'}, not {shown(value)}")


def _number(name: str, value: object) -> float:
    if isinstance(value, (str, bytes, bool)):
        raise ConfigError(f"{name} must be a number, not {shown(value)}")
    try:
        return float(value)  # type: ignore[arg-type] # whatever float() takes is a number here
    except (TypeError, ValueError):
        raise ConfigError(f"{name} must be a number, not {shown(value)}") from None
    except OverflowError:
        raise ConfigError(f"{name} must be below 1.8e308 on either side of 0") from None


def shown(value: object) -> str:
    """Return `value` as an error shows it: long text is cut, long objects are named by type."""
    text = repr(value)
    if isinstance(value, str):
        return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}..."
    return text if len(text) <= _MOST_SHOWN else f"an object of the type {type(value).__name__}"


def check_count(name: str, value: float, *, at_least: int = 1) -> int:
    """Return `value` as an int, or raise a `ConfigError` that names the bound it breaks."""
    number = _number(name, value)
    if not number.is_integer() or number < at_least:
        raise ConfigError(f"{name} must be a whole number >= {at_least}, not {shown(value)}")
    if int(value) >= 2**63:  # as a float the largest number below is this one
        raise ConfigError(f"{name} must be < 2**63, not {number:g}")
    return int(value)


def check_seed(seed: int) -> int:
    """Return `seed` as an int of 63 bits, or raise a `ConfigError`."""
    return check_count("seed", seed, at_least=0)


def check_batch(batch: int) -> int:
    """Return `batch` as an int, or raise a `ConfigError` if its samples find no room in memory."""
    n_samples = check_count("batch", batch)
    check_room("batch", n_samples, 16)
    return n_samples


def check_room(name: str, value: float, each_bytes: float) -> None:
    """Raise a `ConfigError` if `value` things of so many bytes need more memory than is free."""
    if value * each_bytes < _LITTLE_BYTES:
        return
    import psutil  # noqa: PLC0415 # few need it

    free_bytes = float(psutil.virtual_memory().available)
    if value * each_bytes > free_bytes:
        raise ConfigError(
            f"{name} must be at most {free_bytes / each_bytes:.2g} to find room in memory, where"
            f" {free_bytes / 1e9:.1f} GB are free, not {value:g}"
        )


def check_seeds(name: str, seeds: int | Iterable[int], first: int = 0) -> Sequence[int]:
    """Return the seeds that were given, or as many as that from `first` on; each once."""
    if not isinstance(seeds, Iterable):
        if check_count(name, seeds) > _MOST_SEEDS:
            raise ConfigError(f"{name} must be at most {_MOST_SEEDS:,}, not {seeds}")
        return range(first, first + int(seeds))
    own = tuple(check_seed(seed) for seed in seeds)
    seed, times = max(Counter(own).items(), key=itemgetter(1), default=(0, 0))
    if times < 2:
        return own
    raise ConfigError(f"{name} must differ, but {seed} is given twice: the same runs would count twice")


def check_name(kind: str, name: object, known: Collection[str]) -> None:
    """Raise a `ConfigError` that gives the nearest name, unless `name` is one of the known ones."""
    if name not in known:
        raise unknown_name(kind, name, known)


def unknown_name(kind: str, name: object, known: Iterable[str]) -> ConfigError:
    """Return the error for a name that does not exist, with the nearest one that does."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name)[:_MOST_SHOWN], names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"
    return ConfigError(f"unknown {kind} {shown(name)}; {hint}")


def wrong_kind(name: str, example: str, given: object) -> ConfigError:
    """Return the error for a value of a wrong kind; a function was perhaps not called."""
    if inspect.isfunction(given) or inspect.isclass(given):
        return ConfigError(f"{name} must be a value such as {example}, but {_not_called(given)}")
    return ConfigError(f"{name} must be a value such as {example}, not {shown(given)}")


def _not_called(make: Callable[..., object]) -> str:
    needed = ""
    with contextlib.suppress(ValueError):  # some built-in classes have no signature
        given = inspect.signature(make).parameters.values()
        needed = ", ".join(one.name for one in given if one.default is one.empty)
    return f"{make.__name__} was not called; write {make.__name__}({needed})"


def raised(error: BaseException) -> str:
    """Return the kind and the text of `error`, and the line of the user's own code it came from.

    That is the innermost line that is neither ours, nor Python's or an installed package's.
    """
    own = [one for one in traceback.extract_tb(error.__traceback__) if _is_own(one)]
    text = f"{type(error).__name__}: {error}".removesuffix(": ")
    if not own:
        return text
    return f"{text} ({own[-1].filename}:{own[-1].lineno}, in {own[-1].name})"


def own_traceback(error: BaseException) -> str:
    """Return the traceback of `error` through the user's own code, nothing where it has no line."""
    told = traceback.TracebackException.from_exception(error)
    told.stack = traceback.StackSummary.from_list([one for one in told.stack if _is_own(one)])
    return "".join(told.format(chain=False)) if told.stack or isinstance(error, SyntaxError) else ""


def _is_own(frame: traceback.FrameSummary) -> bool:
    paths = [sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    others = (*(f"{path}{os.sep}" for path in (Path(__file__).parent, *paths)), "<frozen")
    return not frame.filename.startswith(others)


@contextlib.contextmanager
def sendable() -> Iterator[None]:
    """Let a block that pickles for another process raise a `ConfigError` where it cannot."""
    try:
        yield
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise ConfigError(
            f"an algorithm or a problem cannot be sent to another process: {error}; let own code make"
            " it in a function rather than keep it in an object or a module"
        ) from None


def warn(sentences: Iterable[str]) -> None:
    """Show each of `sentences` as a `DistsgdWarning`."""
    for sentence in sentences:
        # the frames are this one, the function of ours that was called, and its caller
        warnings.warn(sentence, DistsgdWarning, stacklevel=3)
