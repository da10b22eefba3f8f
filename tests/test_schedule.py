import itertools
import subprocess
import sys
from math import inf
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from random_cycles import cycles
from simple_schedule import simple_schedule

from distsgd.algorithm import Cycle, Pull, Push, Start, Step
from distsgd.errors import ConfigError
from distsgd.kernels.draws.random import READS
from distsgd.order import laws
from distsgd.order import schedule as module
from distsgd.order.fleet import Failures, Fleet, fixed_staleness, stale_reads
from distsgd.order.schedule import schedule
from distsgd.trace import DROP, PULL, PUSH

PLAIN = (Pull(), Step(), Push())
SERIAL = (Start(others_after=inf), *PLAIN)


STARTS = (0, 0, 0, 2, inf)
compute = st.sampled_from(
    [
        laws.constant(1.0),
        laws.exponential(1.0),
        laws.lognormal(1.0, 1.0),
        laws.uniform(0.5, 1.5),
        laws.gamma(1.0, 0.5),
        laws.pareto(1.0, 1.5),
        laws.empirical([1.0, 2.0, 5.0]),
        laws.exponential(1.0).with_stragglers(0.2, 10.0),
    ]
)


@st.composite
def fleets(draw: Any) -> Fleet:  # noqa: ANN401 # hypothesis does not name this type
    """Draw a fleet of up to six workers."""
    workers = draw(st.integers(1, 6))
    each = st.lists(compute, min_size=workers, max_size=workers)
    speeds = st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=workers, max_size=workers)
    return Fleet(
        workers=workers,
        compute=draw(compute | each),
        speeds=draw(st.none() | speeds),
        latency=draw(st.sampled_from([0.0, 0.25, 1.3])),
        bandwidth=draw(st.sampled_from([inf, 10.0])),
        service=draw(st.sampled_from([0.0, 0.1])),
        shards=draw(st.sampled_from([1, 4])),
    )


@st.composite
def cases(draw: Any) -> tuple[Cycle, Fleet]:  # noqa: ANN401 # hypothesis does not name this type
    """Draw a fleet and a cycle that fits its number of workers."""
    fleet = draw(fleets())
    return draw(cycles(fleet.workers, *STARTS)), fleet


@pytest.mark.quick
@pytest.mark.jit_off
@pytest.mark.bounds
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases(), seed=st.integers(0, 2**63 - 1))
def test_compiled_equals_simple(case: tuple[Cycle, Fleet], seed: int) -> None:
    """The compiled schedule has the bits of a simulator of generators and one heap of messages."""
    cycle, fleet = case
    sizes = {"pull_bytes": 3.0, "push_bytes": 5.0}
    try:
        expected = simple_schedule(cycle, fleet, seed, 20, **sizes)
    except ConfigError:
        with pytest.raises(ConfigError, match="no worker can go on"):
            schedule(cycle, fleet, seed=seed, updates=20, **sizes)
        return
    except StopIteration:
        assume(False)  # a worker took more steps than durations were drawn for it
    found = schedule(cycle, fleet, seed=seed, updates=20, **sizes)
    assert found.rows.tolist() == expected.rows.tolist()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases(), seed=st.integers(0, 100), failures=st.sampled_from([None, Failures(2.0, 1.0)]))
def test_every_schedule_verifies(case: tuple[Cycle, Fleet], seed: int, failures: Failures | None) -> None:
    """Any cycle on any fleet gives an order that a server can have served."""
    cycle, fleet = case
    broken = Fleet(fleet.workers, fleet.compute, latency=fleet.latency, failures=failures)
    try:
        trace = schedule(cycle, broken, seed=seed, updates=30)
    except ConfigError:
        assume(False)
    trace.verify()
    assert trace.n_updates == 30
    assert trace.rows["verb"][-1] == PUSH


@settings(deadline=None)
@given(case=cases(), short=st.integers(0, 20))
def test_a_longer_budget_only_adds_rows(case: tuple[Cycle, Fleet], short: int) -> None:
    """The order up to an update does not depend on how many updates follow."""
    cycle, fleet = case
    try:
        long = schedule(cycle, fleet, updates=20)
    except ConfigError:
        assume(False)
    expected = long.head(short).rows
    found = schedule(cycle, fleet, updates=short).rows if short else expected
    assert found.tolist() == expected.tolist()


def test_the_same_seed_gives_the_same_order_in_another_process() -> None:
    """The order is a function of cycle, fleet and seed: another process finds the same bits."""
    program = (
        "from hashlib import sha256\n"
        "from distsgd.algorithm import Pull, Push, Step\n"
        "from distsgd.order.fleet import Fleet\n"
        "from distsgd.order.laws import lognormal\n"
        "from distsgd.order.schedule import schedule\n"
        "fleet = Fleet(7, lognormal(1.0, 0.5), latency=0.1)\n"
        "trace = schedule((Pull(), Step(), Push()), fleet, seed=3, updates=500)\n"
        "print(sha256(trace.rows.tobytes()).hexdigest())\n"
    )
    first, second = (
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout for _ in range(2)
    )
    assert first == second != b""


