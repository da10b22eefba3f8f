import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distsgd.commands import submit
from distsgd.errors import ConfigError
from distsgd.experiment.file import read
from distsgd.experiment.setup import Job, Setup
from distsgd.run import identify

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent

MODULE = """
from collections.abc import Callable
from typing import NamedTuple
import numpy as np
import distsgd as ds
from distsgd.algorithm import Algorithm, Pull, Push, Step
from distsgd.algorithms.parts import Rate, gradient_worker, sgd
import constants

class State(NamedTuple):
    x: object

class Middle(ds.Problem):
    samples, dimension = 8, 1

    def __init__(self, shift):
        self.shift = shift

    def loss(self, x):
        return float(np.mean((x - np.arange(8) - self.shift) ** 2) / 2)

    def gradient(self, x, batch):
        return constants.ONE * (x - np.mean(batch) - self.shift)

def make_problem(shift):
    return Middle(shift)

def apply(h, s, m, at):
    return State(s.x - h.learning_rate * at.factor * m.g)

def my_algorithm(learning_rate, scale=1.0):
    server = sgd._replace(init=lambda h, x: State(x), apply=apply)
    return Algorithm("mine", Rate(scale * learning_rate), server, gradient_worker, (Pull(), Step(), Push()))

def decay(epoch):
    return 1.0 / (1.0 + epoch)

def with_loss(loss: Callable, text="", **others):
    problem = Middle(loss(4.0))
    problem.given = (text, others)
    return problem

def fading(learning_rate, schedule):
    return my_algorithm(learning_rate)._replace(schedule=schedule)

def load(path):
    return ds.data.from_arrays(np.loadtxt(path), [0, 1] * 5)

def is_no_problem():
    return 3

def fails(depth=1):
    return fails(0) if depth else {}["missing"]

def stops():
    raise SystemExit(5)

def refuses():
    return ds.problems.quadratic([-1.0])
"""
CONSTANTS = "ONE = 1.0\n"
EXPERIMENT = """
updates = 12
batch = 2
seeds = 2

[problem]
name = "mine:make_problem"
shift = 1.0

[algorithms.own]
algorithm = "mine:my_algorithm"
learning_rate = 0.1

[algorithms.falling]
algorithm = "downpour"
learning_rate = 0.1
schedule = "mine:decay"

[fleets.machines]
workers = 2
"""
PROBLEM = 'name = "mine:make_problem"\nshift = 1.0'


