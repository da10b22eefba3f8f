"""Simulate and replay: budgets, points of evaluation, and how a run ends."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import threadpoolctl

import distsgd as ds
from distsgd import algorithms
from distsgd.errors import ConfigError, TraceError
from distsgd.fold.history import Point, history, message_bytes
from distsgd.problem import Problem
from distsgd.run import Run
from distsgd.trace import PUSH, Trace

FLEET = ds.Fleet(workers=4, compute=ds.exponential(1.0))
QUADRATIC = ds.problems.quadratic([1.0, 0.5], noise=0.1)


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Softmax on digits."""
    return ds.problems.softmax(ds.data.digits())


def test_an_epoch_is_shared_by_all_workers(problem: Problem) -> None:
    """Two epochs are two passes of all workers together, not of each worker."""
    run = ds.simulate(algorithms.downpour(0.1), problem, FLEET, epochs=2, batch=32)
    last = run.history.row(-1, named=True)
    assert last["gradients"] == int(np.ceil(2 * problem.samples / 32))
    assert last["epoch"] == last["gradients"] * 32 / problem.samples


@pytest.mark.parametrize(
    ("budget", "column", "reached"),
    [({"updates": 37}, "update", 37), ({"gradients": 41}, "gradients", 41)],
    ids=["updates", "gradients"],
)
def test_a_budget_is_spent_exactly(budget: dict[str, int], column: str, reached: int) -> None:
    """A run ends with the update that spends its budget."""
    run = ds.simulate(algorithms.downpour(0.1), QUADRATIC, FLEET, **budget)
    assert run.history[column][-1] == reached
    assert run.status == "done"


def test_synchronous_gradients_count_every_worker() -> None:
    """An update of synchronous SGD costs W gradients, dropped ones included."""
    run = ds.simulate(algorithms.synchronous(0.1), QUADRATIC, FLEET, updates=10, evaluate_every=1)
    assert run.history["gradients"].to_list() == list(range(0, 44, 4))


def test_time_ends_before_its_budget() -> None:
    """With a budget of seconds, every update was applied by then."""
    run = ds.simulate(algorithms.downpour(0.1), QUADRATIC, FLEET, seconds=12.5)
    assert run.trace.n_updates > 0
    assert run.trace.seconds[-1] <= 12.5


def test_the_history_says_when_each_update_was_applied() -> None:
    """Seconds are the virtual time of the update; the starting point has time 0."""
    run = ds.simulate(algorithms.downpour(0.1), QUADRATIC, FLEET, updates=30, evaluate_every=7)
    updates = run.history["update"].to_numpy()
    assert updates.tolist() == [0, 7, 14, 21, 28, 30]
    np.testing.assert_array_equal(run.history["seconds"][1:], run.trace.seconds[updates[1:] - 1])
    assert run.history["seconds"][0] == 0.0


def test_evaluations_are_equally_spaced_in_gradients() -> None:
    """Algorithms with other numbers of updates are seen after the same numbers of gradients."""
    seen = [
        ds.simulate(algorithm, QUADRATIC, FLEET, gradients=400, evaluations=10).history["gradients"]
        for algorithm in (algorithms.downpour(0.1), algorithms.synchronous(0.1))
    ]
    assert seen[0].to_list() == seen[1].to_list() == list(range(0, 440, 40))


def test_a_target_ends_the_run_at_a_point_of_its_history() -> None:
    """The run ends where the loss was first seen at the target, and its trace ends there too."""
    run = ds.simulate(
        algorithms.serial(0.1), ds.problems.quadratic([1.0]), FLEET, updates=500, evaluate_every=5, target=0.01
    )
    losses = run.history["loss"].to_numpy()
    assert run.status == "target"
    assert losses[-1] <= 0.01 < losses[-2]
    assert run.trace.n_updates == run.history["update"][-1] < 500


@pytest.mark.parametrize("driver", ["interpreted", "compiled"])
def test_divergence_is_a_result(driver: str) -> None:
    """A run whose numbers are not finite says at which update that was seen, and keeps the rest."""
    run = ds.simulate(
        algorithms.serial(3.0), ds.problems.quadratic([1.0]), FLEET, updates=5000, evaluate_every=100, driver=driver
    )
    assert run.status == "diverged"
    assert run.diverged_at == run.history["update"][-1] == run.trace.n_updates < 5000
    assert np.isfinite(run.history["loss"].to_numpy()[:-1]).all()
    assert not np.isfinite(run.history["loss"][-1])


