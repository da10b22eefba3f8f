"""Each algorithm against its paper, written out as a loop or as an identity.

Under a law stands what it is held against: the paper, the place in it and the equation, in our
letters. "After" a paper means that its idea is followed and its wording was not at hand; "derived"
that the law follows from the listing, and stands in no paper.
"""

from collections.abc import Iterator

import numpy as np
import pytest

import distsgd as ds
from distsgd import algorithms
from distsgd.algorithm import Algorithm, Pull, Push, Step
from distsgd.data.stream import Stream
from distsgd.fold.fold import fold
from distsgd.order.schedule import schedule
from distsgd.problem import Problem
from distsgd.run import Run
from distsgd.trace import PULL, PUSH, ROW, Trace

UPDATES, BATCH, SEED, RATE = 60, 8, 3, 0.3
ALONE = ds.Fleet(workers=1)
MANY = ds.Fleet(workers=5, compute=ds.lognormal(1.0, 0.5))


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Softmax on digits."""
    return ds.problems.softmax(ds.data.digits(), l2=1e-3)


def run(algorithm: Algorithm, problem: Problem, fleet: object, updates: int = UPDATES) -> Run:
    """Simulate `updates` updates."""
    return ds.simulate(algorithm, problem, fleet, updates=updates, batch=BATCH, seed=SEED)


def gradients(problem: Problem, batch: int = BATCH) -> Iterator[object]:
    """Yield worker 0's gradients, as functions of the point."""
    stream = Stream(problem.samples, batch, SEED)
    for step in range(10_000):
        yield lambda x, step=step: problem.gradient(x, stream.batch(0, step))


def serial_loop(problem: Problem, updates: int = UPDATES) -> np.ndarray:
    """SGD as textbooks write it."""
    x = problem.start(SEED)
    for _, gradient in zip(range(updates), gradients(problem), strict=False):
        x = x - RATE * gradient(x)
    return x


@pytest.mark.quick
@pytest.mark.parametrize(
    "algorithm",
    [
        algorithms.serial(RATE),
        algorithms.synchronous(RATE),
        algorithms.hogwild(RATE, backoff=1.0),
        algorithms.downpour(RATE),
        algorithms.stale_synchronous(RATE, bound=0),
    ],
    ids=lambda algorithm: algorithm.name,
)
def test_one_worker_is_serial_sgd(algorithm: Algorithm, problem: Problem) -> None:
    """With one worker, every method that is SGD has the bits of the serial loop."""
    # Derived: with one worker and periods of 1 every one of these listings is x <- x - lr g(x).
    assert np.array_equal(run(algorithm, problem, ALONE).x, serial_loop(problem))


def test_serial_uses_one_worker_of_any_fleet(problem: Problem) -> None:
    """Serial SGD does not see that its fleet has other workers."""
    # Derived, as above.
    result = run(algorithms.serial(RATE), problem, MANY)
    assert np.array_equal(result.x, serial_loop(problem))
    assert set(result.trace.rows["worker"]) == {0}


def test_synchronous_is_serial_with_a_larger_batch(problem: Problem) -> None:
    """W workers with batches of b are one worker with their W b samples, up to rounding."""
    # After Chen et al. 2016, arXiv:1604.00981: x <- x - lr (1/N) sum of N gradients of one
    # version.
    stream, x = Stream(problem.samples, BATCH, SEED), problem.start(SEED)
    for step in range(UPDATES):
        samples = stream.batches(np.arange(5), np.full(5, step)).ravel()
        x = x - RATE * problem.gradient(x, samples)
    result = run(algorithms.synchronous(RATE), problem, MANY)
    # a mean of five means and a mean of all samples add in different orders
    np.testing.assert_allclose(result.x, x, rtol=1e-9, atol=1e-12)
    assert not result.trace.staleness.any()


def test_a_full_round_does_not_depend_on_who_comes_first(problem: Problem) -> None:
    """A round is averaged in worker order, so machine times change no bit of synchronous SGD."""
    # Derived: the mean over all workers has no order.
    fleets = [ds.Fleet(workers=5, compute=law) for law in (ds.constant(1.0), ds.exponential(1.0))]
    runs = [run(algorithms.synchronous(RATE), problem, fleet) for fleet in fleets]
    assert np.array_equal(runs[0].x, runs[1].x)