def write(folder: Path, module: str = MODULE, constants: str = CONSTANTS, experiment: str = EXPERIMENT) -> Path:
    """Write an experiment and its own code into a folder, and return the path of its file."""
    folder.mkdir(exist_ok=True)
    (folder / "mine.py").write_text(module)
    (folder / "constants.py").write_text(constants)
    (folder / "experiment.toml").write_text(experiment)
    return folder / "experiment.toml"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the path of an experiment, beside its own code."""
    return write(tmp_path / "mine")


def built(file: Path) -> Setup:
    """Return what an experiment file compares."""
    return read(file).build(file.parent)


def with_problem(folder: Path, table: str) -> Setup:
    """Return a comparison with another table of the problem."""
    return built(write(folder, experiment=EXPERIMENT.replace(PROBLEM, table)))


def hashes(file: Path) -> list[str]:
    """Return the hash of a run of each algorithm."""
    setup = built(file)
    place = (next(iter(setup.problems)), "machines")
    jobs = [Job(*place, label, 0, algorithm) for label, algorithm in setup.algorithms.items()]
    return [identify(setup.request(job).settings) for job in jobs]


def test_own_code_is_found_beside_the_file(file: Path) -> None:
    """Problem, algorithm and schedule are what the functions return for the keys of the file."""
    setup = built(file)
    assert setup.problem.gradient(np.zeros(1), np.array([3, 5])) == -5.0
    assert (setup.algorithms["own"].name, setup.algorithms["own"].hyper.learning_rate) == ("mine", 0.1)
    assert setup.algorithms["falling"].schedule(1.0) == 0.5


def test_own_data_begin_at_the_file(tmp_path: Path) -> None:
    """A function that loads data gets a `path` that begins at the folder of the file."""
    (tmp_path / "rows.txt").write_text("1 2\n" * 10)
    setup = with_problem(tmp_path, 'name = "softmax"\ndata = {name = "mine:load", path = "rows.txt"}')
    assert setup.problem.data.features == 2


def test_parameters_may_be_functions(file: Path) -> None:
    """A parameter is a function if its type or its name says so; any other one keeps its text."""
    table = 'name = "mine:with_loss"\nloss = "mine:decay"\ntext = "mine:decay"\nmore = 2'
    text = EXPERIMENT.replace(PROBLEM, table).replace('algorithm = "downpour"', 'algorithm = "mine:fading"')
    file.write_text(text)
    setup = built(file)
    assert (setup.problem.shift, setup.problem.given) == (0.2, ("mine:decay", {"more": 2}))
    assert setup.algorithms["falling"].schedule(3.0) == 0.25


def test_a_class_is_a_function(tmp_path: Path) -> None:
    """A class of problems is named as a function that returns one is."""
    assert with_problem(tmp_path, 'name = "mine:Middle"\nshift = 2.5').problem.shift == 2.5


def test_own_code_lies_in_a_package(file: Path) -> None:
    """A module of a package is found, whether the package has an ``__init__`` or not."""
    for name, files in {"with_init": ("__init__.py", "sub.py"), "without": ("sub.py",)}.items():
        package = file.parent / name
        package.mkdir()
        for one in files:
            (package / one).write_text("def decay(epoch):\n    return 0.25\n")
        file.write_text(EXPERIMENT.replace("mine:decay", f"{name}.sub:decay"))
        assert built(file).algorithms["falling"].schedule(0.0) == 0.25
        assert not {one for one in sys.modules if one.startswith(name)}


def test_an_own_algorithm_is_tuned(file: Path) -> None:
    """A parameter of one's own function is tuned like any other."""
    file.write_text(
        EXPERIMENT.replace("learning_rate = 0.1\n\n[algorithms.f", 'learning_rate = "tune"\n\n[algorithms.f')
    )
    assert built(file).tunables["own"].make(learning_rate=0.5).hyper.learning_rate == 0.5


def test_a_hash_knows_what_code_does(tmp_path: Path) -> None:
    """Code that does something else has another hash, also in a module that it imports."""
    first = hashes(write(tmp_path))
    assert hashes(write(tmp_path, MODULE + "# a comment\n")) == first
    both = [
        hashes(write(tmp_path, MODULE.replace("- self.shift)\n\ndef", "- 2 * self.shift)\n\ndef"))),
        hashes(write(tmp_path, constants="ONE = 2.0\n")),
    ]
    for other in both:
        assert not set(other) & set(first)
    own, falling = hashes(write(tmp_path, MODULE.replace("1.0 + epoch", "2.0 + epoch")))
    assert (own == first[0], falling == first[1]) == (True, False)


def test_a_module_may_be_called_like_an_installed_one(tmp_path: Path) -> None:
    """The module beside the file is meant, and its content counts, whatever is installed."""
    import simpy  # noqa: PLC0415 # the other module of that name

    as_simpy = MODULE.replace("import constants", "import simpy").replace("constants.ONE", "simpy.ONE")
    found = []
    for one in (1.0, 2.0):
        (tmp_path / "simpy.py").write_text(f"ONE = {one}\n")
        found += hashes(write(tmp_path, as_simpy))
    assert len(set(found)) == 4
    assert sys.modules["simpy"] is simpy


def test_equal_names_in_two_folders_do_not_meet(tmp_path: Path) -> None:
    """Two experiments of one process have modules of one name, and those that these import."""
    paths = [write(tmp_path / str(one), constants=f"ONE = {one}.0\n") for one in (1, 2)]
    problems = [built(path).problem for path in (*paths, *paths)]
    assert [float(one.gradient(np.zeros(1), np.array([0]))[0]) for one in problems] == [-1.0, -2.0, -1.0, -2.0]
    assert not {"mine", "constants"} & sys.modules.keys()


