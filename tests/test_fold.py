"""Folds: one text, two drivers, equal bits; and a memory that follows the versions in use."""

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
from algorithm_table import TABLE

import distsgd as ds
from distsgd import algorithms
from distsgd.algorithm import Algorithm, At, Pull, Push, Step, Worker, is_memoryless
from distsgd.algorithms.parts import Parameters, Rate, sgd
from distsgd.data.stream import Stream
from distsgd.errors import ConfigError
from distsgd.fold.fold import fold
from distsgd.kernels.fold import dense as folds
from distsgd.kernels.fold import sparse
from distsgd.kernels.fold.rules import RuleSet
from distsgd.order.schedule import schedule
from distsgd.problem import Problem
from distsgd.trace import PULL, PUSH, ROW, Trace

pytestmark = pytest.mark.long

UPDATES = 60
SPARSE = [name for name, one in TABLE.items() if one.sparse and is_memoryless(one)]
FLEET = ds.Fleet(workers=6, compute=ds.lognormal(1.0, 0.7), latency=0.1, service=0.02)


@pytest.fixture(scope="module")
def dense() -> Problem:
    """Softmax on digits."""
    return ds.problems.softmax(ds.data.digits())


@pytest.fixture(scope="module")
def thin() -> Problem:
    """Logistic regression on rows of 6 among 80 features, with a regulariser."""
    return ds.problems.logistic(ds.data.sparse(300, 80, 6, seed=2), l2=1e-3)


def parameters(
    algorithm: Algorithm,
    problem: Problem,
    driver: str = "auto",
    *,
    fleet: object = FLEET,
    batch: int = 4,
    stops: tuple[int, ...] = (UPDATES,),
) -> np.ndarray:
    """Return the parameters after the last of `stops`."""
    trace = schedule(algorithm.cycle, fleet, seed=1, updates=stops[-1])
    states = fold(algorithm, problem, trace, stops=np.array(stops), batch=batch, seed=1, driver=driver)
    return list(states)[-1].x


@dataclass(frozen=True)
class WithoutSupport:
    """A problem that hides its supports, so that its gradients are folded as whole vectors."""

    whole: Problem

    support = None

    def __getattr__(self, name: str) -> object:
        return getattr(self.whole, name)


@pytest.mark.parametrize("algorithm", TABLE.values(), ids=TABLE)
def test_interpreted_equals_compiled(algorithm: Algorithm, dense: Problem) -> None:
    """NumPy on whole vectors and compiled code per coordinate have the same bits."""
    interpreted, compiled = (parameters(algorithm, dense, driver) for driver in ("interpreted", "compiled"))
    assert np.array_equal(interpreted, compiled)
    assert not np.array_equal(interpreted, dense.start(1))


class Knowing(NamedTuple):
    """A worker that weighs its gradients by what it knows."""

    x: float
    sent: float


class Told(NamedTuple):
    """What it sends."""

    sent: float


def knowing(h: object, w: Knowing, g: float, at: At) -> Knowing:  # noqa: ARG001 # a rule's arguments
    """Step along the gradient over the steps taken, less with many workers or an old version."""
    change = g * at.factor / (1 + at.step) / (at.workers + 0.1 * at.version)
    return Knowing(w.x - 0.1 * change, w.sent + change)


def apply_knowing(h: object, s: Parameters, m: Told, at: At) -> Parameters:
    """Step by the staleness, the pusher's steps and the version."""
    weight = h.learning_rate * at.factor / (1 + at.staleness) / (1 + 0.1 * at.step)
    return Parameters(s.x - weight * m.sent - 0.001 * at.version)