def test_a_caller_that_asks_to_stop_gets_the_run_so_far() -> None:
    """`stop` is asked at points of evaluation; the run until there is whole."""
    answers = iter([False, False, True])
    run = ds.simulate(
        algorithms.serial(0.1), QUADRATIC, FLEET, updates=50, evaluate_every=10, stop=lambda: next(answers)
    )
    whole = ds.simulate(algorithms.serial(0.1), QUADRATIC, FLEET, updates=20, evaluate_every=10)
    assert run.status == "stopped"
    assert np.array_equal(run.x, whole.x)
    assert run.history.equals(whole.history)


def test_evaluation_stands_outside_the_clock() -> None:
    """However often a run is looked at, its virtual time is the same."""
    often, seldom = (
        ds.simulate(algorithms.downpour(0.1), QUADRATIC, FLEET, updates=40, evaluate_every=every) for every in (1, 40)
    )
    assert np.array_equal(often.trace.rows, seldom.trace.rows)
    assert often.history["seconds"][-1] == seldom.history["seconds"][-1]


@pytest.mark.parametrize(
    "algorithm",
    [
        algorithms.downpour(0.1, n_fetch=2),
        algorithms.synchronous(0.1, backup=1),
        algorithms.elastic_averaging(0.1, period=3),
        algorithms.hogwild(0.1),
    ],
    ids=lambda algorithm: algorithm.name,
)
def test_a_replay_has_the_bits_of_the_run(algorithm: object, problem: Problem) -> None:
    """Folding a recorded order again gives the same parameters and history."""
    run = ds.simulate(algorithm, problem, FLEET, updates=50, batch=4, seed=5, evaluations=3)
    again = ds.replay(run, algorithm, problem, driver="compiled")
    assert np.array_equal(again.x, run.x)
    assert again.history.equals(run.history)
    alone = ds.replay(run.trace, algorithm, problem, batch=4, seed=5)
    assert np.array_equal(alone.x, run.x)


def test_a_replay_of_something_else_is_refused() -> None:
    """Another algorithm, another problem, a bare trace or a broken one cannot be replayed."""
    run = ds.simulate(algorithms.downpour(0.1), QUADRATIC, FLEET, updates=10)
    with pytest.raises(ConfigError, match=r"one, whose hyper.learning_rate was 0\.1, not 0\.2"):
        ds.replay(run, algorithms.downpour(0.2), QUADRATIC)
    with pytest.raises(ConfigError, match=r"the problem .* one, whose noise was 0\.1, not 0\.0"):
        ds.replay(run, algorithms.downpour(0.1), ds.problems.quadratic([1.0, 0.5]))
    with pytest.raises(ConfigError, match="does not know its batch and its seed"):
        ds.replay(run.trace, algorithms.downpour(0.1), QUADRATIC)
    rows = run.trace.rows.copy()
    rows["worker"][np.flatnonzero(rows["verb"] == PUSH)[3]] = 99
    with pytest.raises((TraceError, ConfigError), match="99"):
        ds.replay(Trace(rows, 4), algorithms.downpour(0.1), QUADRATIC, batch=32, seed=0)


def live(algorithm: object, problem: Problem, updates: tuple[int, ...] = (0, 3, 10)) -> Run:
    """Return a run as a launcher on this machine makes it, looked at after `updates`."""
    run = ds.simulate(algorithm, problem, FLEET, updates=10, evaluate_every=1, batch=4)
    known = run.settings | {"fleet": {"kind": "local", "workers": 4}, "evaluate_every": None}
    found = run.history.select(Point._fields[:-1]).rows()
    points = [Point(*found[update]) for update in updates]
    return replace(run, settings=known, history=history(algorithm, problem, run.trace, points, known))


def test_virtual_and_wall_time_never_share_a_column() -> None:
    """A simulation has no wall seconds, a live run and its replay no virtual ones."""
    algorithm = algorithms.downpour(0.1)
    run, simulated = live(algorithm, QUADRATIC), ds.simulate(algorithm, QUADRATIC, FLEET, updates=9)
    assert simulated.history["wall_seconds"].is_nan().all()
    assert simulated.history["seconds"].is_not_nan().all()
    for one in (run, ds.replay(run, algorithm, QUADRATIC)):
        assert one.history["seconds"].is_nan().all()
        assert one.history["wall_seconds"].to_list() == [0.0, *run.trace.seconds[[2, 9]]]


