import ast
import importlib
import inspect
import pkgutil
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from numpydoc.validate import validate

import distsgd

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "distsgd"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").glob("test_*.py"))

LAYERS: dict[str, list[set[str]]] = {
    "": [
        {"display", "errors", "lives", "status", "version"},
        {"files", "rules", "sparse", "statistics", "trace"},
        {"algorithm", "run", "samples"},
        {"algorithms", "kernels", "problem"},
        {"data", "order"},
        {"fold", "problems"},
        {"live"},
        {"experiment", "sklearn"},
        {"report"},
        {"__init__", "commands"},
        {"__main__"},
    ],
    "kernels": [{"__init__"}, {"atomic", "draws"}, {"gradients", "order"}, {"fold"}, {"lock_free"}],
    "live": [
        {"machine", "ray_options"},
        {"options"},
        {"messages"},
        {"launch", "lock_free", "peers"},
        {"server"},
        {"local"},
        {"ray"},
    ],
    "report": [
        {"numbers", "timeline"},
        {"formatting", "warnings"},
        {"case_conclusions", "pictures", "terminal"},
        {"conclusions", "figure_files", "progress"},
        {"page"},
        {"notebook"},
        {"comparison"},
        {"compare"},
    ],
}
"""The rooms of the package, and those inside of a room, from the lowest layer to the highest.

A room is a folder, or a module that stands beside folders. It imports rooms of lower layers only.
"""

HAVE_CONTENT = {"", "kernels"}
"""Rooms whose ``__init__`` is more than a sentence."""

MOST_FILES = 15
"""Files of a room, the `__init__` left out."""

OTHERS = {
    "numba": {"kernels"},
    "typer": {"commands"},
    "altair": {"report"},
    "vl_convert": {"report"},
    "zmq": {"live"},
    "ray": {"live"},
    "jax": {"problems"},
    "keras": {"problems"},
    "tensorflow": {"problems"},
    "torch": {"problems"},
    "time": {"live"},
    "datetime": {"live"},
}
"""Packages that only these rooms import. A clock is one of them: a simulation's time is virtual."""

# Rules that this project does not follow, each with its reason.
NUMPYDOC_IGNORED = {
    "EX01",  # examples stand in README, where they are run
    "SA01",  # modules are short: what belongs together stands together
    "ES01",  # one line is enough where the name says the rest
    "PR01",  # a function of one or two obvious arguments names them in its sentence
    "RT01",  # a "Return ..." sentence says what is returned
    "YD01",  # the same for what is yielded
}


def room(path: Path, within: str = "") -> str | None:
    """Return the room of a source file in the package or in one of its rooms, None if outside."""
    if not path.is_relative_to(PACKAGE / within):
        return None
    own = path.relative_to(PACKAGE / within).with_suffix("").parts[0]
    return None if own == "__init__" and within not in HAVE_CONTENT else own


@cache
def names_of(node: ast.Import | ast.ImportFrom) -> set[str]:
    """Return the modules, or names in modules, that a statement imports."""
    before = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
    return {f"{before}{alias.name}" for alias in node.names}


@cache
def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """Return what a source file imports, anywhere in it, for type checkers too."""
    every = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node for node in every if isinstance(node, ast.Import | ast.ImportFrom)]


def imported(path: Path) -> set[str]:
    """Return the modules, or names in modules, that a source file imports."""
    return {name for node in imports(path) for name in names_of(node)}


MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in SOURCES}
MODULES |= {name.removesuffix(".__init__"): path for name, path in MODULES.items() if name.endswith(".__init__")}


def sources_of(names: set[str]) -> set[Path]:
    """Return the source files of the package that have these names."""
    own = [name for name in names if name.startswith("distsgd")]
    return {MODULES.get(name) or MODULES[name.rpartition(".")[0]] for name in own}


@cache
def modules_of(path: Path) -> set[Path]:
    """Return the source files of the package that a source file imports."""
    return sources_of(imported(path)) - {path}


def line_of(path: Path, other: Path) -> int:
    """Return the line in which a source file first imports another one."""
    return min(node.lineno for node in imports(path) if other in sources_of(names_of(node)))


def layer(name: str, within: str) -> int:
    """Return the layer of a room."""
    for height, rooms in enumerate(LAYERS[within]):
        if name in rooms:
            return height
    return pytest.fail(f"{name} is no room of distsgd/{within}: put it into one, or into LAYERS")


