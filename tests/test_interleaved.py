from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import distsgd as ds
from distsgd.algorithm import Algorithm
from distsgd.data import from_arrays
from distsgd.errors import ConfigError
from distsgd.fold.drivers.interleaved import steps_of
from distsgd.kernels.fold.interleave import access_time
from distsgd.order.schedule import schedule
from distsgd.problem import Problem
from distsgd.sparse import explicit, sparse_rows

pytestmark = pytest.mark.long

CYCLE = ds.algorithms.hogwild(0.5).cycle
ALGORITHMS = {
    "hogwild": ds.algorithms.hogwild(0.5, backoff=0.7),
    "adaptive_revision": ds.algorithms.adaptive_revision(0.5),
}
PLAIN = ds.algorithms.hogwild(0.25, backoff=1.0)
SPREAD = ds.exponential(1.0)


@pytest.fixture(scope="module")
def thin() -> Problem:
    """Least squares on rows of 6 among 80 features, with a regulariser."""
    return ds.problems.least_squares(ds.data.sparse(300, 80, 6, seed=2), l2=1e-3)


def one_row(features: int) -> Problem:
    """Return (sum of the coordinates - 2)^2 / 2, as one sparse sample."""
    x = explicit(np.ones((1, features)))
    return ds.problems.least_squares(from_arrays(x, [2], test_x=x, test_y=[2]))


def simulate(algorithm: Algorithm, problem: Problem, fleet: ds.Fleet, **changed: object) -> ds.Run:
    """Run with interleaved reads, unless `changed` says otherwise."""
    usual = {"updates": 200, "batch": 1, "seed": 3, "reads": "interleaved"}
    return ds.simulate(algorithm, problem, fleet, **(usual | changed))


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize(("name", "batch"), [("hogwild", 1), ("hogwild", 4), ("adaptive_revision", 4)])
def test_one_core_has_the_bits_of_the_plain_fold(name: str, batch: int, atomic: bool, thin: Problem) -> None:
    """A core that is alone reads what it would have pulled, and nothing of it is lost."""
    fleet = ds.Fleet(workers=1, compute=SPREAD, latency=0.1, service=0.05)
    alone = simulate(ALGORITHMS[name], thin, fleet, batch=batch, atomic=atomic)
    plain = simulate(ALGORITHMS[name], thin, fleet, batch=batch, reads="consistent")
    assert alone.x.tobytes() == plain.x.tobytes()
    assert alone.history.equals(plain.history)
    assert alone.counts["lost"] == 0


@pytest.mark.parametrize("atomic", [True, False])
def test_cores_that_share_no_coordinate_have_the_bits_of_the_plain_fold(atomic: bool) -> None:
    """Where supports are disjoint, it does not matter whose access comes first."""
    x = sparse_rows(np.ones(24), np.arange(24), np.arange(9) * 3, 24)
    problem = ds.problems.least_squares(from_arrays(x, range(8), test=0.0))
    own = {"partition": ds.Partition("sharded"), "updates": 150}
    fleet, algorithm = ds.Fleet(8, SPREAD), ds.algorithms.hogwild(0.125, backoff=1.0)
    apart = simulate(algorithm, problem, fleet, atomic=atomic, **own)
    plain = simulate(algorithm, problem, fleet, reads="consistent", **own)
    assert apart.x.tobytes() == plain.x.tobytes()
    assert apart.counts == {"writes": 450, "lost": 0}


@pytest.mark.jit_off
@pytest.mark.bounds
def test_a_lost_update_by_hand() -> None:
    """Of two changes that load the same value, the one that is stored first is lost."""
    # Steps of 1 s and 1.2 s read at 0.25 and 0.3, load at 0.625 and 0.75, store at 0.875 and 1.05.
    # Both read 0, so both add 0.25 * 2; an atomic change stands at 0.75 and at 0.9.
    assert [access_time(0.0, 1.0, 1, one, False) for one in range(3)] == [0.25, 0.625, 0.875]
    fleet = ds.Fleet(workers=2, speeds=[1.0, 1 / 1.2])
    seen = {}
    for atomic in (True, False):
        run = simulate(PLAIN, one_row(1), fleet, updates=2, evaluate_every=1, atomic=atomic)
        seen[atomic] = run.history["loss"].to_list(), run.x.tolist(), run.counts
    assert seen[True] == ([2.0, 0.5, 0.5], [1.0], {"writes": 2, "lost": 0})
    assert seen[False] == ([2.0, 1.125, 1.125], [0.5], {"writes": 2, "lost": 1})


def test_an_inconsistent_read_by_hand() -> None:
    """A gradient may be taken where no version ever was."""
    # The slow core reads its coordinates at 0.3 s and 0.9 s, the fast one changes them at 0.625 s
    # and 0.875 s: so the slow one reads (0, 0.5) and adds 0.25 * 1.5. Reads of one version would
    # have made it (0, 0) and 0.25 * 2. The second step of the fast core adds 0.25 * 1.
    fleet = ds.Fleet(workers=2, speeds=[1.0, 1 / 2.4])
    torn = simulate(PLAIN, one_row(2), fleet, updates=3)
    plain = simulate(PLAIN, one_row(2), fleet, updates=3, reads="consistent")
    assert torn.x.tolist() == [1.125] * 2
    assert plain.x.tolist() == [1.25] * 2


