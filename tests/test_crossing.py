import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import psutil
import pytest
from disturbance import Disturbance
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter
from simulated_launch import launched

import distsgd as ds
from distsgd.algorithm import Algorithm
from distsgd.errors import ConfigError
from distsgd.fold import crossing
from distsgd.fold import simulate as simulation
from distsgd.fold.crossing import Crossing, find_crossing, search, with_crossing
from distsgd.fold.request import RunConfig, RunRequest
from distsgd.live.options import LiveFleet
from distsgd.order.budget import Budget
from distsgd.problem import Problem
from distsgd.run import Run
from distsgd.trace import JOIN, LEAVE

pytestmark = pytest.mark.long

PRECISION = 0.02
make = ds.algorithms
ALGORITHMS = {
    "serial": make.serial,
    "Downpour": make.downpour,
    "EAMSGD": lambda rate: make.elastic_averaging(rate, 0.2, 5, momentum=0.9),
    "synchronous": make.synchronous,
}
FLEETS = {
    "machines": ds.Fleet(3, ds.lognormal(1.0, 0.5), latency=0.02, failures=ds.Failures(50.0, 5.0)),
    "stale": ds.fixed_staleness(4),
}
DIGITS = ds.data.digits()
PROBLEMS = {
    "softmax": ds.problems.softmax(DIGITS, l2=1e-4),
    "quadratic": ds.problems.quadratic([1.0, 0.2], noise=0.5),
    "logistic": ds.problems.logistic(ds.data.sparse(300, 80, 6, seed=2), l2=1e-3),
}
RATES = {"softmax": [0.3, 2.0], "quadratic": [0.1, 0.5], "logistic": [0.5, 20.0]}
SOFTMAX, SERIAL = PROBLEMS["softmax"], make.serial(0.3)


def truth_of(exact: Run, target: float) -> int | None:
    """Return the first update at or below `target` of a run evaluated after every update."""
    assert exact.history["update"].to_list() == list(range(exact.trace.n_updates + 1))
    met = np.flatnonzero(exact.history["loss"].to_numpy() <= target)
    return int(met[0]) if met.size else None


def assert_right(found: Crossing, truth: int | None, seconds: Callable[[int], float]) -> None:
    """Check that a crossing is the truth to 2 % of the time, or to one update."""
    assert (found.update is None) == (truth is None)
    if found.update is not None and truth is not None:
        assert found.after < truth <= found.update or truth == found.update == 0
        late = seconds(found.update) - seconds(truth)
        assert found.update - truth <= 1 or late <= PRECISION * seconds(truth)