def test_a_live_run_is_replayed_where_it_was_looked_at(problem: Problem) -> None:
    """Without other wishes a replay has the points, the status and the bits of the run."""
    algorithm = algorithms.synchronous(0.1)
    run = replace(live(algorithm, problem, (0, 3, 7)), status="stopped", source={"folder": "/"})
    again = ds.replay(run, algorithm, problem)
    assert again.history.head(3).equals(run.history, null_equal=True)
    assert again.history["update"].to_list() == [0, 3, 7, 10]
    assert (again.status, again.source) == ("stopped", {"folder": "/"})
    assert np.array_equal(again.x, run.x)


def test_a_replay_says_where_it_parts_from_the_run(problem: Problem) -> None:
    """The first evaluation that differs is named with its neighbour, else the first coordinate."""
    algorithm = algorithms.downpour(0.1)
    run = live(algorithm, problem)
    wrong = pl.when(pl.col("update") == 3).then(0.5).otherwise(pl.col("test_loss"))
    other = replace(run, history=run.history.with_columns(wrong.alias("test_loss")))
    with pytest.raises(TraceError, match=r"at update 3 test_loss is .*, and was 0.5; they"):
        ds.replay(other, algorithm, problem)
    x = run.x.copy()
    x[7], x[11] = np.nextafter(x[7], 1.0), np.nan
    where = "final parameters differ in 2 of 650 coordinates, first at coordinate 7: "
    with pytest.raises(TraceError, match=f"the history is equal up to update 10, but the {where}"):
        ds.replay(replace(run, x=x), algorithm, problem)
    with pytest.raises(TraceError, match=f"from the run: the {where}"):
        ds.replay(replace(run, x=x), algorithm, problem, evaluate_every=5)
    other = replace(run, x=x, versions=run.versions | {"numpy": "1.0"})
    with pytest.raises(TraceError, match=r"\(it was made with numpy 1.0, now "):
        ds.replay(other, algorithm, problem)


def test_a_run_that_diverged_is_replayed_to_its_end() -> None:
    """The replay ends as the run did, and one NaN is as good as another."""
    algorithm, problem = algorithms.serial(3.0), ds.problems.quadratic([1.0])
    run = ds.simulate(algorithm, problem, FLEET, updates=1500, evaluate_every=1500)
    assert np.isnan(run.x).any()
    again = ds.replay(replace(run, x=np.copysign(run.x, -run.x)), algorithm, problem)
    assert (again.status, again.diverged_at) == ("diverged", run.diverged_at)


def test_a_run_without_order_or_of_another_version_is_not_replayed() -> None:
    """A lock-free run, and one of another distsgd, are refused with what to do instead."""
    algorithm, run = algorithms.downpour(0.1), live(algorithms.downpour(0.1), QUADRATIC)
    lock_free = run.settings | {"fleet": {"kind": "shared_memory", "workers": 2}}
    sentence = "a lock-free run cannot be replayed, because no server served its workers"
    with pytest.raises(ConfigError, match=sentence):
        ds.replay(replace(run, settings=lock_free), algorithm, QUADRATIC)
    old = run.versions | {"distsgd": "0.0.1"}
    with pytest.raises(ConfigError, match=r"made by distsgd 0.0.1, .* this one, \d.*make it again"):
        ds.replay(replace(run, versions=old), algorithm, QUADRATIC)


