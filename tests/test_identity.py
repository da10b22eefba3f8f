"""Identity: equal digests for what does the same, others for what does something else."""

import functools
import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest

import distsgd as ds
from distsgd.algorithm import Algorithm, check_algorithm, settings
from distsgd.algorithms.parts import Parameters, sgd
from distsgd.errors import ConfigError
from distsgd.experiment.outcome import Outcome
from distsgd.experiment.runs import Place, run_jobs
from distsgd.experiment.setup import Job, Setup
from distsgd.problem import Evaluation, Problem, problem_settings
from distsgd.report.numbers.summary import summarise
from distsgd.report.warnings import warnings
from distsgd.rules.identity import UnidentifiedError, digest

QUADRATIC = ds.problems.quadratic([1.0, 0.5])
FLEET = ds.Fleet(2, ds.exponential(1.0))


def scaled(scale: float, name: str = "mine") -> Algorithm:
    """Return SGD whose rule closes over its step size."""
    apply = lambda h, s, m: Parameters(s.x - scale * m.g)  # noqa: E731 # a rule
    server = sgd._replace(apply=apply)
    return ds.algorithms.serial(0.1)._replace(name=name, server=server)


def module(source: str) -> ModuleType:
    """Return a module with this text, as a notebook that runs its cells again has it."""
    found = ModuleType("__main__")
    exec(source, vars(found))
    return found


def function(body: str, before: str = "") -> Callable[..., object]:
    """Return a function of that body."""
    return module(f"import numpy as np\n{before}\ndef f(x):\n    {body}\n").f


class Point(NamedTuple):
    """Two numbers, and what is made of them."""

    a: float
    b: float = 1.0

    def __call__(self, epoch: float) -> float:
        """Return the factor."""
        return self.a / (self.b + epoch)


@dataclass
class Decay:
    """A schedule with numbers of its own."""

    rate: float
    steps: list[float] = field(default_factory=list)

    def __call__(self, epoch: float) -> float:
        """Return the factor."""
        return 1.0 / (1.0 + self.rate * epoch)


class Plain:
    """A schedule with attributes, one of which is only remembered."""

    def __init__(self, rate: float) -> None:
        self.rate, self.known = rate, {"a", "b"}

    @functools.cached_property
    def found(self) -> float:
        """Return what takes long to find."""
        return 2.0 * self.rate

    def __call__(self, epoch: float) -> float:
        """Return the factor."""
        return 1.0 / (1.0 + self.rate * epoch)

    def other(self, epoch: float) -> float:
        """Return another factor."""
        return self(2.0 * epoch)


def power(base: float, epoch: float) -> float:
    """Return a factor."""
    return base**epoch


DIFFERENT: dict[str, list[object]] = {
    "constants": [function("return 2 * x"), function("return 3 * x"), function("return x * 2")],
    "operations": [function("return 2 * x"), function("return 2 + x"), function("return 2 - x")],
    "defaults": [lambda x, a=1.0: a * x, lambda x, a=2.0: a * x, lambda x, *, a=2.0: a * x],
    "closures": [scaled(1.0).server.apply, scaled(2.0).server.apply],
    "globals": [function("return K * x", "K = 1"), function("return K * x", "K = 2")],
    "helpers": [
        function("return g(x)", f"def g(x):\n    return {n} * x\n") for n in (2, 3)
    ],
    "helpers of helpers": [
        function("return g(x)", f"def k(x):\n    return x - {n}\ndef g(x):\n    return k(x)\n")
        for n in (2, 3)
    ],
    "attributes": [function("return np.sqrt(x)"), function("return np.exp(x)")],
    "inner functions": [function("return (lambda y: y)(x)"), function("return (lambda y: -y)(x)")],
    "sets": [function("return x in {1, 2}"), function("return x in {1, 3}")],
    "partials": [functools.partial(power, 0.9), functools.partial(power, 0.8), power],
    "objects": [Decay(0.1), Decay(0.2), Decay(0.1, [1.0]), Plain(0.1), Plain(0.2), Point(1.0)],
    "methods": [Plain(0.1).other, Plain(0.2).other, Plain(0.1).__call__],
    "arrays": [np.zeros(3), np.zeros(4), np.zeros((3, 1)), np.zeros(3, np.float32), np.ones(3)],
    "large arrays": [np.zeros(10**5), np.ones(10**5), np.zeros(10**5)[:-1]],
    "numbers": [1, 1.0, True, "1", b"1", 1j, None, (1,), [1], {1}, {1: 1}, -0.0, 0.0],
    "classes": [module(f"class A:\n    def f(self):\n        return {n}\n").A for n in (1, 2)],
}  # fmt: skip


