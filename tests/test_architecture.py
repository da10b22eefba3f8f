import ast
import importlib
import inspect
import pkgutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from numpydoc.validate import validate

import distsgd

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "distsgd"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").glob("test_*.py"))

MAY_IMPORT = {
    "errors": set(),
    "algorithm": {"errors"},
    "algorithms": {"algorithm", "errors"},
    "data": {"errors", "kernels"},
    "problem": {"data", "errors"},
    "problems": {"problem", "data", "kernels", "errors"},
    "checks": {"problem", "data", "errors"},
    "laws": {"kernels", "errors"},
    "fleet": {"laws", "errors"},
    "plausible": {"algorithm", "checks", "data", "fleet", "problem", "errors"},
    "rows": set(),
    "trace": {"rows", "errors"},
    "schedule": {"algorithm", "fleet", "laws", "trace", "kernels", "errors"},
    "plan": {"algorithm", "trace", "kernels", "errors"},
    "drivers": {"algorithm", "problem", "plan", "trace", "data", "kernels", "errors"},
    "interleave": {"algorithm", "problem", "trace", "drivers", "kernels", "errors"},
    "fold": {
        "algorithm", "problem", "trace", "plan", "drivers", "interleave", "data", "kernels",
        "errors",
    },
    "kernels": {"algorithm", "data", "problem", "trace", "errors"},
    "run": {"trace", "errors"},
    "agreement": {"run", "errors"},
    "history": {"algorithm", "problem", "trace", "fold", "run", "errors"},
    "simulation": {
        "algorithm", "data", "problem", "fleet", "laws", "schedule", "trace", "fold", "run",
        "history", "agreement", "plausible", "errors",
    },
    "report": {"run", "trace", "errors"},
    "live": {
        "algorithm", "data", "problem", "laws", "fleet", "trace", "kernels", "simulation",
        "history", "plausible", "run", "errors",
    },
}  # fmt: skip
"""Which room may lean on which. A room that is not named here stands on top of all of them."""
ON_TOP = {
    "work", "search", "named", "sites", "setup", "tables", "jobs", "tuning", "comparison",
    "experiment",
    "sources", "submitting", "watching", "commands", "cli", "__init__", "__main__",
}  # fmt: skip

OTHERS = {
    "numba": {"kernels"}, "typer": {"cli"}, "altair": {"report"}, "vl_convert": {"report"},
    "zmq": {"live"}, "ray": {"live"}, "time": {"live"}, "datetime": {"live"},
}  # fmt: skip
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


def room(path: Path) -> str:
    """Return the room of a source file: its module or its folder."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imported(path: Path) -> Iterator[str]:
    """Yield the modules that a source file imports at run time, anywhere in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_of(path: Path) -> set[str]:
    """Return the other rooms that a source file imports."""
    parts = [name.split(".") for name in imported(path)]
    found = {part[1] for part in parts if part[0] == "distsgd" and len(part) > 1}
    return (found & (MAY_IMPORT.keys() | ON_TOP)) - {room(path)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_leans_on_those_below_it(path: Path) -> None:
    """A module imports only the rooms that the architecture lets it."""
    if room(path) not in ON_TOP:
        assert rooms_of(path) <= MAY_IMPORT[room(path)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_package_is_used_in_its_room(path: Path) -> None:
    """Only kernels import numba, only reports draw, only live runs have sockets and clocks."""
    used = {name.split(".")[0] for name in imported(path)}
    for package, rooms in OTHERS.items():
        assert package not in used or room(path) in rooms


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_stays_readable(path: Path) -> None:
    """A source file has fewer than 400 lines."""
    assert len(path.read_text(encoding="utf-8").splitlines()) < 400


def modules() -> list[ModuleType]:
    """Return every module of the package."""
    names = [
        one.name
        for one in pkgutil.walk_packages(distsgd.__path__, "distsgd.")
        if not one.name.endswith("__main__")
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
        if (problems := [
            error for error in validate(name)["errors"] if error[0] not in NUMPYDOC_IGNORED
        ])
    }  # fmt: skip
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


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_every_test_states_its_law(path: Path) -> None:
    """Each test has a docstring of one sentence."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            law = ast.get_docstring(node) or ""
            assert law.endswith((".", ".)", '."')), f"{node.name}: {law!r}"
            assert ". " not in law.replace("e.g. ", "").replace("et al. ", ""), node.name