def test_the_folder_is_left_as_it_is(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An import of own code writes nothing into its folder, and leaves Python's settings alone."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    before = [*sys.path]
    built(file)
    assert {path.name for path in file.parent.iterdir()} == {"experiment.toml", "mine.py", "constants.py"}
    assert (sys.path, sys.dont_write_bytecode) == (before, False)


HASHES = "import test_own_code as t, pathlib, sys; print(t.hashes(pathlib.Path(sys.argv[1])))"


def test_a_hash_is_the_same_elsewhere(file: Path, tmp_path: Path) -> None:
    """The same experiment has the same hashes in another process and in another folder."""
    there = write(tmp_path / "elsewhere")
    done = subprocess.run(
        [sys.executable, "-c", HASHES, str(there)],
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{hashes(file)}\n"


Call = Callable[..., tuple[int, str, str]]


def test_a_comparison_of_own_code_is_replayed(file: Path, tmp_path: Path, call: Call) -> None:
    """Own code runs in two processes with the bits of one, and a saved run of it is replayed."""
    two, one = tmp_path / "two", tmp_path / "one"
    for out, processes in ((two, 2), (one, 1)):
        assert call("compare", file, "--out", out, "--processes", processes)[0] == 0
    names = sorted(path.name for path in (two / "runs").iterdir())
    assert names == sorted(path.name for path in (one / "runs").iterdir())
    for name in names:
        x = [np.load(out / "runs" / name / "parameters.npy") for out in (one, two)]
        assert x[0].tobytes() == x[1].tobytes()
    code, said, _ = call("replay", two / "runs" / names[0], "--experiment", file)
    assert (code, said.startswith("equal bit for bit")) == (0, True)


def test_a_live_run_of_own_code_is_replayed_without_its_file(file: Path, tmp_path: Path, call: Call) -> None:
    """Own code reaches live workers, and is found for a replay; edited, or gone, it is refused."""
    run = tmp_path / "run"
    assert call("run", "own", "--experiment", file, "--on", "local", "--out", run)[0] == 0
    file.unlink()
    code, said, _ = call("replay", run)
    assert (code, said.startswith("equal bit for bit: 12 updates by 2 workers")) == (0, True)
    (file.parent / "constants.py").write_text("ONE = 2.0\n")
    code, _, said = call("replay", run)
    assert (code, "the problem to replay must be the recorded one" in said) == (2, True)
    shutil.rmtree(file.parent)
    code, _, said = call("replay", run)
    assert (code, said) == (2, f"distsgd: [algorithms.recorded] unknown module in {file.parent}: 'mine'; known: none\n")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ('name = "mime:make_problem"', r"\[problem\] unknown module in .*: 'mime'; did you mean 'mine'"),
        ('name = "mine:make_problm"', r"\[problem\] unknown function of mine: 'make_problm'; .*'make_problem'"),
        ('name = "mine:CONSTANT"', r"\[problem\] unknown function of mine: 'CONSTANT'; known: "),
        ('name = "mine:constants"', r"mine:constants must be a function, not <?.*; write def constants\(\)"),
        ('name = "mine:"', "must be given as MODULE:FUNCTION, such as my_module:make, not 'mine:'"),
        ('name = "mine:make_problem"', r"\[problem\] needs the key 'shift'"),
        ('name = "mine:make_problem"\nshitf = 1', r"unknown key in \[problem\]: 'shitf'; did you mean 'shift'"),
        ('name = "mine:is_no_problem"', r"mine:is_no_problem must return a Problem such as .*softmax.*, not 3"),
        ('name = "mine:my_algorithm"\nlearning_rate = 1', "mine:my_algorithm must return a Problem"),
        ('name = "softmax"\ndata = "mine:is_no_problem"', r"\[problem.data\] .* must return a Data such as"),
        ('name = "mine:refuses"', r"\[problem\] mine:refuses: curvature must be"),
        ('name = "mine:stops"', r"mine:stops raised SystemExit: 5 \(.*mine.py:\d+, in stops\); correct it"),
    ],
)
def test_what_is_wrong_is_a_sentence(table: str, says: str, tmp_path: Path) -> None:
    """A module or function that is not there, keys that do not fit, and wrong results are told."""
    with pytest.raises(ConfigError, match=says):
        with_problem(tmp_path, table)


