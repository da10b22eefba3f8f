"""Own code in experiment files: a function is named ``MODULE:FUNCTION``, and found beside the file.

1. A module is looked for in the folder of the experiment file, and then among the installed ones.
2. Python knows the modules of a folder only while its code is imported, or called from here. So
   modules of one name in two folders never meet, and pickle, which cannot name what they hold,
   carries it by value to other processes and nodes.
3. A module runs once as long as no source beside it has changed, and then again.
4. A function is called with the generators that programs share at one seed. A model whose weights
   it draws is then the same in every process, so that its runs can be found and replayed.
"""

import contextlib
import functools
import importlib
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from distsgd.errors import ConfigError, raised, shown, unknown_name


class Kind(NamedTuple):
    """What a function must return: a class, and an example."""

    result: type
    example: str


class _Imported(NamedTuple):
    """The modules of a folder by name, and the sources that they were made from."""

    modules: dict[str, ModuleType]
    sources: dict[Path, bytes]


_folders: dict[Path, _Imported] = {}


def is_own(name: str) -> bool:
    """Return whether a name in an experiment file is that of a function of the user's own."""
    return ":" in name


def maker(reference: str, folder: Path, kind: Kind) -> Callable[..., Any]:
    """Return the function ``MODULE:FUNCTION``, which now has to return what is of a `kind`.

    What keeps it from being found, or from returning that, is a `ConfigError`; its cause is the
    error of the user's own code, if there was one.
    """
    make = function(reference, folder)

    @functools.wraps(make)
    def made(**parameters: Any) -> Any:  # noqa: ANN401 # values of an experiment file, and what is made of them
        with _told(reference), _importable(folder):
            found = _drawn_alike(make, parameters)
        if not isinstance(found, kind.result):
            name = kind.result.__name__
            raise ConfigError(f"{reference} must return a {name} such as {kind.example}, not {shown(found)}")
        return found

    return made


def _drawn_alike(make: Callable[..., Any], parameters: Mapping[str, Any]) -> Any:  # noqa: ANN401 # what `make` makes
    """Return ``make(**parameters)`` by rule 4, and leave the generators as they were."""
    torch, ours = sys.modules.get("torch"), (random.getstate(), np.random.get_state())  # noqa: NPY002 # the shared one
    theirs = torch.get_rng_state() if torch else None
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 # as above
    if torch:
        torch.manual_seed(0)
    try:
        found = make(**parameters)
    finally:
        random.setstate(ours[0])
        np.random.set_state(ours[1])  # noqa: NPY002 # as above
        if torch:
            torch.set_rng_state(theirs)
    is_new = torch is None and "torch" in sys.modules  # it has been imported with a seed of its own
    return _drawn_alike(make, parameters) if is_new else found


def function(reference: str, folder: Path) -> Callable[..., Any]:
    """Return the function ``MODULE:FUNCTION``, or raise a `ConfigError` as `maker` does."""
    if not re.fullmatch(r"\w+(\.\w+)*:\w+", reference):
        raise ConfigError(f"a function must be given as MODULE:FUNCTION, such as my_module:make, not {reference!r}")
    name, _, attribute = reference.partition(":")
    if name in sys.stdlib_module_names and (folder / f"{name}.py").exists():
        raise ConfigError(f"{reference}: {name} is a module of Python's own; rename {folder / name}.py")
    with _told(reference), _importable(folder):
        module = _imported(name)
    if module is None:
        raise unknown_name(f"module in {folder.resolve()}:", name, _names(folder))
    if not hasattr(module, attribute):
        known = [one for one, value in vars(module).items() if getattr(value, "__module__", None) == name]
        raise unknown_name(f"function of {name}:", attribute, known)
    found: Callable[..., Any] = getattr(module, attribute)
    if not callable(found):
        raise ConfigError(f"{reference} must be a function, not {shown(found)}; write def {attribute}():")
    return found


def _imported(name: str) -> ModuleType | None:
    """Return a module; None if it is not there, rather than one that it imports."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if f"{name}.".startswith(f"{error.name}."):
            return None
        raise


def _names(folder: Path) -> list[str]:
    files = [*folder.glob("*.py"), *folder.glob("*/*.py")]
    return [".".join(path.relative_to(folder).with_suffix("").parts) for path in files]


@contextlib.contextmanager
def _told(reference: str) -> Iterator[None]:
    """Let what the user's own code raises be the cause of a `ConfigError`."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{reference}: {error}") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{reference} raised {raised(error)}; correct it") from error


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let modules of `folder` be found before all others, and be unknown afterwards: rule 2."""
    place, writes_nothing = folder.resolve(), sys.dont_write_bytecode
    packages = {one.parent.name for one in place.glob("*/__init__.py")}
    hidden = _taken({one.stem for one in place.glob("*.py")} | packages)
    known = _known(place)
    sys.modules.update(known.modules)
    sys.path.insert(0, str(place))
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()  # a file may be younger than the clock of its folder tells
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes_nothing
        sys.path.remove(str(place))
        known.modules.update(_taken({one.stem for one in place.glob("*")}, place))
        files = {Path(file) for one in known.modules.values() if (file := getattr(one, "__file__", None))}
        known.sources.update({file: file.read_bytes() for file in files - known.sources.keys()})
        sys.modules.update(hidden)


def _known(place: Path) -> _Imported:
    """Return what has been imported from a folder; nothing if a source has changed: rule 3."""
    found = _folders.setdefault(place, _Imported({}, {}))
    if any(not path.is_file() or path.read_bytes() != content for path, content in found.sources.items()):
        found = _folders[place] = _Imported({}, {})
    return found


def _taken(names: set[str], place: Path | None = None) -> dict[str, ModuleType]:
    """Take modules with these first names out of `sys.modules`, those that lie in `place` if given.

    Python's own and ours stay: whatever runs here needs them.
    """
    own = {}
    for name, module in list(sys.modules.items()):
        first = name.partition(".")[0]
        is_own = first in names and first not in {"distsgd", *sys.stdlib_module_names}
        if is_own and (place is None or _origin(module).startswith(str(place / first))):
            own[name] = sys.modules.pop(name)
    return own


def _origin(module: ModuleType) -> str:
    """Return the file of a module, or the folder of a package without one."""
    return str(getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), ""))
