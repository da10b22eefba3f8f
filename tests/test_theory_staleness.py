"""What theory says of staleness and of time, held against the schedule.

These laws are derived for our model, of a server that takes no time and W workers that are always
busy, unless they name a paper. Every seed is fixed, so a test passes always or never. Tolerances
are four standard deviations of the quantity, or say what else they are.
"""

import math

import numpy as np
import pytest
from scipy import stats

from distsgd.algorithm import Pull, Push, Start, Step
from distsgd.order import laws
from distsgd.order.fleet import Fleet, fixed_staleness
from distsgd.order.laws import Law
from distsgd.order.schedule import schedule
from distsgd.trace import PULL, PUSH, Trace

PLAIN = (Pull(), Step(), Push())
SYNCHRONOUS = (Pull(), Step(), Push(quorum=None))
LAWS = [
    laws.constant(1.0),
    laws.exponential(1.0),
    laws.shifted_exponential(0.5, 0.5),
    laws.lognormal(1.0, 1.0),
    laws.gamma(1.0, 4.0),
    laws.pareto(1.0, 1.5),
    laws.uniform(0.5, 1.5),
    laws.empirical([0.3, 1.0, 1.7]),
    laws.exponential(1.0).with_stragglers(0.05, 20.0),
]


def plain(workers: int, law: Law, updates: int = 100_000, **machines: object) -> Trace:
    """Return the order of asynchronous SGD."""
    return schedule(PLAIN, Fleet(workers, law, **machines), updates=updates)  # type: ignore[arg-type]


def harmonic(n: int) -> float:
    """Return H_n = 1 + 1/2 + ... + 1/n."""
    return math.fsum(1 / k for k in range(1, n + 1))


def ages_at_the_end(trace: Trace) -> int:
    """Return the sum of the ages of the reads in flight."""
    rows, last = trace.rows, trace.rows["worker"][-1]
    pulls = {row["worker"]: row["read"] for row in rows[rows["verb"] == PULL]}
    return sum(trace.n_updates - read for worker, read in pulls.items() if worker != last)


@pytest.mark.quick
@pytest.mark.parametrize("law", LAWS, ids=lambda law: str(law)[:30])
@pytest.mark.parametrize("speeds", [None, [1.0, 1.0, 2.0, 0.1, 1.0, 5.0, 1.0, 1.0]])
def test_the_mean_staleness_is_w_minus_1_for_every_law(law: Law, speeds: list[float] | None) -> None:
    """The applied tau and the ages in flight add up to (W - 1) times the updates, for any times."""
    # Every update ages the other W - 1 reads in flight by one: an identity of whole numbers.
    trace = plain(8, law, 20_000, speeds=speeds)
    trace.verify(always_busy=True)
    ages = ages_at_the_end(trace)
    assert trace.staleness.sum() + ages == 7 * 20_000
    # What is left of the mean is exactly the ages, which do not grow with the number of updates.
    assert trace.staleness.mean() == pytest.approx(7 - ages / 20_000, rel=1e-12)


@pytest.mark.quick
@pytest.mark.parametrize("workers", [2, 8])
def test_exponential_times_make_geometric_staleness(workers: int) -> None:
    """P(tau = k) = (1/W)(1 - 1/W)^k for k >= 0, with mean W - 1 and variance W (W - 1)."""
    # Exponential times forget: the worker of each update is uniform, and independent of the others.
    tau = plain(workers, laws.exponential(1.0)).staleness[100:]
    # Successive ones are dependent, far apart they are not: take every 20 W-th.
    apart = tau[:: 20 * workers]
    bins = 2 * workers
    chances = stats.geom(1 / workers, loc=-1).pmf(np.arange(bins))
    counts = np.bincount(np.minimum(apart, bins), minlength=bins + 1)
    expected = np.append(chances, 1 - chances.sum()) * len(apart)
    assert stats.chisquare(counts, expected).pvalue > 1e-3
    assert tau.var() == pytest.approx(workers * (workers - 1), rel=0.05)


@pytest.mark.parametrize(("workers", "correlation"), [(2, -0.25), (4, -0.125), (8, -0.064)])
def test_successive_staleness_is_correlated(workers: int, correlation: float) -> None:
    """Successive staleness has a correlation of about -1/(2W): -0.25, -0.125, -0.064."""
    # The values were found numerically, for the same model.
    tau = plain(workers, laws.exponential(1.0)).staleness
    found = np.corrcoef(tau[:-1], tau[1:])[0, 1]
    assert found == pytest.approx(correlation, abs=4 / math.sqrt(100_000))