def aware(period: int) -> Algorithm:
    """Return an algorithm all of whose rules use what they are told."""
    worker = Worker(
        init=lambda h, x: Knowing(x, 0.0),
        receive=lambda h, w, x, at: Knowing(x + 0.01 * at.step + 0.001 * at.version, w.sent),
        at=lambda h, w, at: w.x - 0.01 * at.step + 0.002 * at.version,
        step=knowing,
        send=lambda h, w, at: (Knowing(w.x, 0.0), Told(w.sent + 0.001 * at.step - 0.001 * at.version)),
    )
    return Algorithm(
        "aware",
        Rate(0.3),
        sgd._replace(apply=apply_knowing),
        worker,
        (Pull(every=period), Step(), Push(every=period)),
        schedule=lambda epoch: 1 / (1 + epoch),
    )


def aware_loop(problem: Problem, period: int) -> np.ndarray:
    """Return what `aware` computes on one worker, where version = step / period."""
    stream, x, schedule_ = Stream(problem.samples, 4, 1), problem.start(1), lambda e: 1 / (1 + e)
    for version in range(UPDATES):
        local, sent = x + 0.01 * (period * version) + 0.001 * version, 0.0
        for step in range(period * version, period * (version + 1)):
            epoch = step * (4 / problem.samples)
            g = problem.gradient(local - 0.01 * step + 0.002 * version, stream.batch(0, step))
            change = g * schedule_(epoch) / (1 + step) / (1 + 0.1 * version)
            local, sent = local - 0.1 * change, sent + change
        sent = sent + 0.001 * (step + 1) - 0.001 * version
        weight = 0.3 * schedule_(period * version * (4 / problem.samples)) / (1 + 0)
        x = x - weight / (1 + 0.1 * (step + 1)) * sent - 0.001 * version
    return x


@pytest.mark.parametrize("driver", ["interpreted", "compiled"])
@pytest.mark.parametrize("period", [1, 3])
def test_rules_know_step_version_workers_and_factor(driver: str, period: int, dense: Problem) -> None:
    """A rule's `at` holds the worker's own steps, its version and the schedule, at every verb."""
    x = parameters(aware(period), dense, driver, fleet=ds.Fleet(workers=1))
    assert np.array_equal(x, aware_loop(dense, period))
    runs = [parameters(aware(period), dense, driver), parameters(aware(period), dense)]
    assert np.array_equal(*runs)


def weigh(h: object, s: Parameters, m: Told, at: At) -> Parameters:
    """Weigh a message by all that the server knows, and leave alone what it does not touch."""
    weight = h.learning_rate * at.factor / (1 + at.staleness) / (1 + at.step + at.version)
    return Parameters(s.x - weight * m.sent)


SPARSE_AWARE = Algorithm(
    "sparse and aware",
    Rate(9.0),
    sgd._replace(apply=weigh),
    Worker(
        init=lambda h, x: Knowing(x, 0.0),
        receive=lambda h, w, x, at: Knowing(x * (1 + at.step), 0.0),
        at=lambda h, w, at: w.x / (1 + at.version),
        step=lambda h, w, g, at: Knowing(w.x, g * at.factor / (1 + at.step)),
        send=lambda h, w, at: (w, Told(w.sent * (1 + at.step) * at.factor)),
    ),
    (Pull(), Step(), Push()),
    sparse=True,
    schedule=lambda epoch: 1 / (1 + epoch),
)


@pytest.mark.parametrize("batch", [1, 5])
def test_rules_on_supports_know_as_much(batch: int, thin: Problem) -> None:
    """A fold on supports tells its rules what a fold with whole vectors tells them."""
    on_supports = parameters(SPARSE_AWARE, thin, "compiled", batch=batch)
    whole = parameters(SPARSE_AWARE, WithoutSupport(thin), "interpreted", batch=batch)
    assert np.array_equal(on_supports, whole)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("name", SPARSE)
def test_supports_equal_whole_vectors(name: str, batch: int, thin: Problem) -> None:
    """A fold that touches only supports has the bits of one with whole vectors."""
    algorithm = TABLE[name]
    on_supports = parameters(algorithm, thin, "compiled", batch=batch)
    whole = parameters(algorithm, WithoutSupport(thin), "interpreted", batch=batch)
    assert np.array_equal(on_supports, whole)