def test_backups_drop_late_gradients_and_average_the_others(problem: Problem) -> None:
    """With b backups a step is the mean of the first W - b gradients of the current version."""
    # After Chen et al. 2016, arXiv:1604.00981: N + b workers, the first N gradients of the current
    # step.
    result = run(algorithms.synchronous(RATE, backup=2), problem, MANY, updates=20)
    stream, x = Stream(problem.samples, BATCH, SEED), problem.start(SEED)
    pushes = result.trace.rows[result.trace.rows["verb"] == PUSH]
    for first in range(0, len(pushes), 3):
        of_round = np.sort(pushes[first : first + 3], order="worker")
        batches = stream.batches(of_round["worker"], of_round["step"] - 1)
        g = problem.gradients(np.array([x] * 3), batches)
        x = x - RATE * ((g[0] + g[1] + g[2]) / 3)
    assert np.array_equal(result.x, x)
    assert result.trace.n_dropped > 0


def test_hogwild_backs_off_after_each_epoch(problem: Problem) -> None:
    """The step size is beta^k times the first in epoch k, counted over all workers."""
    # Niu et al. 2011, arXiv:1106.5730, the scheme of its experiments: lr <- beta lr behind every
    # epoch.
    updates, x = 2 * problem.samples // BATCH + 5, problem.start(SEED)
    for update, gradient in zip(range(updates), gradients(problem), strict=False):
        x = x - RATE * 0.5 ** (update * BATCH // problem.samples) * gradient(x)
    result = run(algorithms.hogwild(RATE, backoff=0.5), problem, ALONE, updates)
    assert np.array_equal(result.x, x)


def test_downpour_accrues_between_pushes(problem: Problem) -> None:
    """n_fetch = 4, n_push = 2: local steps between fetches, and the sum of two gradients pushed."""
    # After Dean et al. 2012, the client's loop: accrued += g, params -= alpha g, push(accrued),
    # fetch.
    x, local, accrued = problem.start(SEED), None, 0.0
    for step, gradient in zip(range(2 * UPDATES), gradients(problem), strict=False):
        if step % 4 == 0:
            local = x
        g = gradient(local)
        local, accrued = local - 0.1 * g, accrued + g
        if (step + 1) % 2 == 0:
            x, accrued = x - RATE * accrued, 0.0
    algorithm = algorithms.downpour(RATE, n_fetch=4, n_push=2, local_rate=0.1)
    assert np.array_equal(run(algorithm, problem, ALONE).x, x)


def test_downpour_with_equal_periods_and_rates_is_serial(problem: Problem) -> None:
    """One replica with n_fetch = n_push and alpha = eta is serial SGD, up to rounding."""
    # Derived: the server makes in one step the steps that the replica has made.
    algorithm = algorithms.downpour(RATE, n_fetch=3, n_push=3)
    result = run(algorithm, problem, ALONE, updates=UPDATES // 3)
    # x - eta (g1 + g2 + g3) and three steps round differently
    np.testing.assert_allclose(result.x, serial_loop(problem), rtol=1e-9, atol=1e-12)


def test_adagrad_divides_by_the_root_of_all_squares(problem: Problem) -> None:
    """K += a^2 and x -= eta a / sqrt(K + epsilon): the first step is eta times the sign."""
    # After Dean et al. 2012: K_j += d_j^2, x_j <- x_j - gamma d_j / sqrt(K_j); the epsilon is that
    # of Ruder 2016, arXiv:1609.04747, Adagrad: x -= lr g / sqrt(G + eps), inside of the root.
    x, k_sum = problem.start(SEED), 0.0
    for _, gradient in zip(range(UPDATES), gradients(problem), strict=False):
        g = gradient(x)
        k_sum = k_sum + g * g
        x = x - RATE / np.sqrt(k_sum + 1e-8) * g
    algorithm = algorithms.downpour(RATE, server="adagrad")
    assert np.array_equal(run(algorithm, problem, ALONE).x, x)
    first = run(algorithm, problem, ALONE, updates=1).x
    g = next(gradients(problem))(problem.start(SEED))
    is_large = np.abs(g) > 0.01
    np.testing.assert_allclose(first[is_large], -RATE * np.sign(g[is_large]), rtol=1e-3)


def test_warm_start_is_one_replica_alone(problem: Problem) -> None:
    """Until the warm start is over only worker 0 works; then all do."""
    # After Dean et al. 2012, warm start: one replica trains, then the others begin.
    result = run(algorithms.downpour(RATE, warm_start=20), problem, MANY)
    pushes = result.trace.rows[result.trace.rows["verb"] == PUSH]
    assert set(pushes["worker"][:20]) == {0}
    assert set(pushes["worker"][20:]) == set(range(5))
    assert not result.trace.staleness[:20].any()


def revised(gradient_at: object, reads: list[int], x: np.ndarray) -> np.ndarray:
    """AdaptiveRevision as the paper states it; update t reads the version ``reads[t]``."""
    points, sums, z, z_max = [x], [0.0 * x], np.ones_like(x), np.ones_like(x)
    for step, read in enumerate(reads):
        g = gradient_at(points[read], step)
        g_bck = sums[-1] - sums[read]
        rate_old = RATE / np.sqrt(z_max)
        z = z + g * g + 2 * g * g_bck
        z_max = np.maximum(z, z_max)
        rate = RATE / np.sqrt(z_max)
        points.append(points[-1] - rate * g + (rate_old - rate) * g_bck)
        sums.append(sums[-1] + g)
    return points[-1]


def drawn_gradients(problem: Problem, trace: Trace) -> object:
    """Return the gradient of the push number `update`, as a function of the point."""
    pushes = trace.rows[trace.rows["verb"] == PUSH]
    stream = Stream(problem.samples, BATCH, SEED)
    return lambda x, update: problem.gradient(x, stream.batch(pushes["worker"][update], pushes["step"][update] - 1))


def test_adaptive_revision_follows_its_listing(problem: Problem) -> None:
    """Update(g, G_old) of the listing, written with arrays, gives the same x up to rounding."""
    # McMahan and Streeter 2014, AdaptiveRevision, in the form of Petuum's implementation: z += g^2
    # + 2 g g_bck, z' = max(z, z'), x -= lr g, x += (lr_old - lr) g_bck, where lr = alpha /
    # sqrt(z').
    result = run(algorithms.adaptive_revision(RATE), problem, MANY)
    reads = np.arange(UPDATES) - result.trace.staleness
    x = revised(drawn_gradients(problem, result.trace), list(reads), problem.start(SEED))
    # the listing adds g^2 and 2 g g_bck, the rule g (g + 2 g_bck)
    np.testing.assert_allclose(result.x, x, rtol=1e-9, atol=1e-12)


def test_adaptive_revision_without_delay_is_adagrad_from_one(problem: Problem) -> None:
    """No delay: x -= alpha g / sqrt(1 + sum g^2), bit for bit."""
    # Derived: without delay g_bck = 0, and z = z' = 1 + sum g^2.
    x, total = problem.start(SEED), 1.0
    for _, gradient in zip(range(UPDATES), gradients(problem), strict=False):
        g = gradient(x)
        total = total + g * g
        x = x - RATE / np.sqrt(total) * g
    assert np.array_equal(run(algorithms.adaptive_revision(RATE), problem, ALONE).x, x)


def recorded(reads: list[int]) -> Trace:
    """Return the order in which update t, by a worker of its own, reads version ``reads[t]``."""
    rows = []
    for version in range(len(reads) + 1):
        if version:
            worker = version - 1
            rows.append((version, version, version, worker, PUSH, 1, version, reads[worker]))
        for worker, read in enumerate(reads):
            if read == version:
                rows.append((version, version, version, worker, PULL, 0, version, version))
    return Trace(np.array(rows, dtype=ROW), len(reads))


def constant_gradients(g: np.ndarray, reads: list[int]) -> np.ndarray:
    """Return AdaptiveRevision's x for given gradients: column t of `g` at update t."""

    class Linear(Problem):
        dimension, samples, at_once = len(g), 1, 256

        def gradients(self, xs: np.ndarray, batches: np.ndarray, keys: object = None) -> np.ndarray:  # noqa: ARG002 # given
            wanted = g[:, self.served : self.served + len(xs)].T
            self.served += len(xs)
            return wanted.copy()

        served = 0

    trace, algorithm = recorded(reads), algorithms.adaptive_revision(RATE)
    states = fold(algorithm, Linear(), trace, stops=np.array([len(reads)]), batch=1, driver="interpreted")
    return next(states).x


def test_minibatch_pattern_is_one_adagrad_step() -> None:
    """All of a batch read before any is applied: AdaGrad's step on the summed gradient."""
    # Derived: the revisions of a batch leave -lr sum g, with lr = alpha / sqrt(1 + sum_b (sum
    # g)^2).
    g = np.abs(np.random.default_rng(0).normal(size=(7, 12)))  # of one sign, so that z grows
    reads = [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8]
    sums = g.reshape(7, 3, 4).sum(axis=2)
    rates = RATE / np.sqrt(1.0 + np.cumsum(sums**2, axis=1))
    np.testing.assert_allclose(constant_gradients(g, reads), -(rates * sums).sum(axis=1), rtol=1e-12)


def test_constant_delay_revises_to_the_last_rate_that_was_outstanding() -> None:
    """x_T = - sum_s rate_{min(s + D, T)} g_s: the last update that had g_s outstanding decides."""
    # Derived by summing up the revisions of every g_s, which end when g_s is in flight no more.
    rng, updates, delay = np.random.default_rng(1), 40, 6
    g = rng.normal(size=(5, updates))
    reads = [max(0, t - delay) for t in range(updates)]
    z, z_max, rates = np.ones(5), np.ones(5), np.empty((5, updates))
    for t, read in enumerate(reads):
        z = z + g[:, t] ** 2 + 2 * g[:, t] * g[:, read:t].sum(axis=1)
        z_max = np.maximum(z, z_max)
        rates[:, t] = RATE / np.sqrt(z_max)
    last = np.minimum(np.arange(updates) + delay, updates - 1)
    expected = -(rates[:, last] * g).sum(axis=1)
    np.testing.assert_allclose(constant_gradients(g, reads), expected, rtol=1e-10, atol=1e-12)


def elastic_loop(problem: Problem, alpha: float, period: int, momentum: float) -> np.ndarray:
    """Algorithms 1 and 2 of the paper for one worker: the gradient is taken before the move."""
    centre = problem.start(SEED)
    x_i, v = centre, 0.0 * centre
    for clock, gradient in zip(range(UPDATES * period), gradients(problem), strict=False):
        if clock == (UPDATES - 1) * period + 1:
            break
        x = x_i
        if clock % period == 0:
            difference = alpha * (x - centre)
            x_i, centre = x_i - difference, centre + difference
        v = momentum * v - RATE * gradient(x + momentum * v)
        x_i = x_i + v
    return centre


@pytest.mark.parametrize(("period", "momentum"), [(1, 0.0), (3, 0.0), (3, 0.9)])
def test_elastic_averaging_follows_its_algorithm(problem: Problem, period: int, momentum: float) -> None:
    """EASGD and EAMSGD of one worker have the bits of Algorithms 1 and 2."""
    # Zhang et al. 2015, arXiv:1412.6651, Algorithm 1 (EASGD) and Algorithm 2 (EAMSGD), where x is
    # x_i before the move: d = alpha (x - xc), x_i -= d, xc += d; then v = m v - lr g(x + m v), x_i
    # += v.
    algorithm = algorithms.elastic_averaging(RATE, 0.3, period, momentum)
    expected = elastic_loop(problem, 0.3, period, momentum)
    assert np.array_equal(run(algorithm, problem, ALONE).x, expected)


def test_the_default_moving_rate_is_the_papers(problem: Problem) -> None:
    """Without a moving rate, alpha = 0.9 / W."""
    # Zhang et al. 2015, experiments: beta = 0.9, where beta = W alpha.
    runs = [run(algorithms.elastic_averaging(RATE, rate, period=2), problem, MANY) for rate in (None, 0.9 / 5)]
    assert np.array_equal(runs[0].x, runs[1].x)


def test_without_elasticity_the_centre_never_moves(problem: Problem) -> None:
    """With alpha = 0 workers are independent, and the centre stays where it was."""
    # Derived: xc += alpha (x - xc) adds nothing where alpha = 0.
    result = run(algorithms.elastic_averaging(RATE, 0.0, period=2), problem, MANY)
    assert np.array_equal(result.x, problem.start(SEED))


def test_an_elastic_exchange_conserves_centre_plus_worker() -> None:
    """Whatever the exchange gives to the centre it takes from the worker, exactly in halves."""
    # Zhang et al. 2015, Algorithm 1: the same alpha (x - xc) is taken from x_i and added to xc.
    algorithm = algorithms.elastic_averaging(RATE, 0.25)
    h, worker, server = algorithm.hyper, algorithm.worker, algorithm.server
    w, s = worker.init(h, 3.0), server.init(h, 1.0)
    at = ds.algorithm.At(version=0, staleness=0, workers=1, step=0, factor=1.0)
    moved = worker.receive(h, w, s.x, at)
    moved, message = worker.send(h, moved)
    assert server.apply(h, s, message).x + moved.x == s.x + w.x


@pytest.mark.parametrize("bound", [0, 1, 4])
def test_nobody_runs_further_ahead_than_the_bound(problem: Problem, bound: int) -> None:
    """SSP: when a pull is served, its worker is at most `bound` steps ahead of the slowest."""
    # After Ho et al. 2013: a worker begins iteration c only if c - min_k c_k <= s.
    speeds = [1.0, 0.2, 1.0, 3.0, 1.0]
    fleet = ds.Fleet(workers=5, compute=ds.exponential(1.0), speeds=speeds)
    trace = run(algorithms.stale_synchronous(RATE, bound), problem, fleet).trace
    clocks, ahead = np.zeros(5, dtype=int), []
    for row in trace.rows:
        if row["verb"] == PULL:
            ahead.append(row["step"] - clocks.min())
        else:
            clocks[row["worker"]] = row["step"]
    assert max(ahead) == bound  # the fast worker reaches it


def test_bound_zero_is_synchronous_with_the_sum(problem: Problem) -> None:
    """SSP with bound 0 reads the versions of synchronous SGD, and takes W times its step."""
    # Derived: with s = 0 every worker reads what all have pushed, and updates are added.
    ssp = run(algorithms.stale_synchronous(RATE / 5, 0), problem, MANY, updates=5 * 12)
    synchronous = run(algorithms.synchronous(RATE), problem, MANY, updates=12)
    reads = ssp.trace.rows["read"][ssp.trace.rows["verb"] == PUSH]
    assert np.array_equal(reads, np.repeat(np.arange(12) * 5, 5))
    # five steps of eta / 5 and one step along the mean round differently
    np.testing.assert_allclose(ssp.x, synchronous.x, rtol=1e-9, atol=1e-12)


def test_an_infinite_bound_is_asynchronous(problem: Problem) -> None:
    """SSP with a bound that no worker reaches has the bits of Downpour."""
    # Derived: with s = infinity no pull waits.
    far = run(algorithms.stale_synchronous(RATE, 10**6), problem, MANY)
    assert np.array_equal(far.x, run(algorithms.downpour(RATE), problem, MANY).x)


def test_no_backup_is_synchronous(problem: Problem) -> None:
    """Without backups a round waits for all workers, drops nothing, and is a quorum of W."""
    # Derived: the first N of N + b are all, where b = 0.
    algorithm = algorithms.synchronous(RATE, backup=0)
    trace = schedule(algorithm.cycle, MANY, updates=30)
    assert trace.n_dropped == 0
    result = run(algorithm, problem, MANY)
    assert result.trace.n_updates == UPDATES
    all_of_them = algorithm._replace(cycle=(Pull(), Step(), Push(quorum=5)))
    assert np.array_equal(result.x, run(all_of_them, problem, MANY).x)