@pytest.mark.parametrize("values", DIFFERENT.values(), ids=DIFFERENT)
def test_what_does_something_else_has_another_digest(values: list[object]) -> None:
    """A number, an operation, a helper or an attribute that differs makes another digest."""
    assert len({digest(one) for one in values}) == len(values)


def test_what_does_the_same_has_the_same_digest() -> None:
    """Names, lines, docstrings, addresses and what is remembered do not count."""
    shifted = module("\n\n\ndef g(x):\n    'Another text.'\n    return 2 * x\n").g
    assert digest(shifted) == digest(module("def f(x):\n    return 2 * x\n").f)
    used = Plain(0.1)
    assert used.found == 0.2
    assert digest(used) == digest(Plain(0.1))
    assert digest(scaled(1.0).server.apply) == digest(scaled(1.0).server.apply)
    assert digest([np.zeros(3), np.zeros(3)]) == digest([np.zeros(3)] * 2)


def test_a_function_may_refer_to_itself() -> None:
    """Recursion, of one function or of two, has a digest that knows both bodies."""
    text = "def f(x):\n    return g(x)\ndef g(x):\n    return f(x) + {}\n"
    one, other, same = (module(text.format(n)).f for n in (1, 2, 1))
    assert digest(one) == digest(same) != digest(other)
    looped: list[object] = []
    looped.append(looped)
    assert len(digest(looped)) == 64


def test_an_array_that_has_changed_in_place_is_seen() -> None:
    """A large array is hashed once, and again when its numbers are others."""
    large = np.zeros(10**5)
    first = digest(large)
    large *= 2.0
    assert digest(large) == first
    large += 1.0
    assert digest(large) != first


SCRIPT = """
import functools, hashlib
from dataclasses import dataclass
import numpy as np
import distsgd as ds
from distsgd.algorithm import settings
from distsgd.rules.identity import digest

NAMES = {"one", "two", "three", "four"}
def helper(x):
    return np.sqrt(x) if x in {"a", "b", "c", 1} else len(NAMES)
@dataclass
class Decay:
    rate: float
    def __call__(self, epoch):
        return helper(epoch) * self.rate
values = [helper, Decay(0.5), Decay, functools.partial(helper, 1), NAMES, frozenset(NAMES),
          lambda x: x in {"p", "q", "r"}, settings(ds.algorithms.hogwild(0.1))]
print(hashlib.sha256("".join(map(digest, values)).encode()).hexdigest())
"""


def test_a_digest_survives_a_restart() -> None:
    """Two interpreters with other hash seeds and other addresses find the same digests."""
    found = {
        subprocess.run(
            [sys.executable, "-c", "\n" * int(seed) + SCRIPT],
            capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed, "PATH": ""},
            cwd=Path(ds.__file__).parent.parent,
        ).stdout
        for seed in ("1", "3")
    }  # fmt: skip
    assert len(found) == 1
    assert len(found.pop().strip()) == len(hashlib.sha256().hexdigest())


def numbers() -> Iterator[int]:
    """Yield a number."""
    yield 1


LOCK = threading.Lock()


class Locked:
    """A schedule that needs a lock."""

    def __init__(self) -> None:
        self.guard = threading.Lock()

    def __call__(self, epoch: float) -> float:
        """Return the factor."""
        with self.guard:
            return 1.0 + 0.0 * epoch


def locked(epoch: float) -> float:
    """Return the factor."""
    with LOCK:
        return 1.0 + 0.0 * epoch


UNKNOWN = {
    "a generator": (numbers(), "an object generator"),
    "a bare object": (object(), "an object object"),
    "a global": (locked, "`LOCK` of the type _thread.lock"),
    "an attribute": (Locked(), "`guard` of the type _thread.lock"),
    "an item": ({"key": [LOCK]}, "`key` of the type _thread.lock"),
}