def test_algorithms_on_one_fleet_see_the_same_machine_times() -> None:
    """Step k of worker w takes the same time under every cycle (common random numbers)."""
    fleet = Fleet(3, laws.lognormal(1.0, 0.5), speeds=[1.0, 2.0, 0.5])
    expected = [fleet.laws[0].sample(5, worker=w, n=400) / fleet.speeds[w] for w in range(3)]
    for cycle in (PLAIN, (Pull(), Step(), Push(quorum=None)), (Pull(4), Push(4), Step())):
        rows = schedule(cycle, fleet, seed=5, updates=60).rows
        for w in range(3):
            mine = rows[rows["worker"] == w]
            for before, after in itertools.pairwise(mine):
                steps = expected[w][before["step"] : after["step"]]
                assert after["sent"] - before["done"] == pytest.approx(sum(steps), abs=1e-9)


def test_failures_disturb_no_other_stream_and_cost_the_unfinished_step() -> None:
    """A failure repeats the step's time up to it and adds the repair; the step's own time stays."""
    steady = Fleet(1, laws.constant(1.0))
    broken = Fleet(1, laws.constant(1.0), failures=Failures(2.0, 10.0))
    times = np.diff(schedule(SERIAL, broken, updates=2000).seconds, prepend=0.0)
    assert np.diff(schedule(SERIAL, steady, updates=5).seconds).tolist() == [1.0] * 4
    failed = times > 1.0
    assert times[~failed] == pytest.approx(1.0)
    assert np.all(times[failed] >= 11.0)
    # P(a step of 1 s is hit) = 1 - exp(-1/2); four standard deviations of 2,000 steps.
    chance = 1 - np.exp(-0.5)
    assert failed.mean() == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / 2000))


def test_a_step_that_fails_begins_again() -> None:
    """With a mean time m to failure, a step of d takes m (exp(d / m) - 1) on average."""
    fleet = Fleet(1, laws.constant(1.0), failures=Failures(2.0, 0.0))
    times = np.diff(schedule(SERIAL, fleet, updates=5000).seconds, prepend=0.0)
    error = 4 * times.std() / np.sqrt(5000)
    assert times.mean() == pytest.approx(2 * (np.exp(0.5) - 1), abs=error)


@pytest.mark.jit_off
@pytest.mark.bounds
def test_two_equal_workers_by_hand() -> None:
    """Two workers, steps of 1 s, latency 0.5 s: the rows worked out with pencil and paper."""
    rows = schedule(PLAIN, Fleet(2, latency=0.5), updates=3).rows
    expected = [  # time, sent, done, worker, verb, step, version, read
        (0.5, 0.0, 1.0, 0, PULL, 0, 0, 0),
        (0.5, 0.0, 1.0, 1, PULL, 0, 0, 0),
        (2.5, 2.0, 2.0, 0, PUSH, 1, 1, 0),
        (2.5, 2.0, 3.0, 0, PULL, 1, 1, 1),
        (2.5, 2.0, 2.0, 1, PUSH, 1, 2, 0),
        (2.5, 2.0, 3.0, 1, PULL, 1, 2, 2),
        (4.5, 4.0, 4.0, 0, PUSH, 2, 3, 1),
    ]
    assert rows.tolist() == expected


def test_messages_share_the_links_and_the_server() -> None:
    """Two pushes at once pass the inbound link, the server and the outbound link one by one."""
    fleet = Fleet(2, bandwidth=10.0, service=0.25)
    rows = schedule(PLAIN, fleet, updates=2, pull_bytes=10.0, push_bytes=20.0).rows
    # Pulls: served at 0.25 and 0.5, replies of 1 s behind each other: in at 1.25 and 2.25.
    assert rows["done"][:2].tolist() == [1.25, 2.25]
    # Pushes: sent at 2.25 and 3.25, 2 s on the link each: in at 4.25 and 6.25; served in 0.25 s.
    pushes = rows[rows["verb"] == PUSH]
    assert pushes["sent"].tolist() == [2.25, 3.25]
    assert pushes["time"].tolist() == [4.5, 6.5]


def test_shards_divide_the_bytes_of_a_link() -> None:
    """With S shards a message takes a link for 1 / S of the time."""
    one = schedule(PLAIN, Fleet(4, bandwidth=40.0), updates=50, pull_bytes=8, push_bytes=8)
    four = schedule(PLAIN, Fleet(4, bandwidth=10.0, shards=4), updates=50, pull_bytes=8, push_bytes=8)
    assert one.rows.tolist() == four.rows.tolist()