def test_unequal_exponential_rates_give_each_worker_its_own_geometric_law() -> None:
    """Worker i has the share p_i of the updates, and geometric staleness of mean (1 - p_i)/p_i."""
    rates = np.array([1.0, 2.0, 5.0])
    trace = plain(3, laws.exponential(1.0), speeds=list(rates))
    who = trace.rows["worker"][trace.closing]
    for worker, p in enumerate(rates / rates.sum()):
        mine = who == worker
        assert mine.mean() == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 100_000))
        deviation = math.sqrt(1 - p) / p
        error = 4 * deviation / math.sqrt(mine.sum())
        assert trace.staleness[mine].mean() == pytest.approx((1 - p) / p, abs=error)


@pytest.mark.parametrize("tau", [0, 1, 7])
def test_equal_workers_take_turns(tau: int) -> None:
    """The first W updates have tau = 0, 1, ..., W - 1, and all others tau = W - 1 exactly."""
    trace = schedule(PLAIN, fixed_staleness(tau), updates=50)
    assert trace.staleness.tolist() == [min(update, tau) for update in range(50)]


def test_unequal_constant_times() -> None:
    """Worker i has the mean staleness t_i sum_k 1/t_k - 1, and the share (1/t_i) / sum_k 1/t_k."""
    times = np.array([1.0, math.sqrt(2), math.pi, 7.3])
    trace = plain(4, laws.constant(1.0), 50_000, speeds=list(1 / times))
    who = trace.rows["worker"][trace.closing]
    for worker, time in enumerate(times):
        mine = who == worker
        # Counts of a periodic process are off by one at each end, whatever their number.
        assert mine.sum() == pytest.approx(50_000 / time / sum(1 / times), abs=4)
        expected = time * sum(1 / times) - 1
        assert trace.staleness[mine].mean() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("law", "variance"),
    [
        (laws.gamma(1.0, 4.0), 15.1),
        (laws.uniform(0.5, 1.5), 5.9),
        (laws.exponential(1.0), 56.0),
        (laws.lognormal(1.0, math.sqrt(math.e - 1)), 92.8),
    ],
)
def test_the_spread_of_staleness_shows_the_spread_of_times(law: Law, variance: float) -> None:
    """With 8 workers the variance of tau is 15.1 for gamma(4), 5.9 for uniform times, 56, 92.8."""
    # The values were simulated too, and are known to 1 %; tails add as much again.
    assert plain(8, law, 400_000).staleness.var() == pytest.approx(variance, rel=0.03)


@pytest.mark.parametrize("quorum", [1, 2, 4, 8, 16])
def test_rounds_of_c_pushes_divide_staleness_by_c(quorum: int) -> None:
    """Where members of a round are held, only the other W - c age when it closes: W/c - 1."""
    # It is (W - 1)/c where workers pull again right behind a push that is not applied yet. Rounds
    # of c = floor(W/n) are the n-softsync of Zhang et al. 2016, arXiv:1511.05950.
    cycle = (Pull(), Step(), Push(quorum=quorum))
    trace = schedule(cycle, Fleet(16, laws.exponential(1.0)), updates=9_000)
    pushes = trace.rows[trace.rows["verb"] == PUSH]
    before = pushes["version"] - np.diff(pushes["version"], prepend=0)
    held = np.arange(len(pushes)) // quorum
    assert before.tolist() == held.tolist()
    # The ages in flight at the end, at most some rounds for each worker, are all that is missing.
    assert (before - pushes["read"]).mean() == pytest.approx(16 / quorum - 1, abs=0.03)


@pytest.mark.parametrize("network", [{"latency": 0.3}, {"service": 0.05}])
def test_a_pull_that_travels_with_its_push_keeps_w_minus_1_reads_in_flight(network: dict[str, float]) -> None:
    """A worker ages while it holds a read that is not applied, which here is always so."""
    trace = plain(8, laws.exponential(1.0), 20_000, **network)
    trace.verify(always_busy=True)


def test_a_worker_that_holds_no_read_does_not_age() -> None:
    """A worker that holds no read, while its push or pull is on its way, does not age."""
    fleet = Fleet(8, laws.exponential(1.0), latency=0.1)
    trace = schedule((Pull(), Push(), Step()), fleet, updates=20_000)
    assert 0 < trace.staleness.mean() < 7


