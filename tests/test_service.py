import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from random_cycles import cycles

from distsgd import algorithms
from distsgd.algorithm import Algorithm, Cycle, Pull, Push, Start, Step, verb
from distsgd.errors import ConfigError, WireError
from distsgd.live.messages.wire import REQUESTS, Header, Kind
from distsgd.live.options import LiveFleet
from distsgd.live.server.config import ServiceConfig
from distsgd.live.server.decisions import Action, Decision
from distsgd.live.server.service import Service
from distsgd.live.server.staleness import DRAWS, InjectedStaleness
from distsgd.order import laws
from distsgd.order.budget import Limits
from distsgd.order.fleet import Fleet
from distsgd.order.schedule import schedule
from distsgd.rules.cycle import SyncProtocol
from distsgd.trace import DROP, JOIN, LEAVE, PULL, PUSH, Trace

SEED = 5
EXACT = ["worker", "verb", "step", "version", "read"]
NAMES = {Action.PULL: "values", Action.RELEASE: "taken", Action.JOIN: "welcome"}


def service_of(
    cycle: Cycle, workers: int, *, staleness: int | laws.Law | None = None, shrinks: bool = False, **budget: float
) -> Service:
    """Return the service of a plain algorithm with another cycle."""
    algorithm = algorithms.downpour(0.1)._replace(cycle=cycle)
    fleet = LiveFleet("local", workers, staleness=staleness, on_loss="shrink" if shrinks else "replace")
    return Service(ServiceConfig.of(algorithm, fleet, Limits(**budget), 0.01, SEED))


class Fake:
    """A worker that sends what its cycle says, as soon as it is let."""

    def __init__(self, number: int, cycle: Cycle, workers: int) -> None:
        self.number, self.sync = number, SyncProtocol.of(cycle, workers)
        self.sequence = 0
        self.waits = True
        self.due: list[Kind] = [Kind.JOIN]
        self.step = 0

    def request(self, now: float) -> Header:
        """Return the next request."""
        self.sequence += 1
        kind = self.due.pop(0)
        self.waits = kind in {Kind.JOIN, Kind.PULL, Kind.EXCHANGE} or self.sync.waits
        step = 0 if kind == Kind.JOIN else self.step
        if not self.waits and not self.due:
            self.go_on()
        return Header(kind, self.number, sequence=self.sequence, step=step, sent=now, resumed=now)

    def hear(self, decision: Decision) -> None:
        """Take a reply."""
        if decision.action in {Action.START, Action.JOIN}:
            self.step, self.waits = decision.step, False
            self.due = list(REQUESTS[self.sync.due(self.step, is_first=True)])
            if not self.due:
                self.go_on()
        elif decision.sequence == self.sequence and self.waits:
            self.waits = False
            if not self.due:
                self.go_on()

    def go_on(self) -> None:
        """Take steps until something is due."""
        self.step = self.sync.next_due(self.step)
        self.due = list(REQUESTS[self.sync.due(self.step, is_first=False)])


REPLIES = {Action.START, Action.JOIN, Action.PULL, Action.RELEASE}


def tell(fakes: list[Fake], decisions: list[Decision]) -> None:
    """Let workers hear what has been decided for them."""
    for decision in decisions:
        if decision.action in REPLIES:
            fakes[decision.worker].hear(decision)


compute = st.sampled_from([laws.constant(1.0), laws.exponential(1.0), laws.uniform(0.5, 1.5)])


@st.composite
def cases(draw: Any) -> tuple[Cycle, Fleet]:  # noqa: ANN401 # hypothesis does not name this type
    """Draw a fleet and a cycle that fits its number of workers."""
    workers = draw(st.integers(1, 5))
    fleet = Fleet(workers, draw(compute), latency=draw(st.sampled_from([0.0, 0.3])))
    return draw(cycles(workers, 0, 0, 0, 2)), fleet