@pytest.mark.jit_off
@pytest.mark.bounds
@pytest.mark.parametrize("name", ["synchronous, backup", "adaptive_revision", "elastic_averaging"])
def test_kernels_stay_inside_their_arrays(name: str) -> None:
    """Small folds of each kind agree; this also runs with bounds checks, and without compiling."""
    data = ds.data.sparse(20, 12, 3, seed=3)
    for problem in (ds.problems.quadratic([1.0, 0.2], noise=0.1), ds.problems.logistic(data, 0.1)):
        for batch in (1, 3):
            runs = [
                parameters(TABLE[name], problem, driver, batch=batch, stops=(8,))
                for driver in ("interpreted", "compiled")
            ]
            assert np.array_equal(*runs)


@pytest.mark.parametrize("name", ["downpour", "elastic_averaging"])
def test_another_learning_rate_compiles_nothing(name: str, dense: Problem) -> None:
    """Kernels are compiled once for an algorithm, whatever its numbers."""
    kind = folds.shared_kernels if name == "downpour" else folds.private_kernels
    sweep = [getattr(algorithms, name)(rate) for rate in (0.1, 1, 0.025)]
    counts = []
    for algorithm in sweep:
        parameters(algorithm, dense, "compiled")
        counts.append([len(kernel.signatures) for kernel in kind(RuleSet.of(algorithm))])
    assert counts == [[1, 1, 1]] * 3


def test_a_sparse_sweep_compiles_nothing(thin: Problem) -> None:
    """The sparse kernel too is compiled once, for whole and broken learning rates alike."""
    for rate in (0.1, 1):
        parameters(algorithms.downpour(rate), thin, "compiled", stops=(3,))
    assert len(sparse.sparse_kernel(RuleSet.of(algorithms.downpour(0.5))).signatures) == 1


@pytest.mark.parametrize("driver", ["interpreted", "compiled"])
@pytest.mark.parametrize("name", ["downpour", "synchronous", "elastic_averaging"])
def test_looking_at_a_run_does_not_change_it(name: str, driver: str, dense: Problem) -> None:
    """Evaluating after every update leaves the bits as they are."""
    once = parameters(TABLE[name], dense, driver)
    often = parameters(TABLE[name], dense, driver, stops=tuple(range(UPDATES + 1)))
    assert np.array_equal(once, often)


@dataclass
class Counting:
    """A problem that remembers how many gradients it was asked for at once."""

    whole: Problem
    asked: list[int]

    def gradients(self, xs: np.ndarray, batches: np.ndarray) -> np.ndarray:
        """Count, and evaluate."""
        self.asked.append(len(xs))
        return self.whole.gradients(xs, batches)

    def __getattr__(self, name: str) -> object:
        return getattr(self.whole, name)


@pytest.mark.parametrize("driver", ["interpreted", "compiled"])
def test_gradients_in_flight_are_one_batch(driver: str, dense: Problem) -> None:
    """W equal asynchronous workers have W gradients in flight, which are evaluated at once."""
    counting = Counting(dense, [])
    parameters(TABLE["downpour"], counting, driver, fleet=ds.Fleet(workers=6), stops=(60,))
    assert counting.asked == [6] * 10


@pytest.mark.parametrize("driver", ["interpreted", "compiled"])
def test_dropped_gradients_are_not_evaluated(driver: str, dense: Problem) -> None:
    """A gradient that arrives after its round has closed costs nothing, as no rule sees it."""
    counting, algorithm = Counting(dense, []), TABLE["synchronous, backup"]
    parameters(algorithm, counting, driver, stops=(20,))
    assert sum(counting.asked) == 20 * 4


