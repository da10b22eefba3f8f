"""Problems are checked before they run, as algorithms are.

1. A problem is looked at once per process: at its start, and at a point near it.
2. What every engine relies on is an error, which names the method and what it returned.
3. What may be meant is a sentence of doubt: a gradient that is not the slope of the loss, since a
   user's loss may have kinks.
"""

import contextlib
import json
import math
import operator
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from distsgd.errors import ConfigError, raised, shown, wrong_kind
from distsgd.problem import Batches, Evaluation, Exactness, Layer, Problem, Vector
from distsgd.samples.dataset import Data
from distsgd.sparse import Floats, Support

BATCH = 32
"""Samples of a batch that is tried, or as many as there are."""
WHOLE = 4096
"""Samples of which one gradient is asked for at once; more are judged by some batches of them."""
VIRTUAL = 2**24
"""More samples than this, without data, are keys of noise: a loss does not go over them."""
TRIED = 16
"""Batches whose mean stands for that of all samples."""
MOST_WORK = 1e7
"""Samples times parameters up to which differences are taken: some milliseconds to a gradient."""
EXAMPLE = "distsgd.problems.softmax(data)"

_OWN = ("dimension", "samples", "loss", "gradient")
"""What a problem must give; the base has defaults for all other members."""
_MEMBERS = [name for name in vars(Problem) if not name.startswith("_")]
_ROUNDING = {"float64": 1e-9, "float32": 1e-3}
"""How far sums in another order are apart, relative to the largest number of a gradient."""
_STEPS = {"float64": 1e-5, "float32": 1e-2}
"""Steps of differences, relative to the scale of a point: roots of the rounding."""


_KEYS = (1, 2)
"""What problems that are random draw from when they are tried."""


class _Known(NamedTuple):
    problem: "weakref.ref[Problem]"
    doubts: tuple[str, ...]


_KNOWN: dict[int, _Known] = {}
"""Problems that have been checked, by identity: their own equality may be of arrays."""


def check_problem(problem: Problem, name: str = "problem") -> tuple[str, ...]:
    """Raise a `ConfigError` unless `problem` is what every engine relies on.

    Its members must be those of `distsgd.problem.Problem`, and no method may raise, or return
    another shape or type, numbers that are not finite at the start, or others when asked again.
    Errors call an object that is no problem `name`. Returned is what is probably wrong and may be
    meant, in sentences.
    """
    known = _KNOWN.get(id(problem))
    if known is not None and known.problem() is problem:
        return known.doubts
    _check_members(problem, name)
    _check_values(problem)
    with np.errstate(over="ignore", invalid="ignore"):
        doubts = _check_methods(problem)
    with contextlib.suppress(TypeError):  # without weak references it is checked every time
        _KNOWN[id(problem)] = _Known(weakref.ref(problem), doubts)
    return doubts


def _error(problem: Problem, what: str) -> ConfigError:
    return ConfigError(f"problem {type(problem).__name__}: {what}")


def _check_members(problem: Problem, name: str) -> None:
    # the base's other members may be made of these, and be missing with them
    own, others = ([one for one in names if not hasattr(problem, one)] for names in (_OWN, _MEMBERS))
    missing = own or others
    is_other = not isinstance(problem, Problem) and {"loss", "gradient"} <= set(missing)
    if isinstance(problem, type) or is_other:
        raise wrong_kind(name, EXAMPLE, problem)
    if missing:
        lacks = f"{type(problem).__name__} lacks {', '.join(missing)}"
        raise ConfigError(f"{name} must be a distsgd.Problem with {', '.join(_OWN)} of its own; {lacks}")


def _asked(problem: Problem, member: str, *arguments: object) -> Any:  # noqa: ANN401 # anything
    """Return a member of `problem`, or what it returns for `arguments`."""
    try:
        found = getattr(problem, member)
        return found(*arguments) if arguments else found
    except ConfigError:
        raise
    except Exception as error:
        raise _error(problem, f"{member} raised {raised(error)}") from error