def test_a_live_run_is_replayed_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of a linear-algebra library have the order that they had in a live worker."""
    algorithm, run = algorithms.downpour(0.1), live(algorithms.downpour(0.1), QUADRATIC)
    threads, evaluate = set(), type(QUADRATIC).gradients

    def watched(self: Problem, xs: np.ndarray, batches: np.ndarray) -> np.ndarray:
        threads.update(pool["num_threads"] for pool in threadpoolctl.threadpool_info())
        return evaluate(self, xs, batches)

    monkeypatch.setattr(type(QUADRATIC), "gradients", watched)
    with threadpoolctl.threadpool_limits(2):
        ds.replay(run, algorithm, QUADRATIC)
    assert threads == {1}


def test_a_budget_below_one_update_leaves_the_starting_point() -> None:
    """Where no round has closed when the budget is spent, the history is its first point."""
    with pytest.warns(ds.DistsgdWarning, match="3 gradients is less than one for each of 4"):
        run = ds.simulate(algorithms.synchronous(0.1), QUADRATIC, FLEET, gradients=3)
    assert run.history["update"].to_list() == [0]
    assert np.array_equal(run.x, QUADRATIC.start(0))


def test_the_history_counts_the_bytes_of_all_messages() -> None:
    """Bytes are those of the pulls and pushes that were served up to an update."""
    run = ds.simulate(algorithms.downpour(0.1), QUADRATIC, FLEET, updates=30, evaluate_every=10)
    served = run.trace.rows[: run.trace.closing[19] + 1]
    assert run.history["bytes"][2] == len(served) * 8 * 2
    assert run.history["bytes"][0] == 0.0


def test_messages_weigh_the_columns_that_are_sent() -> None:
    """A pull and a push carry 8 bytes per coordinate and column, sparse ones those of a support."""
    revision = algorithms.adaptive_revision(0.1)
    assert message_bytes(revision, QUADRATIC, 32) == (8 * 2 * 2, 8 * 2 * 2)
    assert message_bytes(algorithms.elastic_averaging(0.1), QUADRATIC, 32) == (16, 16)
    thin = ds.problems.logistic(ds.data.sparse(200, 1000, 5))
    pulled, pushed = message_bytes(revision, thin, 1)
    assert pulled == pushed == pytest.approx(5 * (8 * 2 + 4))
    assert message_bytes(algorithms.elastic_averaging(0.1), thin, 1) == (8000, 8000)


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({}, "exactly one of updates, gradients, epochs, seconds"),
        ({"updates": 5, "epochs": 1}, "exactly one"),
        ({"updates": 0}, "updates must be"),
        ({"epochs": -1}, "epochs must be"),
        ({"epochs": float("nan")}, "epochs must be"),
        ({"updates": 5, "batch": 0}, "batch must be"),
        ({"updates": 5, "seed": -1}, "seed must be"),
        ({"updates": 5, "evaluate_every": 0}, "evaluate_every must be"),
        ({"updates": 5, "evaluations": 0}, "evaluations must be"),
        ({"updates": 5, "evaluate_every": 1, "evaluations": 1}, "not both"),
        ({"updates": 5, "target": "low"}, "target must be a number"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(changed: dict[str, object], names: str) -> None:
    """Each argument outside its bounds is named with its bound, before anything is computed."""
    with pytest.raises(ConfigError, match=names):
        ds.simulate(algorithms.serial(0.1), QUADRATIC, FLEET, **changed)


@pytest.mark.parametrize(
    ("algorithm", "fleet", "names"),
    [("downpour", FLEET, "algorithm must be"), (algorithms.serial(0.1), 8, "fleet must be")],
    ids=["algorithm", "fleet"],
)
def test_a_name_or_a_number_is_no_value(algorithm: object, fleet: object, names: str) -> None:
    """What is not an algorithm or a fleet at all is answered with an example of one."""
    with pytest.raises(ConfigError, match=names):
        ds.simulate(algorithm, QUADRATIC, fleet, updates=5)


def test_too_many_backups_are_refused() -> None:
    """A quorum that a fleet cannot fill is named with the fleet's workers."""
    with pytest.raises(ConfigError, match="backup must be < the number of workers \\(4\\), not 4"):
        ds.simulate(algorithms.synchronous(0.1, backup=4), QUADRATIC, FLEET, updates=5)


def test_a_replay_may_be_evaluated_elsewhere() -> None:
    """Points of evaluation that are asked for take the place of those of the run."""
    problem, algorithm = ds.problems.quadratic([1.0], noise=0.1), ds.algorithms.downpour(0.1)
    run = ds.simulate(algorithm, problem, ds.Fleet(2), updates=20, evaluations=4)
    again = ds.replay(run, algorithm, problem, evaluate_every=1)
    assert again.history["update"].to_list() == list(range(21))
    assert again.x.tobytes() == run.x.tobytes()
    assert len(ds.replay(again, algorithm, problem, evaluations=2).history) == 3