def test_bits_do_not_depend_on_the_process() -> None:
    """The same seed gives the same bits in another process, by another driver."""
    script = (
        "import distsgd as ds, hashlib\n"
        "run = ds.simulate(ds.algorithms.downpour(0.2), ds.problems.softmax(ds.data.digits()),"
        " ds.Fleet(5, ds.exponential(1.0)), updates=40, seed=7, driver='{}')\n"
        "print(hashlib.sha256(run.x.tobytes() + run.trace.rows.tobytes()).hexdigest())"
    )
    prints = {
        subprocess.run([sys.executable, "-c", script.format(driver)], capture_output=True, text=True, check=True).stdout
        for driver in ("interpreted", "compiled")
    }
    run = ds.simulate(
        ds.algorithms.downpour(0.2),
        ds.problems.softmax(ds.data.digits()),
        ds.Fleet(5, ds.exponential(1.0)),
        updates=40,
        seed=7,
    )
    here = hashlib.sha256(run.x.tobytes() + run.trace.rows.tobytes()).hexdigest()
    assert prints == {here + "\n"}


@pytest.mark.quick
@pytest.mark.parametrize("driver", ["interpreted", "compiled"])
def test_a_fold_by_hand(driver: str) -> None:
    """Two workers, two coordinates, four events: gradient h x, worked out with pencil and paper."""
    rows = [  # time, sent, done, worker, verb, step, version, read
        (0, 0, 0, 0, PULL, 0, 0, 0),
        (0, 0, 0, 1, PULL, 0, 0, 0),
        (1, 1, 1, 1, PUSH, 1, 1, 0),
        (2, 2, 2, 0, PUSH, 1, 2, 0),
    ]
    problem = ds.problems.quadratic([1.0, 2.0], start=[8.0, 4.0])
    states = fold(
        algorithms.downpour(0.25),
        problem,
        Trace(np.array(rows, dtype=ROW), 2),
        stops=np.array([0, 1, 2]),
        batch=1,
        driver=driver,
    )
    # x0 = (8, 4), gradient (8, 8); both workers read version 0, so both steps are -(2, 2)
    assert [state.x.tolist() for state in states] == [[8.0, 4.0], [6.0, 2.0], [4.0, 0.0]]


def helper(x: float) -> float:
    """Double a number: a function that is not a rule."""
    return 2 * x


def test_a_rule_may_call_helpers() -> None:
    """A rule that calls another function has the same bits in both drivers."""
    calling = sgd._replace(apply=lambda h, s, m: Parameters(helper(s.x) - h.learning_rate * m.g))
    algorithm = algorithms.serial(0.1)._replace(name="calling", server=calling, sparse=False)
    problem = ds.problems.quadratic([1.0])
    runs = [parameters(algorithm, problem, one) for one in ("interpreted", "compiled")]
    assert np.array_equal(*runs)


class Uncompilable:
    """A problem whose slope numba cannot compile."""

    def __init__(self, whole: Problem) -> None:
        self.whole = whole
        self.support = whole.support._replace(slope=lambda margin, label: eval("margin"))

    def __getattr__(self, name: str) -> object:
        return getattr(self.whole, name)


def test_a_slope_that_cannot_be_compiled_is_named(thin: Problem) -> None:
    """Whoever folds a problem on supports is told which part of it is no plain scalar Python."""
    with pytest.raises(ConfigError, match="the slope of logistic must be plain scalar Python"):
        parameters(algorithms.serial(0.1), Uncompilable(thin), "compiled")


def test_an_unknown_driver_is_named() -> None:
    """A misspelt driver gets the nearest one."""
    with pytest.raises(ConfigError, match="unknown driver 'compield'; did you mean 'compiled'"):
        parameters(TABLE["serial"], ds.problems.quadratic([1.0]), "compield")


@pytest.mark.parametrize("driver", ["interpreted", "compiled"])
def test_overflow_is_a_result_and_no_warning(driver: str) -> None:
    """A run that diverges ends in numbers that are not finite, silently."""
    x = parameters(algorithms.adaptive_revision(1e200), ds.problems.quadratic([1e100, 1.0]), driver, batch=1)
    assert not np.isfinite(x).all()
