import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from distsgd.experiment.file import Experiment
from distsgd.experiment.tables import Described, ExactStaleness, LiveRuns, SampledStaleness

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent
SHELL = [path for path in (*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run") if path.is_file() and not path.suffix]
BENCHMARKS = [path.stem.removeprefix("bench_") for path in (ROOT / "scripts").glob("bench_*.py")]
SMALL = """
updates = 6
seeds = 1
[problem]
name = "quadratic"
curvature = [1.0, 2.0]
[algorithms.serial]
algorithm = "serial"
learning_rate = 0.1
[fleets.machines]
workers = 2
"""


def run(*command: object, where: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command with nothing on its standard input."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=where,
        env=os.environ | environment,
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a checkout with the scripts, and a Python that installs by writing down how."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    fake = tmp_path / "fake-python"
    fake.write_text(FAKE_PYTHON.format(log=shlex.quote(str(tmp_path / "log"))))
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    return tmp_path


FAKE_PYTHON = """#!/usr/bin/env bash
case "$*" in
  "-m venv"*)
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
    printf '#!/usr/bin/env bash\\necho ran "$PWD" "$@"\\n' >"$3/bin/distsgd"
    chmod +x "$3/bin/distsgd" ;;
  *"pip install"*) echo "$*" >>{log}; [[ ! -e {log}.fail ]] ;;
esac
"""


def test_compare_installs_once(checkout: Path) -> None:
    """The first call installs, the second does not, and both pass their arguments on."""
    for _ in range(2):
        done = run("scripts/compare", "--quick", where=checkout, PYTHON="./fake-python")
        assert done.stdout == f"ran {checkout} compare --quick\n"
    assert len((checkout / "log").read_text().splitlines()) == 1


def test_compare_installs_again_after_a_failure(checkout: Path) -> None:
    """An installation that failed is tried again by the next call."""
    (checkout / "log.fail").touch()
    assert run("scripts/compare", where=checkout, PYTHON="./fake-python").returncode != 0
    (checkout / "log.fail").unlink()
    assert run("scripts/compare", where=checkout, PYTHON="./fake-python").returncode == 0
    assert len((checkout / "log").read_text().splitlines()) == 2


def test_compare_installs_again_after_a_change(checkout: Path) -> None:
    """Changed dependencies are installed by the next call, and a broken .venv is replaced."""
    run("scripts/compare", where=checkout, PYTHON="./fake-python")
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    run("scripts/compare", where=checkout, PYTHON="./fake-python")
    (checkout / ".venv" / "bin" / "python").write_text("broken")
    run("scripts/compare", where=checkout, PYTHON="./fake-python")
    assert len((checkout / "log").read_text().splitlines()) == 3


def test_compare_runs_where_it_was_called(checkout: Path) -> None:
    """Relative paths mean what they mean to the caller: the command runs in the caller's folder."""
    inside = checkout / "elsewhere"
    inside.mkdir()
    done = run("../scripts/compare", "mine.toml", where=inside, PYTHON=str(checkout / "fake-python"))
    assert done.stdout == f"ran {inside} compare mine.toml\n"


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell_scripts_are_sound(path: Path) -> None:
    """Every shell script can be executed, and bash finds no error in its text."""
    assert os.access(path, os.X_OK)
    assert run("bash", "-n", path).stderr == ""


def test_ci_runs_the_two_commands() -> None:
    """What runs before a merge is the test script and a quick comparison."""
    text = (ROOT / ".ci" / "run").read_text()
    assert text.index("scripts/test") < text.index("scripts/compare --quick")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_bench_prints_a_table(name: str) -> None:
    """The table of benchmarks has rows of every benchmark."""
    done = run(sys.executable, ROOT / "scripts" / "bench.py", "--quick", name)
    assert done.stderr == ""
    assert done.stdout.count("\n") > 5


def test_crossings_are_compared_with_the_truth() -> None:
    """The script of crossings finds no wrong time in a part of the built-in comparison."""
    done = run(sys.executable, ROOT / "scripts" / "crossings.py", "--quick")
    assert done.stderr == ""
    assert "Wrong: 0." in done.stdout


def test_an_unknown_benchmark_is_named() -> None:
    """A misspelt benchmark is answered with the nearest."""
    done = run(sys.executable, ROOT / "scripts" / "bench.py", "startupp")
    assert "did you mean 'startup'" in done.stderr


PYTHON = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


SAYS = (r"Run\(.*\n0\.0\n", r"done 0\.", "done ", "On fleet: ")


@pytest.mark.parametrize(("code", "says"), list(zip(PYTHON, SAYS, strict=True)))
def test_the_readme_s_python_runs(code: str, says: str, tmp_path: Path) -> None:
    """The Python of README runs as it stands, and says what it found."""
    if "torch" in code:
        pytest.importorskip("torch", reason="needs distsgd[torch]")
    done = run(sys.executable, "-c", code, where=tmp_path, PYTHONPATH=str(ROOT))
    assert done.stderr == ""
    assert re.match(says, done.stdout), done.stdout


def test_the_reference_names_every_key() -> None:
    """Every key of an experiment file and of its fleets stands in REFERENCE, in code."""
    reference = (ROOT / "REFERENCE.md").read_text()
    for table in (Experiment, Described, ExactStaleness, SampledStaleness, LiveRuns):
        for key in table.__struct_fields__:
            assert re.search(rf"`\[?{key}[`.\]]", reference), key


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_picture_shows_the_page(tmp_path: Path) -> None:
    """The picture of a page is a PNG file."""
    (tmp_path / "page.html").write_text("<h1>seen</h1>")
    run(ROOT / "scripts" / "picture", tmp_path / "page.html", tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