@pytest.mark.quick
@pytest.mark.parametrize(
    ("path", "within", "own"),
    [
        pytest.param(path, within, own, id=str(path.relative_to(PACKAGE / within)))
        for within in LAYERS
        for path in SOURCES
        if (own := room(path, within)) is not None
    ],
)
def test_a_room_imports_lower_layers_only(path: Path, within: str, own: str) -> None:
    """A module imports its own room and rooms of lower layers, in the package and in its rooms."""
    for other in modules_of(path):
        name = room(other, within)
        if name not in {None, own}:
            where = f"{path.relative_to(ROOT)}:{line_of(path, other)} imports {other.relative_to(ROOT)}"
            what = "which is no lower layer: move the code to its room, or hand in what it needs"
            assert layer(str(name), within) < layer(own, within), f"{where}, {what}"
    assert layer(own, within) >= 0


@pytest.mark.quick
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_imports_itself_through_others(path: Path) -> None:
    """Imports make no circle."""
    reached, left = set(), modules_of(path)
    while left:
        reached |= left
        left = {other for one in left for other in modules_of(one)} - reached
    assert path not in reached


@pytest.mark.quick
def test_every_room_is_there() -> None:
    """The layers name the rooms that exist, each once, and no room is crowded."""
    for within, layers in LAYERS.items():
        named = [name for rooms in layers for name in rooms]
        assert len(set(named)) == len(named)
        there = {room(path, within) for path in SOURCES} - {None}
        assert set(named) == there, f"give {set(named) ^ there} a place in LAYERS[{within!r}], or take it out"
    for folder in {path.parent for path in SOURCES}:
        own = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(own) <= MOST_FILES, f"{folder.relative_to(ROOT)} has {len(own)} files: split it"


@pytest.mark.quick
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_package_is_used_in_its_room(path: Path) -> None:
    """Only kernels import numba, only reports draw, only live runs have sockets and clocks."""
    used = {name.split(".")[0] for name in imported(path)}
    for package, rooms in OTHERS.items():
        assert package not in used or room(path) in rooms


@pytest.mark.quick
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_stays_readable(path: Path) -> None:
    """A source file has fewer than 400 lines."""
    assert len(path.read_text(encoding="utf-8").splitlines()) < 400


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_function_stays_readable(path: Path) -> None:
    """A function has at most 40 lines, those of its docstring and its arguments left out."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = 1 + (node.end_lineno or 0) - body[0].lineno if body else 0
            assert length <= 40, f"{path.name}: {node.name} has {length} lines"


def modules() -> list[ModuleType]:
    """Return every module of the package, but those of frameworks that are not installed."""
    missing = {package for package in OTHERS if find_spec(package) is None}
    names = [
        one.name
        for one in pkgutil.walk_packages(distsgd.__path__, "distsgd.")
        if not one.name.endswith("__main__")
        and not missing & {name.split(".")[0] for name in imported(MODULES[one.name])}
    ]
    return [distsgd, *map(importlib.import_module, names)]


def documented() -> Iterator[str]:
    """Yield the full names of the public functions and classes, where they are defined."""
    for module in modules():
        for name, member in vars(module).items():
            is_own = getattr(member, "__module__", None) == module.__name__
            is_named = inspect.isroutine(inspect.unwrap(member)) or inspect.isclass(member)
            if is_own and is_named and not name.startswith("_"):
                yield f"{module.__name__}.{name}"


def test_public_docstrings_are_valid() -> None:
    """Every public docstring follows numpydoc, in the rules that this project keeps."""
    wrong = {
        name: problems
        for name in documented()
        if (problems := [error for error in validate(name)["errors"] if error[0] not in NUMPYDOC_IGNORED])
    }
    assert wrong == {}


def test_every_public_name_is_there() -> None:
    """Each name that the package promises can be imported, and `dir` lists it."""
    for name in distsgd.__all__:
        assert getattr(distsgd, name) is not None
        assert name in dir(distsgd)
    with pytest.raises(AttributeError, match="no_such_name"):
        distsgd.no_such_name  # noqa: B018 # the access is the test


def test_promised_names_have_types() -> None:
    """What a type checker sees in the package is what a program finds there."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname for node in block.body for alias in getattr(node, "names", [])}
    assert seen == set(distsgd.__all__)


def test_the_version_is_the_project_s() -> None:
    """The package and its metadata name the same version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert distsgd.__version__ == project["version"]


@pytest.mark.quick
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_every_test_states_its_law(path: Path) -> None:
    """Each test has a docstring of one sentence."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            law = ast.get_docstring(node) or ""
            assert law.endswith((".", ".)", '."')), f"{node.name}: {law!r}"
            assert ". " not in law.replace("e.g. ", "").replace("et al. ", ""), node.name