def served_again(cycle: Cycle, trace: Trace, **budget: float) -> Service:
    """Send what the workers of a trace sent, in the order of service."""
    service = service_of(cycle, trace.workers, **budget)
    fakes = [Fake(w, cycle, trace.workers) for w in range(trace.workers)]
    for fake in fakes:
        tell(fakes, service.serve(fake.request(0.0), 0.0))
    for number, row in enumerate(trace.rows):
        if service.rows.n <= number:
            tell(fakes, service.serve(fakes[row["worker"]].request(row["sent"]), row["time"]))
    return service


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100)
@given(case=cases(), seed=st.integers(0, 1000))
def test_messages_of_a_schedule_are_served_as_there(case: tuple[Cycle, Fleet], seed: int) -> None:
    """What the workers of a simulation send is served in the rows of the simulation."""
    cycle, fleet = case
    try:
        trace = schedule(cycle, fleet, seed=seed, updates=20)
    except ConfigError:
        assume(False)
    service = served_again(cycle, trace, updates=20)
    assert service.rows.since(0)[EXACT].tolist() == trace.rows[EXACT].tolist()
    assert service.is_over


@pytest.mark.parametrize(
    "algorithm",
    [
        algorithms.synchronous(0.1),
        algorithms.synchronous(0.1, backup=2),
        algorithms.downpour(0.1),
        algorithms.downpour(0.1, 2, 3, warm_start=3),
        algorithms.adaptive_revision(0.1),
        algorithms.elastic_averaging(0.1, period=2),
        algorithms.stale_synchronous(0.1, bound=1),
    ],
    ids=lambda algorithm: f"{algorithm.name}-{algorithm.cycle}",
)
def test_every_algorithm_is_served_as_in_its_schedule(algorithm: Algorithm) -> None:
    """For each algorithm of the registry that a server serves, the rows are the schedule's."""
    fleet = Fleet(4, laws.lognormal(1.0, 1.0), latency=0.1)
    trace = schedule(algorithm.cycle, fleet, seed=3, gradients=60)
    service = served_again(algorithm.cycle, trace, gradients=60)
    assert service.rows.since(0)[EXACT].tolist() == trace.rows[EXACT].tolist()
    assert service.is_over
    Trace(service.rows.since(0), 4).verify()


def drive(
    service: Service, cycle: Cycle, workers: int, picks: list[int], kills: set[int], *, replace: bool
) -> list[Fake]:
    """Let workers send in a random order; kill one at each of `kills`, and replace it later."""
    fakes = [Fake(w, cycle, workers) for w in range(workers)]
    dead: dict[int, int] = {}
    now = 0.0
    for turn, pick in enumerate(picks):
        now += 0.5
        for worker in [w for w, since in dead.items() if replace and turn >= since + 3]:
            tell(fakes, service.admit(worker, 77, now))
            fakes[worker] = Fake(worker, cycle, workers)
            del dead[worker]
        alive = [fake for fake in fakes if fake.number not in dead]
        if turn in kills and len(alive) > 1:
            gone = alive[pick % len(alive)].number
            tell(fakes, service.leave(gone, now))
            dead[gone] = turn
            continue
        ready = [fake for fake in alive if fake.due and not (fake.waits and fake.sequence)]
        if ready and not service.is_over:
            tell(fakes, service.serve(ready[pick % len(ready)].request(now - 0.2), now))
    return [fake for fake in fakes if fake.number not in dead]


STUCK = (Start(2), Push(2, quorum=None, backup=1), Step(), Pull(bound=0)), Fleet(2)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100)
@example(case=STUCK, picks=[0] * 20, kills={3}, replace=True)  # a bound and a warm start waited for each other
@given(
    case=cases(),
    picks=st.lists(st.integers(0, 999), min_size=20, max_size=80),
    kills=st.sets(st.integers(0, 60), max_size=4),
    replace=st.booleans(),
)
def test_deaths_never_stop_the_others(
    case: tuple[Cycle, Fleet], picks: list[int], kills: set[int], *, replace: bool
) -> None:
    """Whichever workers die, the trace verifies and one can go on, replaced or alone."""
    cycle, fleet = case
    workers = fleet.workers
    # a round and a bound can wait for each other, in any engine
    assume(verb(cycle, Pull).bound is None or verb(cycle, Push).quorum_of(workers) == 1)
    try:
        schedule(cycle, fleet, updates=30)
    except ConfigError:
        assume(False)
    service = service_of(cycle, workers, shrinks=not replace)
    kills = {turn for turn in kills if turn < len(picks)}  # behind them lost workers are replaced
    picks = [*picks, *[0] * (8 * replace)]
    alive = drive(service, cycle, workers, picks, kills, replace=replace)
    Trace(service.rows.since(0), workers).verify()
    assert any(fake.due and not (fake.waits and fake.sequence) for fake in alive)