@pytest.mark.parametrize(("value", "says"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_has_no_stable_value_is_named(value: object, says: str) -> None:
    """An object that cannot be written down has no digest, and the error says which it is."""
    with pytest.raises(UnidentifiedError, match=f"uses {says}, which has no stable value"):
        digest(value)


ALIKE: dict[str, list[Algorithm]] = {
    "factories": [scaled(1.0), scaled(0.01)],
    "schedules": [
        ds.algorithms.hogwild(0.1)._replace(schedule=one)
        for one in (
            Decay(0.1), Decay(5.0), Point(1.0), Point(1.0, 2.0), Plain(3.0), Plain(4.0).other,
            functools.partial(power, 0.9), functools.partial(power, 0.8),
        )
    ],
    "flags": [
        ds.algorithms.serial(0.1), ds.algorithms.serial(0.1)._replace(sparse=False),
        ds.algorithms.serial(0.1)._replace(lock_free=True),
    ],
    "first states": [
        ds.algorithms.serial(0.1)._replace(server=sgd._replace(init=init))
        for init in (lambda h, x: Parameters(x), lambda h, x: Parameters(2 * x))
    ],
}  # fmt: skip


@pytest.mark.parametrize("algorithms", ALIKE.values(), ids=ALIKE)
def test_algorithms_that_differ_have_other_settings(algorithms: list[Algorithm]) -> None:
    """Rules and schedules of one name are told apart by what they do."""
    texts = [str(settings(one)) for one in algorithms]
    assert len(set(texts)) == len(texts)
    assert texts == [str(settings(one)) for one in algorithms]


def test_a_rule_is_what_it_does() -> None:
    """A rule that was defined again with the same content is the same rule."""
    assert settings(scaled(1.0)) == settings(scaled(1.0))


def test_two_algorithms_of_one_factory_have_runs_of_their_own() -> None:
    """A comparison gives each label the runs of its own rule, and a replay refuses the other."""
    both = {"large": scaled(0.5), "small": scaled(0.01)}
    found = ds.compare(both, QUADRATIC, FLEET, updates=20, seeds=1, batch=1, tuning=None)
    runs = {one.algorithm: one.run for one in found.outcomes}
    alone = {
        name: ds.simulate(one, QUADRATIC, FLEET, updates=20, batch=1) for name, one in both.items()
    }
    assert runs["large"].hash != runs["small"].hash
    for name, run in runs.items():
        assert run.x.tobytes() == alone[name].x.tobytes()
    assert ds.replay(runs["large"], both["large"], QUADRATIC).hash == runs["large"].hash
    with pytest.raises(ConfigError, match=r"recorded one, whose rule apply was '.*0\.5.*', not '"):
        ds.replay(runs["large"], both["small"], QUADRATIC)


class Mine:
    """A user's problem, whose settings say nothing but its name."""

    name, samples, data, support = "mine", 8, None, None
    settings = {"name": "mine"}  # noqa: RUF012 # a user writes it like this

    def __init__(self, curvature: object) -> None:
        self.curvature = np.asarray(curvature, dtype=np.float64)

    @property
    def dimension(self) -> int:
        """Number of parameters."""
        return self.curvature.size

    def start(self, seed: int) -> np.ndarray:  # noqa: ARG002 # the same for all
        """Return the starting point."""
        return np.ones(self.dimension)

    def loss(self, x: np.ndarray) -> float:
        """Return the objective."""
        return float(np.sum(self.curvature * x * x) / 2)

    def gradient(self, x: np.ndarray, batch: np.ndarray) -> np.ndarray:  # noqa: ARG002 # all alike
        """Return a gradient."""
        return self.curvature * x

    def gradients(self, xs: np.ndarray, batches: np.ndarray) -> np.ndarray:
        """Return several gradients."""
        return np.stack([self.gradient(x, batch) for x, batch in zip(xs, batches, strict=True)])

    def evaluate(self, x: np.ndarray) -> Evaluation:
        """Return the loss."""
        return Evaluation(self.loss(x), np.nan, np.nan)

    def message_bytes(self, columns: int, batch: int) -> float:  # noqa: ARG002 # dense
        """Return the size of a message."""
        return 8.0 * self.dimension * columns


class Half(Mine):
    """The same with half the gradient."""

    def gradient(self, x: np.ndarray, batch: np.ndarray) -> np.ndarray:  # noqa: ARG002 # all alike
        """Return a gradient."""
        return 0.5 * self.curvature * x


class Guarded(Mine):
    """The same with a lock, which has no value."""

    def __init__(self, curvature: object) -> None:
        super().__init__(curvature)
        self.lock = threading.Lock()


@pytest.mark.filterwarnings("ignore:problem Half:distsgd.DistsgdWarning")
def test_problems_of_users_are_told_apart() -> None:
    """A problem's methods and numbers identify it, whatever its settings say."""
    one, other, half = Mine([1.0, 2.0]), Mine([1.0, 3.0]), Half([1.0, 2.0])
    assert problem_settings(one) == problem_settings(Mine([1.0, 2.0]))
    assert len({str(problem_settings(problem)) for problem in (one, other, half)}) == 3
    assert problem_settings(QUADRATIC) == QUADRATIC.settings
    run = ds.simulate(scaled(0.1), one, FLEET, updates=5, batch=1)
    assert ds.replay(run, scaled(0.1), Mine([1.0, 2.0])).hash == run.hash
    with pytest.raises(ConfigError, match=r"problem to replay .* its methods or attributes are"):
        ds.replay(run, scaled(0.1), half)


@pytest.mark.filterwarnings("ignore:problem Half:distsgd.DistsgdWarning")
def test_problems_of_one_name_have_runs_of_their_own() -> None:
    """A comparison of two problems with equal settings minimises each of them."""
    problems = {"whole": Mine([1.0, 2.0]), "half": Half([1.0, 2.0])}
    found = ds.compare({"sgd": scaled(0.1)}, problems, FLEET, updates=20, seeds=1, batch=1)
    for outcome in found.outcomes:
        alone = ds.simulate(scaled(0.1), problems[outcome.problem], FLEET, updates=20, batch=1)
        assert outcome.run.x.tobytes() == alone.x.tobytes()


NAMELESS: dict[str, tuple[Algorithm, Problem, str]] = {
    "a schedule": (
        ds.algorithms.hogwild(0.1)._replace(schedule=Locked()), QUADRATIC,
        "the schedule of hogwild uses `guard` of the type _thread.lock, which has no stable value;",
    ),
    "a problem": (
        scaled(0.1), Guarded([1.0, 2.0]),
        "the problem mine uses `lock` of the type _thread.lock, which has no stable value;",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("algorithm", "problem", "says"), NAMELESS.values(), ids=NAMELESS)
def test_a_run_that_cannot_be_identified_is_never_shared(
    algorithm: Algorithm, problem: Problem, says: str, tmp_path: Path
) -> None:
    """It is made for each label and made again each time, and a replay of it is refused."""
    setup = Setup(
        {"one": algorithm, "two": algorithm}, {"p": problem}, {"f": FLEET}, {"updates": 5}, seeds=1
    )
    jobs = [Job("p", "f", label, 0, algorithm) for label in setup.algorithms]
    runs = [run for _ in range(2) for _, run in run_jobs(setup, jobs, Place(tmp_path))]
    assert len({run.hash for run in runs}) == 4
    assert len(list((tmp_path / "runs").iterdir())) == 4
    assert len({run.x.tobytes() for run in runs}) == 1
    known = runs[0].settings["algorithm"], runs[0].settings["problem"]
    (sentence,) = [one["unidentified"] for one in known if "unidentified" in one]
    assert sentence.startswith(says)
    outcome = Outcome("a", "f", 0, runs[0])
    said = warnings(summarise([outcome], {}, is_complete=True))
    assert said == [f"Warning: {sentence}."]
    saved = ds.load(tmp_path / "runs" / runs[0].hash)
    with pytest.raises(ConfigError, match=r"to replay cannot be told from others: the .* uses"):
        ds.replay(saved, algorithm, problem)


def test_a_notebook_that_changes_a_rule_is_followed() -> None:
    """A rule of the same name, or with another helper, is checked and identified anew."""
    names: dict[str, object] = {"Parameters": Parameters, "__name__": "__main__"}
    found = []
    for helper, rule in (("2 * g", "m.g"), ("3 * g", "m.g"), ("3 * g", "-m.g"), ("2 * g", "m.g")):
        exec(f"def helper(g):\n    return {helper}\n", names)
        exec(f"def apply(h, s, m):\n    return Parameters(s.x - helper({rule}))\n", names)
        algorithm = ds.algorithms.serial(0.1)._replace(server=sgd._replace(apply=names["apply"]))
        check_algorithm(algorithm)
        found.append(str(settings(algorithm)))
    assert len(set(found)) == 3
    assert found[0] == found[3]
    exec("def helper(g):\n    return g * g * g\n", names)
    assert str(settings(algorithm)) not in found
    names["helper"] = np.exp
    with pytest.raises(ConfigError, match=r"rule apply uses numpy\.exp"):
        check_algorithm(algorithm)