def _wrong(problem: Problem, member: str, got: object, expected: str) -> ConfigError:
    found = f"{got.dtype}[{', '.join(map(str, got.shape))}]" if isinstance(got, np.ndarray) else shown(got)
    return _error(problem, f"{member} returned {found}, expected {expected}")


def _check_values(problem: Problem) -> None:
    name, data, support = (_asked(problem, key) for key in ("name", "data", "support"))
    if not isinstance(name, str) or not name:
        raise _wrong(problem, "name", name, "text")
    for member in ("dimension", "samples"):
        count = _asked(problem, member)
        if not _is_count(count):
            raise _wrong(problem, member, count, "a whole number >= 1")
    if not isinstance(data, (Data, type(None))):
        raise _wrong(problem, "data", data, "Data, or None where samples are virtual")
    if not isinstance(support, (Support, type(None))):
        raise _wrong(problem, "support", support, "Support, or None for dense gradients")
    dtype, exactness = (_asked(problem, key) for key in ("dtype", "exactness"))
    if not isinstance(dtype, np.dtype) or dtype.name not in _ROUNDING:
        raise _wrong(problem, "dtype", dtype, "numpy.dtype('float64') or numpy.dtype('float32')")
    if support is not None and dtype != np.float64:
        raise _wrong(problem, "dtype", dtype, "float64, as compiled loops over a support take it")
    if exactness not in get_args(Exactness):
        raise _wrong(problem, "exactness", exactness, "'bits' or 'close'")
    if not _is_count(_asked(problem, "at_once")):
        raise _wrong(problem, "at_once", problem.at_once, "a whole number >= 1")
    _check_layers(problem)
    _check_settings(problem)


def _check_layers(problem: Problem) -> None:
    layers = _asked(problem, "layers")
    is_right = isinstance(layers, tuple) and all(isinstance(layer, Layer) for layer in layers)
    ends = [0, *(layer.place.stop for layer in layers)] if is_right else []
    if not is_right or [layer.first for layer in layers] != ends[:-1] or ends[-1] != problem.dimension:
        raise _wrong(problem, "layers", layers, f"Layers one behind the other, {problem.dimension} numbers in all")
    names = [layer.name for layer in layers]
    if len(set(names)) < len(names):
        raise _wrong(problem, "layers", names, "a name of its own for each layer")


def _is_count(value: object) -> bool:
    with contextlib.suppress(TypeError):
        return not isinstance(value, bool) and operator.index(value) >= 1  # type: ignore[arg-type] # refuses what is no integer
    return False


def _check_settings(problem: Problem) -> None:
    try:
        json.dumps(dict(_asked(problem, "settings")), allow_nan=False)
    except (TypeError, ValueError) as error:
        what = f"settings must be ready for JSON: {error}; use text, int(...), float(...) and .tolist()"
        raise _error(problem, what) from None


def _check_methods(problem: Problem) -> tuple[str, ...]:
    start = _check_start(problem)
    noise = np.random.default_rng(0).standard_normal(start.size)
    near = (start + 1e-3 * _scale(start) * noise).astype(problem.dtype)
    _check_gradients(problem, np.stack([start, near]), _batches(problem.samples, 2, BATCH))
    _check_mean(problem, near)
    _check_losses(problem, start)
    size = _asked(problem, "message_bytes", 1, BATCH)
    if not _is_number(size) or not 0 < size < math.inf:
        raise _wrong(problem, "message_bytes", size, "a number of bytes > 0")
    # kinks lie at round numbers such as 0, where many problems start
    doubt = _doubt(problem, near)
    return (doubt,) if doubt else ()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _scale(x: Floats) -> float:
    return max(1.0, float(np.sqrt(np.mean(x * x))))


def _batches(samples: int, number: int, size: int) -> Batches:
    raw = np.random.PCG64(0).random_raw(number * min(size, samples))
    return (raw % np.uint64(samples)).astype(np.uint32).reshape(number, -1)