def test_a_wrong_schedule_is_told(file: Path) -> None:
    """A schedule that is not there is told with its place."""
    file.write_text(EXPERIMENT.replace("mine:decay", "mine:decai"))
    with pytest.raises(ConfigError, match=r"\[algorithms.falling\] schedule: unknown function of mine: 'decai'.*decay"):
        built(file)


def test_a_name_of_python_s_own_is_refused(file: Path) -> None:
    """A module that Python would take for its own is told to be renamed."""
    (file.parent / "queue.py").write_text("")
    file.write_text(EXPERIMENT.replace("mine:decay", "queue:decay"))
    with pytest.raises(ConfigError, match=r"queue is a module of Python's own; rename .*queue\.py"):
        built(file)


@pytest.mark.parametrize(
    ("module", "lines"),
    [
        (MODULE, ["in fails", "in fails", "KeyError: 'missing'"]),
        ("import nowhere\n", ["in <module>", "ModuleNotFoundError: No module named 'nowhere'"]),
        ("def fails(:\n", ["mine.py", "SyntaxError"]),
    ],
    ids=["call", "import", "syntax"],
)
def test_own_code_that_raises_shows_its_own_lines(module: str, lines: list[str], tmp_path: Path, call: Call) -> None:
    """The command line shows the lines of the user's own code, then one sentence, none of ours."""
    file = write(tmp_path, module, experiment=EXPERIMENT.replace(PROBLEM, 'name = "mine:fails"'))
    code, _, said = call("compare", file, "--out", tmp_path / "out")
    shown = said.splitlines()
    assert code == 2
    assert re.match(r"distsgd: \[\S+\] mine:\w+ raised \w+Error: ", shown[-1])
    wanted = iter(shown[:-1])
    assert all(any(line in one for one in wanted) for line in lines), said
    assert {Path(path).parent for path in re.findall('File "(.*?)"', said)} == {tmp_path}


def test_what_cannot_travel_is_told(tmp_path: Path, call: Call) -> None:
    """What no other process can be given is one sentence, not a traceback."""
    lock = "import threading\nONE, LOCK = 1.0, threading.Lock()\n"
    file = write(tmp_path, constants=lock)
    code, _, said = call("compare", file, "--out", tmp_path / "out", "--processes", 2)
    assert (code, said.count("\n")) == (2, 1)
    assert "cannot be sent to other processes (TypeError: cannot pickle '_thread.lock' object" in said


def test_a_job_takes_along_what_it_needs(file: Path) -> None:
    """Data of an experiment that is sent lie in its folder, or where their absolute path says."""
    (file.parent / "rows.txt").write_text("1 2\n" * 10)
    (file.parent / ".hidden.txt").touch()
    outside = file.parent.parent / "outside.txt"
    outside.touch()

    def order(path: object) -> object:
        table = f'name = "softmax"\ndata = {{name = "mine:load", path = "{path}"}}'
        file.write_text(EXPERIMENT.replace(PROBLEM, table))
        return submit.order(file, (), seeds=None, is_quick=False, storage=None)

    for path in ("rows.txt", "sub/../rows.txt", outside):
        assert order(path).file == file
    for path in ("../outside.txt", ".hidden.txt", "missing.txt"):
        with pytest.raises(ConfigError, match=f"{re.escape(path)} is no visible file in the folder of .*absolute"):
            order(path)


def test_the_example_runs() -> None:
    """The example of an own algorithm on an own problem prints that staleness hurts it less."""
    done = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "scripts" / "examples" / "own_algorithm.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert re.search(r"final training losses grew .* \(damped, the least\)", done.stdout)