def test_a_held_push_waits_for_its_round_and_a_late_one_is_dropped() -> None:
    """Of 3 workers with 1 backup, the last one's gradient is dropped, its pull served at once."""
    fleet = Fleet(3, speeds=[1.0, 0.5, 0.4])
    trace = schedule((Pull(), Step(), Push(quorum=None, backup=1)), fleet, updates=2)
    verbs = [(row["time"], row["worker"], row["verb"], row["version"]) for row in trace.rows[3:]]
    assert verbs == [
        (1.0, 0, PUSH, 0),
        (2.0, 1, PUSH, 1),
        (2.0, 0, PULL, 1),
        (2.0, 1, PULL, 1),
        (2.5, 2, DROP, 1),
        (2.5, 2, PULL, 1),
        (3.0, 0, PUSH, 1),
        (4.0, 1, PUSH, 2),
    ]
    assert trace.n_dropped == 1
    assert trace.gradients.tolist() == [2, 5]


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_no_worker_gets_further_ahead_than_the_bound(bound: int) -> None:
    """SSP: a pull is served only while its worker is at most `bound` pushed steps ahead."""
    trace = schedule((Pull(bound=bound), Step(), Push()), Fleet(5, laws.exponential(1.0)), updates=500)
    pushed = np.zeros(5, int)
    ahead = []
    for row in trace.rows:
        if row["verb"] == PUSH:
            pushed[row["worker"]] = row["step"]
        else:
            ahead.append(pushed[row["worker"]] - pushed.min())
    assert max(ahead) == bound


def test_a_bound_of_0_reads_what_synchronous_workers_read() -> None:
    """SSP with bound 0 is in lockstep: the gradients of round r are read after W r pushes."""
    fleet = Fleet(5, laws.exponential(1.0))
    trace = schedule((Pull(bound=0), Step(), Push()), fleet, updates=100)
    lockstep = schedule((Pull(), Step(), Push(quorum=None)), fleet, updates=20)
    reads = {(row["worker"], row["step"]): row["read"] for row in trace.rows if row["verb"] == PULL}
    rounds = {(row["worker"], row["step"]): row["read"] for row in lockstep.rows if row["verb"] == PULL}
    assert {place: 5 * read for place, read in rounds.items()} == reads


def test_a_warm_start_is_serial_until_its_version() -> None:
    """With Start(v) worker 0 is alone for v updates, then the others begin at that moment."""
    trace = schedule((Start(3), *PLAIN), Fleet(4), updates=20)
    assert trace.staleness[:3].tolist() == [0, 0, 0]
    others = trace.rows[trace.rows["worker"] > 0]
    assert np.all(others["time"] >= trace.seconds[2])
    assert np.count_nonzero(others["time"] == trace.seconds[2]) == 3
    assert set(schedule(SERIAL, Fleet(4), updates=20).rows["worker"]) == {0}


def test_each_budget_ends_where_it_says() -> None:
    """A budget counts updates, gradient steps served, or seconds."""
    cycle, fleet = (Pull(4), Step(), Push(4, quorum=2)), Fleet(4, laws.exponential(1.0))
    updates = schedule(cycle, fleet, updates=7)
    assert updates.n_updates == 7
    gradients = schedule(cycle, fleet, gradients=30)
    assert gradients.steps.sum() == 32
    assert gradients.steps[:-1].sum() == 28
    seconds = schedule(cycle, fleet, seconds=20.0)
    assert seconds.rows["time"][-1] <= 20.0
    longer = schedule(cycle, fleet, seconds=40.0).rows
    assert longer["time"][len(seconds.rows)] > 20.0
    assert longer[: len(seconds.rows)]["time"].tolist() == seconds.rows["time"].tolist()