def _check_start(problem: Problem) -> Floats:
    first, again = _asked(problem, "start", 0), _asked(problem, "start", 0)
    _check_array(problem, "start", first, (problem.dimension,))
    if not _same(first, again):
        raise _wrong(problem, "start", again, "the same numbers for the same seed")
    if np.shares_memory(first, again):
        raise _error(problem, "start returned the same array twice, which runs would share; return a copy")
    start: Floats = first
    return start


def _check_array(problem: Problem, method: str, got: object, shape: tuple[int, ...]) -> None:
    expected = f"{problem.dtype}[{', '.join(map(str, shape))}]"
    if not isinstance(got, np.ndarray) or got.dtype != problem.dtype or got.shape != shape:
        raise _wrong(problem, method, got, expected)
    if not np.isfinite(got[0] if got.ndim > 1 else got).all():
        place = tuple(np.argwhere(~np.isfinite(got))[0].tolist())
        found = f"{method} returned {got[place]} at [{', '.join(map(str, place))}]"
        raise _error(problem, f"{found}, at the start of a run; it must be finite there")


def _same(one: object, other: object) -> bool:
    """Return whether two arrays have the same bits."""
    both = isinstance(one, np.ndarray) and isinstance(other, np.ndarray)
    return both and one.shape == other.shape and one.tobytes() == other.tobytes()  # type: ignore[attr-defined] # arrays, as the line above says


def _check_gradients(problem: Problem, xs: Floats, batches: Batches) -> None:
    given = xs.copy(), batches.copy()
    keys = _KEYS if problem.is_random else ()
    many = (xs, batches, np.array(keys, np.uint64)) if keys else (xs, batches)
    singles = [_asked(problem, "gradient", *one) for one in zip(xs, batches, *((keys,) if keys else ()), strict=True)]
    _check_array(problem, "gradient", singles[0], xs.shape[1:])
    first, again = (_asked(problem, "gradients", *many) for _ in range(2))
    _check_array(problem, "gradients", first, xs.shape)
    placed = np.full_like(first, np.nan)
    for n, (x, batch) in enumerate(zip(xs, batches, strict=True)):
        _asked(problem, "gradient_into", x, batch, placed[n], keys[n] if keys else 0)
    wrong = {
        "changed the points or the batches that it was given; work on a copy": not (
            _same(xs, given[0]) and _same(batches, given[1])
        ),
        "returned the memory of its points or of an earlier call; return a new array": any(
            np.shares_memory(first, one) for one in (xs, again)
        ),
        "returned other numbers when it was asked again; use no random numbers but the batch, and the key where"
        " is_random": not _alike(problem, first, again),
    }
    for what, applies in wrong.items():
        if applies:
            raise _error(problem, f"gradients {what}")
    for name, other in (("gradient", np.stack(singles)), ("gradient_into", placed)):
        if not _alike(problem, first, other):
            difference = float(np.nanmax(np.abs(first - other)))
            what = f"{name} and gradients of the same points and batches differ, by up to {difference:.3g}"
            raise _error(problem, f"{what}; they must have the same bits, however many are asked for")


def _alike(problem: Problem, one: Vector, other: object) -> bool:
    """Return whether two arrays are equal, as exactly as the problem says that it is."""
    if problem.exactness == "bits" or not isinstance(other, np.ndarray) or one.shape != other.shape:
        return _same(one, other)
    return bool(np.allclose(one, other, rtol=0.0, atol=_ROUNDING[problem.dtype.name] * float(np.abs(one).max())))


def _check_mean(problem: Problem, x: Vector) -> None:
    """Refuse a sum over the batch: repeated twice, a batch has the same mean."""
    if problem.is_random or (problem.data is None and problem.samples > VIRTUAL):
        return  # each sample draws noise of its own
    batch = _batches(problem.samples, 1, 4)[0]
    once, twice = (_asked(problem, "gradient", x, one) for one in (batch, np.tile(batch, 2)))
    if np.allclose(twice, 2.0 * once, rtol=1e-3) and np.abs(once).max() > 0.0:
        what = "gradient doubles when its batch is repeated, so that it is a sum"
        raise _error(problem, f"{what}; it must be the mean over the batch")