def targets_of(exact: Run) -> list[float]:
    """Return targets on the way down, on the plateau, at the lowest loss, and just missed."""
    losses = exact.history["loss"].to_numpy()
    lowest = float(np.nanmin(losses))
    descent = [float(losses[len(losses) // part]) for part in (10, 3)]
    plateau = float(np.nanquantile(losses[len(losses) // 2 :], 0.02))
    return [*descent, plateau, 1.05 * lowest, lowest, math.nextafter(lowest, -math.inf)]


@pytest.mark.parametrize("fleet", FLEETS)
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_reported_times_are_those_of_runs_evaluated_after_every_update(
    algorithm: str, problem: str, fleet: str
) -> None:
    """The time to a target is known to 2 % or one update, whatever it is, and misses are misses."""
    for rate, seed in zip(RATES[problem], (0, 1), strict=True):
        one, objective = ALGORITHMS[algorithm](rate), PROBLEMS[problem]
        given = {"gradients": 240, "seed": seed}
        run = ds.simulate(one, objective, FLEETS[fleet], evaluations=25, **given)
        exact = ds.simulate(one, objective, FLEETS[fleet], evaluate_every=1, **given)
        for target in targets_of(exact):
            found = find_crossing(run, one, objective, target)
            assert_right(found, truth_of(exact, target), run.seconds_at)
            assert found.update is not None or found.after == run.trace.n_updates


def losses_of(seed: int, n_updates: int) -> np.ndarray:
    """Return losses that fall, and fluctuate with a time of correlation: float64[n + 1]."""
    rng = np.random.default_rng(seed)
    t = np.arange(n_updates + 1) / n_updates
    trend = 0.15 + 2 * np.exp(-t * rng.uniform(2, 15))
    kept = math.exp(-1 / (n_updates / 5) ** rng.uniform())
    steps = rng.standard_normal(3 * n_updates + 1) * math.sqrt(1 - kept**2)
    noise = lfilter([1.0], [1.0, -kept], steps)[2 * n_updates :]
    return trend * np.exp(10 ** rng.uniform(-3, -0.5) * noise * np.exp(-3 * t * rng.integers(2)))


class Counted:
    """Gives known losses, and counts how many were asked for, and how often."""

    def __init__(self, losses: np.ndarray, target: float) -> None:
        self.losses, self.n_evaluations, self.n_rounds = losses, 0, 0
        self.target, self.met = target, len(losses)

    def __call__(self, updates: list[int]) -> Iterator[float]:
        """Give the losses one by one."""
        assert updates == sorted(set(updates))
        self.n_rounds += 1
        for update in updates:
            self.n_evaluations += 1
            assert update < self.met
            self.met = update if self.losses[update] <= self.target else self.met
            yield float(self.losses[update])


def searched(losses: np.ndarray, target: float, points: Iterable[int], most: int) -> Crossing:
    """Search, and check what holds whatever the losses are."""
    counted, n = Counted(losses, target), len(losses)
    known = {int(point): float(losses[point]) for point in points}
    found = search(known, target, counted, np.arange(float(n)), most=most)
    assert counted.n_evaluations <= most
    assert counted.n_rounds <= crossing.ROUNDS
    if found.update is not None:
        assert losses[found.update] <= target
        assert found.after < found.update or found == Crossing(target, 0, 0)
    return found


def holds(found: Crossing, losses: np.ndarray) -> bool:
    """Return whether the interval of a crossing holds the truth."""
    met = np.flatnonzero(losses <= found.target)
    if not met.size:
        return found.update is None
    if found.update is None:
        return found.after < met[0] and found.after < len(losses) - 1
    return found.after < met[0] <= found.update or met[0] == found.update == 0


@pytest.mark.parametrize(("n_updates", "most"), [(900, 5_000), (3_000, 1_000), (30_000, 300)])
def test_the_interval_holds_the_truth_where_losses_fluctuate(n_updates: int, most: int) -> None:
    """Of 100 noisy histories at most one is wrong, also where few evaluations are affordable."""
    points, n_wrong = np.linspace(0, n_updates, 51).astype(int), 0
    for seed in range(100):
        losses = losses_of(seed, n_updates)
        targets = [losses.min(), losses[points].min(), losses[points[seed % 50]], losses[seed]]
        found = searched(losses, float(targets[seed % 4]), points, most)
        n_wrong += not holds(found, losses)
    assert n_wrong <= 1


@settings(deadline=None)
@given(
    losses=st.lists(st.floats(-10, 10) | st.just(math.nan), min_size=2, max_size=300),
    target=st.floats(-10, 10),
    most=st.integers(0, 50),
    every=st.integers(1, 300),
)
def test_a_search_claims_what_it_has_seen(losses: list[float], target: float, most: int, every: int) -> None:
    """Whatever the losses are, an update that is reported meets the target, and few are asked."""
    points = {*range(0, len(losses), every), len(losses) - 1}
    found = searched(np.array(losses), target, sorted(points), most)
    if every == 1:
        assert holds(found, np.array(losses))
        assert most == 0 or found.after in {len(losses) - 1, (found.update or 1) - 1}


@settings(deadline=None)
@given(
    n_updates=st.integers(60, 100_000), speed=st.floats(0.5, 50.0), share=st.floats(0.0, 1.1), most=st.integers(0, 500)
)
def test_smooth_losses_leave_nothing_open(n_updates: int, speed: float, share: float, most: int) -> None:
    """Where losses fall smoothly, the interval always holds the truth, to 2 % if 500 are asked."""
    losses = np.exp(-speed * np.linspace(0, 1, n_updates + 1))
    target, points = float(np.exp(-speed * share)), np.linspace(0, n_updates, 51).astype(int)
    assert holds(searched(losses, target, points, most), losses)
    found = searched(losses, target, points, 500)
    if found.update is not None:
        assert found.update - found.after <= max(1, 1 + PRECISION * found.after + 1)


def test_a_dip_between_two_points_is_found() -> None:
    """A target that was met between two points of the history is not missed."""
    losses = 1.0 + 0.05 * np.random.default_rng(0).standard_normal(401)
    losses[211] = 0.7
    found = searched(losses, 0.75, range(0, 401, 8), 1_000)
    assert found == Crossing(0.75, 211, 210)


def test_what_is_not_affordable_is_open() -> None:
    """Without evaluations the interval begins where the loss first came near, missed or not."""
    losses = np.array([1.0, 1.0, 0.5, 0.5, 0.11, 0.05, 0.11, 0.2, 0.05, 0.05])
    points = [0, 2, 4, 6, 9]
    assert searched(losses, 0.1, points, 0).after <= 4
    assert searched(losses[:8], 0.1, [0, 2, 4, 6, 7], 0).update is None
    assert searched(losses[:8], 0.1, [0, 2, 4, 6, 7], 0).after <= 4


def test_few_points_are_no_reason_to_miss() -> None:
    """A history of two points is evaluated between them before anything is claimed."""
    losses = np.linspace(1.0, 0.2, 1_001)
    losses[500:] += 0.5
    assert searched(losses, 0.65, [0, 1_000], 1_000) == Crossing(0.65, 438, 437)


def forbidden(*_: object, **__: object) -> None:
    """Fail: nothing is to be folded."""
    msg = "folded"
    raise AssertionError(msg)


@pytest.mark.parametrize(
    ("given", "target", "expected"),
    [
        ({"evaluate_every": 1}, 1.0, None),
        ({"evaluations": 4}, 10.0, Crossing(10.0, 0, 0)),
        ({"updates": 1}, 0.0, Crossing(0.0, None, 1)),
    ],
)
def test_what_is_known_is_not_folded(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, int], target: float, expected: Crossing | None
) -> None:
    """A run that was evaluated wherever it matters is not folded again."""
    run = ds.simulate(SERIAL, SOFTMAX, ds.Fleet(1), **{"updates": 60, **given})
    monkeypatch.setattr(simulation, "fold", forbidden)
    found = find_crossing(run, SERIAL, SOFTMAX, target)
    assert found == (expected or run.crossing(target))
    assert run.seconds_at(0) == 0.0


def test_a_history_may_end_before_its_run() -> None:
    """What follows the last point of a history is looked at too."""
    run = ds.simulate(SERIAL, SOFTMAX, ds.Fleet(1), updates=120, evaluations=12)
    cut = replace(run, history=run.history.head(4))
    target = run.history["loss"].to_list()[-3]
    assert find_crossing(cut, SERIAL, SOFTMAX, target) == find_crossing(run, SERIAL, SOFTMAX, target)
    assert find_crossing(cut, SERIAL, SOFTMAX, 0.0) == Crossing(0.0, None, 120)


@pytest.mark.parametrize("target", [math.nan, math.inf, -math.inf])
def test_a_target_is_finite(target: float) -> None:
    """A target that no loss can be compared with is refused."""
    run = ds.simulate(SERIAL, SOFTMAX, ds.Fleet(1), updates=2)
    with pytest.raises(ConfigError, match="target must be finite"):
        find_crossing(run, SERIAL, SOFTMAX, target)


def test_the_algorithm_is_that_of_the_run() -> None:
    """Another algorithm than that of the run is refused, as in a replay."""
    run = ds.simulate(SERIAL, SOFTMAX, ds.Fleet(1), updates=99, evaluations=3)
    with pytest.raises(ConfigError, match=r"learning_rate was 0\.3"):
        find_crossing(run, make.serial(0.2), SOFTMAX, 1.0)


def test_a_run_that_diverges_may_have_met_its_target() -> None:
    """Losses that are not finite hide nothing that came before."""
    quadratic, one = PROBLEMS["quadratic"], make.serial(2.2)
    run = ds.simulate(one, quadratic, ds.Fleet(1), updates=20_000, evaluations=40)
    exact = ds.simulate(one, quadratic, ds.Fleet(1), updates=20_000, evaluate_every=1)
    assert run.status == "diverged"
    for target in (0.6, 0.5, float(np.nanmin(exact.history["loss"])), 0.0):
        truth = np.flatnonzero(exact.history["loss"].to_numpy() <= target)
        found = find_crossing(run, one, quadratic, target)
        assert found.update == (truth[0] if truth.size else None)


def test_a_run_that_ended_at_its_target_met_it_before() -> None:
    """The crossing of a run that a target ended lies at or before its end."""
    given = {"epochs": 8.0, "target": 0.5}
    run = ds.simulate(SERIAL, SOFTMAX, ds.Fleet(1), evaluations=8, **given)
    exact = ds.simulate(SERIAL, SOFTMAX, ds.Fleet(1), evaluate_every=1, **given)
    assert run.status == "target"
    found = find_crossing(run, SERIAL, SOFTMAX, 0.5)
    assert_right(found, exact.trace.n_updates, run.seconds_at)
    assert found.update is not None
    assert found.update < run.trace.n_updates


@pytest.mark.parametrize("manner", [{"partition": ds.Partition("sharded", "reshuffled")}, {"reads": "interleaved"}])
def test_a_run_is_folded_as_it_was(manner: dict[str, object]) -> None:
    """Parts of the data and interleaved reads are those of the run."""
    one, problem = make.downpour(5.0), PROBLEMS["logistic"]
    given = {"updates": 300, "batch": 2, **manner}
    run = ds.simulate(one, problem, FLEETS["machines"], evaluations=10, **given)
    exact = ds.simulate(one, problem, FLEETS["machines"], evaluate_every=1, **given)
    for target in targets_of(exact):
        found = find_crossing(run, one, problem, target, precision=0.0)
        assert found.update == truth_of(exact, target)


def test_a_run_keeps_its_crossings(tmp_path: Path) -> None:
    """Crossings are saved with a run, are not looked for twice, and do not change its hash."""
    run = ds.simulate(SERIAL, SOFTMAX, ds.Fleet(1), updates=200, evaluations=5)
    crossed = with_crossing(with_crossing(run, SERIAL, SOFTMAX, 0.7), SERIAL, SOFTMAX, 1e-9)
    assert with_crossing(crossed, SERIAL, SOFTMAX, 0.7) is crossed
    loaded = ds.load(crossed.save(tmp_path / "run"))
    assert loaded.crossings == crossed.crossings
    assert loaded.hash == run.hash
    assert loaded.crossing(1e-9) == Crossing(1e-9, None, 200)
    first, second = run.crossing(0.7), loaded.crossing(0.7)
    assert first.after <= second.after < second.update < first.update


class DisturbedRun(Disturbance):
    """A live run that loses a worker, and goes on."""

    limit_s = 60.0


def kill_a_worker() -> None:
    """Kill one worker of this process's run."""
    workers = psutil.Process().children(recursive=True)
    next(one for one in workers if one.name() == "worker 1").kill()


@pytest.mark.parametrize("options", [{"shards": 2}, {"staleness": 8}, {"on_loss": "replace"}])
def test_a_live_run_s_crossing_is_found_in_its_order(options: dict[str, object]) -> None:
    """A live run's order tells when it met a target, in wall seconds, to 2 % or one update."""
    one = make.downpour(0.3)
    given = {"workers": 3, "batch": 8, "heartbeat": 5.0, "evaluate_every": 40, **options}
    if "on_loss" in options:
        disturbed = DisturbedRun(kill_a_worker, has_recovered=lambda seen: seen.lost == 1 == seen.alive - 2)
        given |= {"delay": ds.constant(0.002), "watch": disturbed.watch, "stop": disturbed.stop}
        run = ds.launch(one, SOFTMAX, updates=10**9, **given)
        assert {JOIN, LEAVE} <= set(run.trace.rows["verb"].tolist())
    else:
        run = ds.launch(one, SOFTMAX, updates=150, **given)
    exact = ds.replay(run, one, SOFTMAX, evaluate_every=1)
    for target in targets_of(exact):
        found = find_crossing(run, one, SOFTMAX, target)
        assert_right(found, truth_of(exact, target), run.seconds_at)
    last = run.history.row(-1, named=True)
    assert run.seconds_at(last["update"]) == last["wall_seconds"] > 0.0


def test_a_lock_free_run_has_its_history_alone() -> None:
    """Without an order the interval is that of the history, and times are read off it."""
    problem, one = PROBLEMS["logistic"], make.hogwild(0.5)
    config = RunConfig(Budget("updates", 300), batch=1, evaluations=6)
    run = launched(RunRequest(one, problem, LiveFleet("shared_memory", 2), config))
    losses, updates = run.history["loss"].to_list(), run.history["update"].to_list()
    target = losses[3]
    first = next(place for place, loss in enumerate(losses) if loss <= target)
    found = find_crossing(run, one, problem, target)
    assert found == Crossing(target, updates[first], updates[first - 1])
    assert run.seconds_at(updates[first]) == run.history["wall_seconds"][first]
    assert find_crossing(run, one, problem, -1.0) == Crossing(-1.0, None, updates[-1])


def test_evaluations_cost_no_more_than_the_run() -> None:
    """Many evaluations are affordable where they are cheap, or where the run is long."""

    def affordable(problem: Problem, algorithm: Algorithm, **budget: float) -> int:
        run = ds.simulate(algorithm, problem, ds.Fleet(1), evaluations=1, **budget)
        return crossing._affordable(run, problem)

    with patch.object(crossing, "CHEAP", 0.0):
        assert affordable(SOFTMAX, SERIAL, epochs=1) == crossing.LEAST
        assert affordable(PROBLEMS["logistic"], SERIAL, epochs=50) in range(148, 153)
    assert affordable(PROBLEMS["quadratic"], SERIAL, updates=9) == crossing.MOST


class Own(ds.Problem):
    """A problem of a user's own class: half the square of one number."""

    dimension, samples = 1, 4

    def start(self, seed: int) -> np.ndarray:  # noqa: ARG002 # of the contract
        """Return 1."""
        return np.ones(1)

    def loss(self, x: np.ndarray) -> float:
        """Return half the square."""
        return float(x @ x / 2)

    def gradient(self, x: np.ndarray, batch: np.ndarray) -> np.ndarray:  # noqa: ARG002 # all alike
        """Return the point itself."""
        return x + 0.0


def test_a_problem_of_ones_own_has_crossings_too() -> None:
    """The run of a user's class is folded again: 0.5 (1 - 0.1)^2k meets 0.1 at k = 8."""
    algorithm, problem = ds.algorithms.serial(0.1), Own()
    run = ds.simulate(algorithm, problem, ds.Fleet(1), updates=40, batch=1, evaluations=2)
    assert find_crossing(run, algorithm, problem, 0.1).update == 8