def test_messages_that_find_no_room_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget whose messages fill the memory on the way is an error of the caller."""

    def no_room(*_: object) -> None:
        raise MemoryError("Allocation failed (probably too large).")

    monkeypatch.setattr(module, "run", no_room)
    with pytest.raises(ConfigError, match="messages of the budget find no room in memory; give a smaller budget"):
        schedule(PLAIN, Fleet(2), updates=10)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "give exactly one of updates, gradients, seconds as the budget, not none"),
        ({"updates": 1, "seconds": 1.0}, "not updates and seconds"),
        ({"updates": 0}, "updates must be a whole number >= 1, not 0"),
        ({"gradients": 1.5}, "gradients must be a whole number >= 1, not 1.5"),
        ({"seconds": 0.0}, "seconds must be > 0 s and finite, not 0.0"),
        ({"seconds": inf}, "seconds must be > 0 s and finite, not inf"),
        ({"updates": 1, "seed": -1}, "seed must be a whole number >= 0, not -1"),
        ({"updates": 1, "push_bytes": -1.0}, "push_bytes must be >= 0 bytes and finite"),
    ],
)
def test_a_budget_that_is_none_is_refused(budget: dict[str, Any], message: str) -> None:
    """Exactly one budget, positive, with a seed and sizes that can be."""
    with pytest.raises(ConfigError, match=message):
        schedule(PLAIN, Fleet(2), **budget)


@pytest.mark.parametrize(
    ("cycle", "fleet", "message"),
    [
        ((Start(inf), Pull(), Step(), Push(quorum=2)), Fleet(2), "no worker can go on after update 0"),
        ((Start(9), Pull(bound=1), Step(), Push()), Fleet(2), "1 of 2 have started"),
        ((Pull(), Step(), Push(quorum=3)), Fleet(2), "quorum must be >= 1 and <= the number"),
        ((Pull(), Step(), Push(quorum=None, backup=2)), Fleet(2), "backup must be <"),
        ((Pull(0), Step(), Push()), Fleet(2), "Pull.every must be a whole number >= 1, not 0"),
        ((Start(float("nan")), *PLAIN), Fleet(2), "Start.others_after must be >= 0"),
        (PLAIN, Fleet(2, laws.gamma(1.0, 1e-5)), "compute must give durations > 0 s"),
        (PLAIN, Fleet(2, laws.pareto(1e308, 1.1)), "compute must give durations > 0 s and finite"),
        (PLAIN, Fleet(2, failures=Failures(0.01, 0.0)), "failures.mean_time must be longer"),
    ],
)
def test_what_cannot_be_scheduled_is_refused(cycle: Cycle, fleet: Fleet, message: str) -> None:
    """A wait without end, or a duration that cannot be computed, is a `ConfigError` and no hang."""
    with pytest.raises(ConfigError, match=message):
        schedule(cycle, fleet, updates=50)


def test_seconds_need_time_that_passes() -> None:
    """A compute time of 0 that is asked for is kept, but a budget of seconds would not end."""
    fleet = Fleet(2, laws.constant(0.0))
    assert schedule(PLAIN, fleet, updates=5).seconds.tolist() == [0.0] * 5
    with pytest.raises(ConfigError, match="seconds needs compute times > 0"):
        schedule(PLAIN, fleet, seconds=1.0)


@pytest.mark.jit_off
@pytest.mark.bounds
@settings(deadline=None)
@given(law=compute, seed=st.integers(0, 100), warm=st.sampled_from([0, 3, inf]))
def test_stale_reads_are_as_stale_as_their_law(law: laws.Law, seed: int, warm: float) -> None:
    """Update u reads version max(v, u - floor(lag)), behind v fresh ones for a warm start."""
    trace = schedule((Start(warm), *PLAIN), stale_reads(law, seed), updates=40)
    trace.verify()
    lags = np.floor(law.sample(seed, READS, 0, 40))
    expected = [0 if u < warm else min(lags[u], u - warm) for u in range(40)]
    assert trace.staleness.tolist() == expected
    assert trace.seconds.tolist() == list(range(1, 41))
    reads = np.arange(40) - trace.staleness
    in_flight = [sum((reads <= update) & (np.arange(40) >= update)) for update in range(40)]
    assert trace.workers == max(in_flight)


def test_constant_stale_reads_are_fixed_staleness() -> None:
    """A constant lag tau gives the order of tau + 1 equal workers, but for the clock."""
    for tau in (0, 1, 5):
        sampled = schedule(PLAIN, stale_reads(laws.constant(float(tau))), updates=50)
        fixed = schedule(PLAIN, fixed_staleness(tau), updates=50)
        kept = ["worker", "verb", "step", "version", "read"]
        served = fixed.rows[kept].tolist()
        # The fixed order ends with pulls of gradients that are not pushed; sampled reads all are.
        n = len(sampled.rows) - sampled.workers * 2
        assert sampled.rows[kept].tolist()[:n] == served[:n]
        assert sampled.workers == fixed.workers == tau + 1


@pytest.mark.parametrize(
    "cycle",
    [
        (Pull(2), Step(), Push()),
        (Pull(bound=1), Step(), Push()),
        (Pull(), Step(), Push(2)),
        (Pull(), Step(), Push(quorum=None)),
        (Pull(), Push(), Step()),
    ],
)
def test_stale_reads_refuse_other_cycles(cycle: Cycle) -> None:
    """An order without machines has no periods, rounds or bounds: the error says what has."""
    with pytest.raises(ConfigError, match="use fixed_staleness"):
        schedule(cycle, stale_reads(laws.constant(1.0)), updates=5)
