"""Identity of runs: what tells algorithms and problems apart gives them runs of their own."""

import functools
import threading
from pathlib import Path

import numpy as np
import pytest
from rules_of_users import Decay, Locked, Plain, Point, power, scaled
from small_setup import setup_of

import distsgd as ds
from distsgd.algorithm import Algorithm, check_algorithm, settings
from distsgd.algorithms.parts import Parameters, sgd
from distsgd.errors import ConfigError
from distsgd.experiment.outcome import Outcome
from distsgd.experiment.runs import Place, run_jobs
from distsgd.experiment.setup import Job
from distsgd.problem import Problem, problem_settings
from distsgd.report.numbers.summary import summarise
from distsgd.report.warnings import warnings

QUADRATIC = ds.problems.quadratic([1.0, 0.5])
FLEET = ds.Fleet(2, ds.exponential(1.0))
ALIKE: dict[str, list[Algorithm]] = {
    "factories": [scaled(1.0), scaled(0.01)],
    "schedules": [
        ds.algorithms.hogwild(0.1)._replace(schedule=one)
        for one in (
            Decay(0.1),
            Decay(5.0),
            Point(1.0),
            Point(1.0, 2.0),
            Plain(3.0),
            Plain(4.0).other,
            functools.partial(power, 0.9),
            functools.partial(power, 0.8),
        )
    ],
    "flags": [
        ds.algorithms.serial(0.1),
        ds.algorithms.serial(0.1)._replace(sparse=False),
        ds.algorithms.serial(0.1)._replace(lock_free=True),
    ],
    "first states": [
        ds.algorithms.serial(0.1)._replace(server=sgd._replace(init=init))
        for init in (lambda h, x: Parameters(x), lambda h, x: Parameters(2 * x))
    ],
}


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
    alone = {name: ds.simulate(one, QUADRATIC, FLEET, updates=20, batch=1) for name, one in both.items()}
    assert runs["large"].hash != runs["small"].hash
    for name, run in runs.items():
        assert run.x.tobytes() == alone[name].x.tobytes()
    assert ds.replay(runs["large"], both["large"], QUADRATIC).hash == runs["large"].hash
    with pytest.raises(ConfigError, match=r"recorded one, whose rule apply was '.*0\.5.*', not '"):
        ds.replay(runs["large"], both["small"], QUADRATIC)


class Mine(Problem):
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
        ds.algorithms.hogwild(0.1)._replace(schedule=Locked()),
        QUADRATIC,
        "the schedule of hogwild uses `guard` of the type _thread.lock, which has no stable value;",
    ),
    "a problem": (
        scaled(0.1),
        Guarded([1.0, 2.0]),
        "the problem mine uses `lock` of the type _thread.lock, which has no stable value;",
    ),
}


@pytest.mark.parametrize(("algorithm", "problem", "says"), NAMELESS.values(), ids=NAMELESS)
def test_a_run_that_cannot_be_identified_is_never_shared(
    algorithm: Algorithm, problem: Problem, says: str, tmp_path: Path
) -> None:
    """It is made for each label and made again each time, and a replay of it is refused."""
    setup = setup_of({"one": algorithm, "two": algorithm}, {"p": problem}, {"f": FLEET}, {"updates": 5}, seeds=1)
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