@settings(deadline=None, max_examples=50)
@given(
    picks=st.lists(st.integers(0, 999), min_size=30, max_size=60),
    law=st.sampled_from([0, 3, laws.exponential(2.0)]),
    kills=st.sets(st.integers(0, 60)),
)
def test_lags_are_those_of_the_law(
    picks: list[int],
    law: Any,  # noqa: ANN401 # a law or a number
    kills: set[int],
) -> None:
    """Each pull reads the version its lag ago, or version 0, and the trace says so."""
    cycle = (Pull(), Step(), Push())
    staleness = InjectedStaleness(law, SEED, 3)
    service = service_of(cycle, 3, staleness=law)
    drive(service, cycle, 3, picks, kills, replace=True)
    rows = service.rows.since(0)
    Trace(rows, 3).verify()
    for worker in range(3):
        own = rows[(rows["worker"] == worker) & (rows["verb"] == PULL)]
        expected = [max(0, row["version"] - staleness.lag_of(worker, n)) for n, row in enumerate(own)]
        assert own["read"].tolist() == expected


def test_a_lag_is_drawn_from_its_stream() -> None:
    """Lags are the law's draws rounded down, at most the longest of those that are looked at."""
    law = laws.exponential(4.0)
    staleness = InjectedStaleness(law, seed=1, workers=2)
    drawn = np.floor(law.sample(1, 3, 1, 3 * DRAWS))
    assert [staleness.lag_of(1, n) for n in range(3 * DRAWS)] == np.minimum(drawn, staleness.longest).tolist()
    assert staleness.longest >= drawn[:DRAWS].max()


def test_an_unexpected_request_is_refused() -> None:
    """What is not next in a worker's cycle is an error that names both, and changes nothing."""
    cycle = (Pull(), Step(), Push())
    service = service_of(cycle, 2)
    with pytest.raises(WireError, match="worker 1 sent pull at step 0 where join was expected"):
        service.serve(Header(Kind.PULL, 1), 0.0)
    service.serve(Header(Kind.JOIN, 1, sequence=1), 0.0)
    service.serve(Header(Kind.PULL, 1, sequence=2), 0.0)
    for kind, step in ((Kind.PUSH, 1), (Kind.EXCHANGE, 2), (Kind.PULL, 1)):
        found = f"sent {kind.name.lower()} at step {step} where exchange at step 1 was expected"
        with pytest.raises(WireError, match=found):
            service.serve(Header(kind, 1, sequence=3, step=step), 0.0)
    assert service.rows.n == 1


def test_a_lost_push_stays_in_its_round() -> None:
    """Where workers shrink, a round closes with the push of one that died and all that can come."""
    cycle = (Pull(), Step(), Push(quorum=None))
    service = service_of(cycle, 3, shrinks=True)
    fakes = [Fake(w, cycle, 3) for w in range(3)]
    for fake, _ in itertools.product(fakes, range(2)):
        tell(fakes, service.serve(fake.request(0.0), 0.0))
    tell(fakes, service.serve(fakes[0].request(1.0), 1.0))
    service.leave(0, 2.0)
    tell(fakes, service.serve(fakes[2].request(3.0), 3.0))
    assert service.version == 0  # the second worker can still come
    decisions = service.leave(1, 4.0)
    assert [one.action for one in decisions[:2]] == [Action.LEAVE, Action.CLOSE]
    rows = service.rows.since(0)
    assert rows["verb"].tolist()[-5:] == [PUSH, LEAVE, PUSH, LEAVE, PULL]
    assert rows["version"].tolist()[-5:] == [0, 0, 0, 1, 1]
    Trace(rows, 3).verify()


def test_a_late_push_is_dropped_and_answered() -> None:
    """A push whose round has closed is a DROP row, and its worker goes on with the pull behind."""
    service = service_of((Pull(), Step(), Push(quorum=None, backup=1)), 2)
    fakes = [Fake(w, (Pull(), Step(), Push(quorum=None, backup=1)), 2) for w in range(2)]
    for _, fake in itertools.product(range(3), fakes):
        tell(fakes, service.serve(fake.request(0.0), 0.0))
    rows = service.rows.since(0)
    assert rows["verb"].tolist() == [PULL, PULL, PUSH, PULL, DROP, PULL]


