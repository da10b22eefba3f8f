"""Plans: rows in the order of evaluation, waves, and slots for the versions in use."""

import itertools

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import distsgd as ds
from distsgd import algorithms
from distsgd.algorithm import Algorithm, is_memoryless
from distsgd.fold.drivers.plan import Plan, plan, read_rows
from distsgd.kernels.fold.plan import version_slots, waves
from distsgd.order.schedule import schedule
from distsgd.trace import PULL, PUSH, Trace

ALGORITHMS = [
    algorithms.serial(0.1),
    algorithms.synchronous(0.1),
    algorithms.synchronous(0.1, backup=1),
    algorithms.downpour(0.1, n_fetch=2, n_push=3, warm_start=4),
    algorithms.downpour(0.1),
    algorithms.elastic_averaging(0.1, period=2),
]
traces = st.builds(
    lambda algorithm, workers, latency, seed: (
        algorithm,
        schedule(
            algorithm.cycle,
            ds.Fleet(workers=workers, compute=ds.exponential(1.0), latency=latency),
            seed=seed,
            updates=30,
        ),
    ),
    st.sampled_from(ALGORITHMS),
    st.integers(2, 6),
    st.sampled_from([0.0, 0.3]),
    st.integers(0, 1000),
)


def planned(algorithm: Algorithm, trace: Trace) -> Plan:
    """Return the plan at a tenth of an epoch per step."""
    return plan(algorithm, trace, epochs_per_step=0.1)


@given(traces)
@settings(deadline=None)
def test_every_update_is_folded_once(case: tuple[Algorithm, Trace]) -> None:
    """Updates close in order, each with as many pushes as its round has."""
    rows = list(read_rows(planned(*case).rows))
    closing = [row for row in rows if row.members]
    assert [row.version for row in closing] == list(range(30))
    pushes = [row for row in rows if row.verb == PUSH]
    assert sum(row.members for row in closing) == len(pushes)
    assert [row.staleness for row in closing] == case[1].staleness.tolist()


@given(traces)
@settings(deadline=None)
def test_a_schedule_is_plain(case: tuple[Algorithm, Trace]) -> None:
    """Whoever waits for a round waits in every model, so all its orders can be compiled."""
    assert case[1].is_plain
    assert planned(*case).is_plain


@given(traces)
@settings(deadline=None)
def test_rounds_stand_in_worker_order(case: tuple[Algorithm, Trace]) -> None:
    """Between the first push of a round and the one that closes it, workers ascend."""
    open_round: list[int] = []
    for row in read_rows(planned(*case).rows):
        if row.verb != PUSH:
            assert not open_round
            continue
        assert bool(row.first) == (not open_round)
        open_round.append(row.worker)
        if row.members:
            assert open_round == sorted(open_round)
            assert row.members == len(open_round)
            open_round = []


@given(traces)
@settings(deadline=None)
def test_a_worker_takes_its_steps_in_order(case: tuple[Algorithm, Trace]) -> None:
    """The steps before a worker's rows add up to what it has completed, at what it pulled last."""
    taken, held = dict.fromkeys(range(10), 0), dict.fromkeys(range(10), 0)
    for row in read_rows(planned(*case).rows):
        taken[row.worker] += row.steps
        assert taken[row.worker] == row.step
        assert held[row.worker] == row.read
        if row.verb == PULL:
            held[row.worker] = row.version


@given(traces, st.integers(1, 5))
@settings(deadline=None)
def test_waves_need_nothing_from_themselves(case: tuple[Algorithm, Trace], most: int) -> None:
    """No row of a wave takes steps from what the wave itself fixed, and a wave ends if it must."""
    rows = planned(*case).rows
    bounds = waves(rows["worker"], rows["steps"], case[1].workers, most)
    assert bounds[0] == 0
    assert bounds[-1] == len(rows)
    for start, end in itertools.pairwise(bounds):
        seen: set[int] = set()
        for row in read_rows(rows[start:end]):
            assert not (row.steps and row.worker in seen)
            seen.add(row.worker)
        n_stepping = np.count_nonzero(rows["steps"][start:end])
        assert n_stepping <= most
        if end < len(rows):
            following = rows[end]
            assert following["steps"] > 0
            assert following["worker"] in seen or n_stepping == most


@given(traces)
@settings(deadline=None)
def test_slots_are_as_many_as_versions_in_use(case: tuple[Algorithm, Trace]) -> None:
    """A version stays in its slot while a worker holds it, and no update writes where it reads."""
    algorithm, trace = case
    assume(is_memoryless(algorithm))
    rows = planned(algorithm, trace).rows
    slots, places, n_slots = version_slots(rows, trace.workers, trace.n_updates)
    last = {row.read: k for k, row in enumerate(read_rows(rows)) if row.verb == PUSH}
    content, most = {int(places[0]): 0}, 1
    for k, (row, slot) in enumerate(zip(read_rows(rows), slots, strict=True)):
        if row.verb != PUSH:
            assert slot == -1
            continue
        assert content[slot] == row.read
        if row.members:
            before, after = places[row.version], places[row.version + 1]
            assert content[before] == row.version
            assert after not in {slot, before}
            content[after] = row.version + 1
            most = max(most, len({v for v in range(row.version + 1) if last.get(v, -1) >= k} | {row.version}))
    assert n_slots <= most + 1


def test_the_schedule_follows_all_workers_together() -> None:
    """A server's factor counts the gradients of all workers served before an update."""
    algorithm = algorithms.hogwild(0.1, backoff=0.5)
    trace = schedule(algorithm.cycle, ds.Fleet(workers=4), updates=35)
    factors = [row.factor for row in read_rows(planned(algorithm, trace).rows) if row.members]
    assert factors == [0.5 ** (update // 10) for update in range(35)]


def test_nothing_served_is_an_empty_plan() -> None:
    """A trace without updates has no rows to fold."""
    trace = schedule(ALGORITHMS[0].cycle, ds.Fleet(workers=1), updates=5).head(0)
    empty = planned(ALGORITHMS[0], trace)
    assert len(empty.rows) == len(empty.ends) == 0