@pytest.mark.filterwarnings("ignore:.*not the slope of loss")  # it is constant on purpose
@settings(deadline=None, max_examples=15)
@given(st.integers(1, 12), st.integers(0, 100), st.booleans())
def test_what_is_not_lost_is_applied(workers: int, seed: int, atomic: bool) -> None:
    """With a constant gradient the parameters sum up every change that was not lost."""
    x = explicit(np.ones((1, 5)))
    problem = ds.problems.least_squares(from_arrays(x, [1], test_x=x, test_y=[1]))
    steady = replace(problem, sparse=problem.sparse._replace(slope=_constant_slope))
    run = simulate(PLAIN, steady, ds.Fleet(workers, SPREAD), updates=40, seed=seed, atomic=atomic)
    assert run.counts["writes"] == 40 * 5
    assert run.x.sum() / 0.25 == run.counts["writes"] - run.counts["lost"]
    assert run.counts["lost"] == 0 or not atomic


def _constant_slope(margin: float, label: float) -> float:  # noqa: ARG001 # a slope's arguments
    return -1.0


def test_crowded_cores_lose_updates(thin: Problem) -> None:
    """Sixteen cores lose some of their updates, and end elsewhere than atomic ones."""
    crowd = [
        simulate(ALGORITHMS["hogwild"], thin, ds.Fleet(16, SPREAD), updates=1000, atomic=atomic)
        for atomic in (True, False)
    ]
    assert 0 < crowd[1].counts["lost"] < crowd[1].counts["writes"] == crowd[0].counts["writes"]
    assert not np.array_equal(crowd[0].x, crowd[1].x)


def test_a_run_is_kept_and_replayed(thin: Problem, tmp_path: Path) -> None:
    """How reads are taken is in a run's hash, and the run is saved, loaded and replayed with it."""
    runs = [
        simulate(ALGORITHMS["hogwild"], thin, ds.Fleet(8, SPREAD), **changed)
        for changed in ({"reads": "consistent"}, {}, {"atomic": False})
    ]
    assert len({run.hash for run in runs}) == 3
    assert "reads" not in runs[0].settings
    kept = ds.load(runs[2].save(tmp_path / "run"))
    again = ds.replay(kept, ALGORITHMS["hogwild"], thin)
    assert again.x.tobytes() == runs[2].x.tobytes()
    assert again.counts == kept.counts == runs[2].counts


@given(st.floats(0, 1e6), st.floats(0, 10), st.integers(1, 100), st.booleans())
def test_accesses_follow_each_other_inside_their_step(start: float, length: float, n: int, atomic: bool) -> None:
    """The accesses of a step come in their order, none before its start or after its end."""
    accesses = n * (2 if atomic else 3)
    times = [access_time(start, start + length, n, one, atomic) for one in range(accesses)]
    assert times == sorted(times)
    assert start <= times[0]
    assert times[-1] <= start + length


def test_a_step_lasts_from_the_pull_s_return_to_the_push() -> None:
    """Steps are the computing times of a trace: of each worker, in time, as many as its pushes."""
    trace = schedule(CYCLE, ds.Fleet(3, latency=0.25, service=0.125), updates=7)
    steps = steps_of(trace, len(trace.rows))
    assert steps.start.size == 7
    assert (steps.end - steps.start).tolist() == [1.0] * 7
    assert steps.first.tolist() == [0, 3, 5, 7]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"reads": "interleave"}, "unknown reads 'interleave'; did you mean 'interleaved'"),
        ({"driver": "interpreted"}, "interleaved reads are compiled; use driver='auto'"),
        ({"reads": "consistent", "atomic": False}, "atomic=False needs reads='interleaved'"),
        ({"fleet": ds.stale_reads(ds.constant(2.0))}, "interleaved reads need the times of"),
        ({"algorithm": ds.algorithms.synchronous(0.1)}, "use hogwild, or downpour with n_fetch"),
        ({"algorithm": ds.algorithms.downpour(0.1, 2, 2)}, "use hogwild, or downpour with n_fetch"),
        ({"algorithm": ds.algorithms.stale_synchronous(0.1, 1)}, "use hogwild, or downpour with"),
        ({"algorithm": ds.algorithms.elastic_averaging(0.1)}, "use hogwild, or downpour with"),
        ({"problem": ds.problems.quadratic([1.0])}, "every gradient of quadratic touches all"),
    ],
)
def test_what_cannot_interleave_is_refused(changed: dict[str, object], message: str, thin: Problem) -> None:
    """An error says what interleaved reads need, and what to use."""
    usual = {"algorithm": ALGORITHMS["hogwild"], "problem": thin, "fleet": ds.Fleet(2)}
    with pytest.raises(ConfigError, match=message):
        simulate(**(usual | changed))