def test_a_worker_that_begins_again_joins() -> None:
    """A second join of a worker is a row, with the model as it is and the steps it had."""
    cycle = (Pull(), Step(), Push())
    service = service_of(cycle, 1)
    fake = Fake(0, cycle, 1)
    for _ in range(4):
        tell([fake], service.serve(fake.request(0.0), 0.0))
    again = Fake(0, cycle, 1)
    (decision,) = service.serve(again.request(1.0), 1.0)
    assert (decision.action, decision.version, decision.step) == (Action.JOIN, 2, 2)
    assert service.rows.since(0)["verb"][-1] == JOIN


@settings(deadline=None, max_examples=50)
@given(clocks=st.lists(st.tuples(*[st.floats(0.0, 100.0)] * 3), min_size=10, max_size=40), case=cases())
def test_clocks_that_lie_are_put_right(clocks: list[tuple[float, float, float]], case: tuple[Cycle, Fleet]) -> None:
    """Whatever times peers claim, none sends before it goes on, or later than now."""
    cycle, fleet = case
    service = service_of(cycle, fleet.workers)
    fakes = [Fake(w, cycle, fleet.workers) for w in range(fleet.workers)]
    for fake, (sent, resumed, now) in zip(itertools.cycle(fakes), clocks, strict=False):
        if fake.due and not (fake.waits and fake.sequence):
            header = fake.request(0.0)._replace(sent=sent, resumed=resumed)
            tell(fakes, service.serve(header, now))
    Trace(service.rows.since(0), fleet.workers).verify()


def test_steps_that_were_lost_are_not_waited_for() -> None:
    """Who waits for the slowest goes on when that one begins again further ahead."""
    cycle = (Pull(bound=1), Step(), Push(every=2))
    service = service_of(cycle, 2)
    fakes = [Fake(w, cycle, 2) for w in range(2)]
    for fake in (*fakes * 3, fakes[0]):
        tell(fakes, service.serve(fake.request(1.0), 1.0))
    assert fakes[0].waits  # it is two steps ahead of what the other one has pushed
    service.admit(1, 77, 2.0)
    fakes[1] = Fake(1, cycle, 2)
    tell(fakes, service.serve(fakes[1].request(3.0), 3.0))
    assert not fakes[0].waits
    assert service.rows.since(0)["verb"].tolist()[-4:] == [PUSH, LEAVE, JOIN, PULL]


def test_snapshots_wait_for_their_version() -> None:
    """A snapshot is shown at its version, before anything else happens, or at the end."""
    cycle = (Pull(), Step(), Push())
    service = service_of(cycle, 1, updates=3)
    fake = Fake(0, cycle, 1)
    assert service.show(Header(Kind.SNAPSHOT, 9, version=2, sequence=5)) == []
    for seconds in (0.0, 1.0, 2.0):
        decisions = service.serve(fake.request(seconds), seconds)
        tell([fake], decisions)
    decisions = service.serve(fake.request(7.0), 7.0)
    tell([fake], decisions)
    shown = [one for one in decisions if one.action == Action.SNAPSHOT]
    assert [(one.version, one.step, one.sequence, one.time) for one in shown] == [(2, 2, 5, 7.0)]
    assert service.show(Header(Kind.SNAPSHOT, 9, version=10)) == []
    decisions = service.serve(fake.request(8.0), 8.0)
    assert [one.action for one in decisions[-2:]] == [Action.END, Action.SNAPSHOT]
    assert service.is_shown()


def test_seconds_end_the_run() -> None:
    """Nothing is served behind the budget's last second."""
    service = service_of((Pull(), Step(), Push()), 1, seconds=5.0)
    service.serve(Header(Kind.JOIN, 0, sequence=1), 4.0)
    decisions = service.serve(Header(Kind.PULL, 0, sequence=2), 5.5)
    assert [one.action for one in decisions] == [Action.END]
    assert service.rows.n == 0


def test_a_service_goes_on_from_its_memory() -> None:
    """A service from a checkpoint knows versions, gradients and steps, and expects joins."""
    cycle = (Pull(), Step(), Push())
    service = service_of(cycle, 2)
    drive(service, cycle, 2, list(range(30)), set(), replace=True)
    again = Service(service._config, service.memory(), service.rows.since(0))
    assert (again.version, again.gradients) == (service.version, service.gradients)
    fakes = [Fake(w, cycle, 2) for w in range(2)]
    for fake, now in itertools.product(fakes, (100.0, 101.0, 102.0)):
        tell(fakes, again.serve(fake.request(now), now))
    rows = again.rows.since(0)
    assert np.count_nonzero(rows["verb"] == JOIN) == 2
    Trace(rows, 2).verify()