def _check_losses(problem: Problem, start: Floats) -> None:
    loss, evaluation = _asked(problem, "loss", start), _asked(problem, "evaluate", start)
    if not _is_number(loss) or not math.isfinite(loss):
        raise _wrong(problem, "loss", loss, "a finite number at the start")
    if not isinstance(evaluation, Evaluation) or not all(map(_is_number, evaluation)):
        raise _wrong(problem, "evaluate", evaluation, "Evaluation(loss, test_loss, accuracy)")
    # sums in another order, perhaps of float32, may differ by this much
    if not math.isclose(evaluation.loss, loss, rel_tol=1e-5, abs_tol=1e-12):
        raise _wrong(problem, "evaluate", evaluation, f"the loss {loss!r} that loss returned")


def _doubt(problem: Problem, x: Floats) -> str:
    """Return a sentence if the gradient is not the slope of the loss at `x`, else nothing.

    Both are projected on random directions. What two step sizes of the difference disagree about is
    left to truncation and rounding, and six standard errors to the samples of the batches.
    """
    n_samples = TRIED if problem.data is None and problem.samples > VIRTUAL else problem.samples
    if n_samples * x.size > MOST_WORK or problem.is_random:  # a loss without dropout has another slope
        return ""
    directions = np.random.default_rng(1).choice([-1.0, 1.0], size=(3, x.size))
    if problem.support is not None:  # a feature that is in no sample is not regularised
        directions *= problem.support.rows.counts > 0
    slopes, errors = _projected(problem, x, directions)
    for direction, slope, error in zip(directions, slopes, errors, strict=True):
        rise, doubtful = _difference(problem, x, direction)
        allowed = 1e-4 * max(abs(rise), abs(slope)) + 10.0 * doubtful + 6.0 * error
        if abs(rise - slope) > allowed:  # never where one of them is not finite
            return (
                f"problem {type(problem).__name__}: gradient is not the slope of loss near the"
                f" start: in a random direction loss rises by {rise:.4g} per unit, and gradient"
                f" says {slope:.4g}; is it a sum instead of the mean, or without the regulariser?"
                " (a loss with kinks may be right)"
            )
    return ""


def _difference(problem: Problem, x: Floats, direction: Floats) -> tuple[float, float]:
    """Return the central difference of the loss along `direction`, and how sure it is."""
    rises = []
    first = _STEPS[problem.dtype.name] * _scale(x)
    for step in (first, 3.0 * first):
        points = ((x + way * direction).astype(problem.dtype) for way in (step, -step))
        ahead, behind = (_asked(problem, "loss", point) for point in points)
        rises.append((float(ahead) - float(behind)) / (2.0 * step))
    rounding = 50.0 * float(np.finfo(problem.dtype).eps) * max(1.0, abs(float(ahead))) / step
    return rises[0], abs(rises[0] - rises[1]) + rounding


def _projected(problem: Problem, x: Floats, directions: Floats) -> tuple[Floats, Floats]:
    """Return the gradient over all samples along each of `directions`, with standard errors."""
    n = problem.samples
    if n <= WHOLE:
        parts = [part for part in np.array_split(np.arange(n, dtype=np.uint32), 2) if part.size]
        slopes = _along(problem, x, [np.arange(n, dtype=np.uint32), *parts], directions)
        mean = np.average(slopes[1:], axis=0, weights=[part.size for part in parts])
        if np.allclose(mean, slopes[0], rtol=1e-6, atol=_ROUNDING[problem.dtype.name] * float(np.abs(slopes).max())):
            return slopes[0], np.zeros(len(directions))
    # noise of its own, or too many samples: the mean over some batches
    slopes = _along(problem, x, list(_batches(n, TRIED, 8 * BATCH)), directions)
    errors: Floats = slopes.std(axis=0, ddof=1) / math.sqrt(len(slopes))
    return slopes.mean(axis=0), errors


def _along(problem: Problem, x: Floats, batches: Sequence[NDArray[np.uint32]], directions: Floats) -> Floats:
    gradients: Iterator[Floats] = (_asked(problem, "gradient", x, one) for one in batches)
    return np.stack([directions @ gradient for gradient in gradients])