def test_one_worker_is_never_stale() -> None:
    """With W = 1 every tau is 0, and the order is that of serial SGD."""
    fleet = Fleet(1, laws.exponential(1.0), latency=0.1)
    trace = schedule(PLAIN, fleet, updates=100)
    assert not trace.staleness.any()
    serial = schedule((Start(math.inf), *PLAIN), fleet, updates=100)
    assert serial.rows.tolist() == trace.rows.tolist()


@pytest.mark.parametrize("workers", [1, 4, 16])
def test_a_synchronous_step_lasts_a_harmonic_number(workers: int) -> None:
    """A synchronous step lasts the harmonic number H_W times the mean of exponential times."""
    trace = schedule(SYNCHRONOUS, Fleet(workers, laws.exponential(2.0)), updates=20_000)
    deviation = 2 * math.sqrt(sum(1 / k**2 for k in range(1, workers + 1)))
    error = 4 * deviation / math.sqrt(20_000)
    assert trace.seconds[-1] / 20_000 == pytest.approx(2 * harmonic(workers), abs=error)
    assert not trace.staleness.any()


def round_time(n_fresh: int, n_late: int, backup: int) -> float:
    """Return the mean time until a round closes, by first-step analysis of exponential times.

    A fresh worker that ends its step joins the round. A late one, still busy for a round before,
    is dropped and becomes fresh. At the end `backup` workers compute, and are late in the next.
    """
    computing = n_fresh + n_late
    if computing == backup:
        return 0.0
    joins = n_fresh * round_time(n_fresh - 1, n_late, backup) if n_fresh else 0.0
    dropped = n_late * round_time(n_fresh + 1, n_late - 1, backup) if n_late else 0.0
    return (1.0 + joins + dropped) / computing


@pytest.mark.parametrize(("needed", "backup", "expected"), [(16, 0, 3.381), (16, 2, 1.995)])
def test_backup_workers_shorten_the_step(needed: int, backup: int, expected: float) -> None:
    """The first N of N + b exponential times have passed after H_{N+b} - H_b, at the earliest."""
    # Workers that are late begin each round afresh in that formula. Ours end their step first, are
    # dropped, and so it is a lower bound, and the step lasts what `round_time` says.
    assert harmonic(needed + backup) - harmonic(backup) == pytest.approx(expected, abs=5e-4)
    cycle = (Pull(), Step(), Push(quorum=None, backup=backup))
    fleet = Fleet(needed + backup, laws.exponential(1.0))
    trace = schedule(cycle, fleet, updates=20_000)
    exact = round_time(needed, backup, backup)
    # No round's time has a larger deviation than the longest of 16 exponential times, 1.26.
    assert trace.seconds[-1] / 20_000 == pytest.approx(exact, abs=4 * 1.26 / math.sqrt(20_000))
    assert expected <= exact + 5e-4 < harmonic(needed) + 1e-3
    assert not trace.staleness.any()
    assert (trace.n_dropped > 0) == (backup > 0)


def test_asynchronous_workers_bring_w_gradients_per_mean_time() -> None:
    """Asynchronous workers bring W gradients in the mean time of one."""
    trace = plain(8, laws.exponential(1.0))
    # A Poisson process of rate 8: the time of n events has the deviation sqrt(n) / 8.
    assert trace.seconds[-1] == pytest.approx(100_000 / 8, abs=4 * math.sqrt(100_000) / 8)


def test_a_shift_adds_to_the_synchronous_step() -> None:
    """With a shift s and a rate mu a synchronous step lasts s + H_W / mu."""
    law = laws.shifted_exponential(0.7, 0.5)
    trace = schedule(SYNCHRONOUS, Fleet(8, law), updates=20_000)
    error = 4 * 0.5 * math.sqrt(math.pi**2 / 6 / 20_000)
    assert trace.seconds[-1] / 20_000 == pytest.approx(0.7 + harmonic(8) * 0.5, abs=error)


def test_a_synchronous_step_lasts_as_long_as_the_slowest() -> None:
    """With constant times a step lasts max t_i, and time T holds sum floor(T/t_i) gradients."""
    times = [1.0, 2.0, 5.0]
    fleet = Fleet(3, [laws.constant(time) for time in times])
    assert schedule(SYNCHRONOUS, fleet, updates=9).seconds.tolist() == [5.0 * n for n in range(1, 10)]
    by_time = schedule(PLAIN, fleet, seconds=33.0)
    assert by_time.n_updates == sum(33 // time for time in times)
