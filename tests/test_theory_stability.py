"""Exact theory on quadratics: where SGD with stale gradients is stable, and how noisy it ends.

Under a law stands its paper; "derived" is what follows from the recursion on h x^2 / 2, in a line.
"""

import math

import numpy as np
import pytest

import distsgd as ds
from distsgd import algorithms
from distsgd.run import Run


def bound(tau: int) -> float:
    """Return the largest stable step on curvature 1 when every gradient is tau updates old."""
    return 2 * math.sin(math.pi / (2 * (2 * tau + 1)))


def norms(run: Run) -> np.ndarray:
    """Return the size of the loss at each evaluation."""
    return run.history["loss"].to_numpy()


@pytest.mark.parametrize("tau", range(64))
def test_fixed_delay_is_stable_exactly_below_its_bound(tau: int) -> None:
    """x_{t+1} = x_t - a x_{t-tau} contracts at 0.97 and grows at 1.03 of 2 sin(pi/(2(2 tau+1)))."""
    # Derived: z^(tau + 1) = z^tau - a has a root on the unit circle first at a = 2 sin(pi/(2 (2
    # tau + 1))).
    updates, window = 120 * (tau + 2), 8 * (tau + 1)  # longer than a period of the oscillation, 4 tau + 2
    often = max(1, tau // 4)  # some ten evaluations in each half of a period
    losses = []
    for share in (0.97, 1.03):
        problem = ds.problems.quadratic([1.0], start=[1.0])
        algorithm = algorithms.downpour(share * bound(tau))
        run = ds.simulate(algorithm, problem, ds.fixed_staleness(tau), updates=updates, batch=1, evaluate_every=often)
        assert (run.trace.staleness[tau:] == tau).all()
        n = window // often
        losses.append((norms(run)[2 * n : 3 * n].max(), norms(run)[-n:].max()))
    (early, late), (early_above, late_above) = losses
    assert late < early
    assert late_above > early_above


@pytest.mark.quick
def test_two_workers_converge_at_half_and_not_at_one_and_a_half_of_the_serial_bound() -> None:
    """A step of 1.5 is stable for serial SGD on curvature 1 and unstable for two workers."""
    # Derived: the bound above is 2 for tau = 0 and 1 for tau = 1.
    problem = ds.problems.quadratic([1.0])
    serial, two = (
        ds.simulate(algorithm, problem, ds.fixed_staleness(1), updates=200, batch=1)
        for algorithm in (algorithms.serial(1.5), algorithms.downpour(1.5))
    )
    assert norms(serial)[-1] < 1e-12
    assert norms(two)[-1] > 1e12


@pytest.mark.quick
@pytest.mark.parametrize("step", [0.1, 0.5, 1.5])
def test_noise_floor_of_serial_sgd(step: float) -> None:
    """Without delay Var(x) = lr sigma^2 / (h (2 - lr h)), so the excess loss is known."""
    # Derived: Var(x) = (1 - lr h)^2 Var(x) + lr^2 sigma^2, and the loss is h Var(x) / 2.
    dimension, curvature, noise = 4000, 2.0, 0.3
    problem = ds.problems.quadratic([curvature] * dimension, noise=noise, start=[0.0] * dimension)
    rate = step / curvature
    run = ds.simulate(algorithms.serial(rate), problem, ds.Fleet(workers=1), updates=400, batch=1, evaluate_every=20)
    expected = dimension * rate * noise**2 / (2 * (2 - rate * curvature))
    settled = norms(run)[6:]
    # each loss is a sum of 4,000 squares, whose relative deviation is sqrt(2 / 4000)
    np.testing.assert_allclose(settled, expected, rtol=5 * math.sqrt(2 / dimension))


@pytest.mark.parametrize("workers", [4, 16])
def test_averaging_divides_the_noise_floor_by_the_workers(workers: int) -> None:
    """The mean of W gradients has sigma^2 / W, and so has the floor of synchronous SGD."""
    # Derived: as above with sigma^2 / W.
    dimension, rate = 4000, 0.5
    problem = ds.problems.quadratic([1.0] * dimension, noise=1.0, start=[0.0] * dimension)
    run = ds.simulate(
        algorithms.synchronous(rate), problem, ds.Fleet(workers=workers), updates=100, batch=1, evaluate_every=10
    )
    expected = dimension * rate / workers / (2 * (2 - rate))
    settled = norms(run)[4:]
    np.testing.assert_allclose(settled, expected, rtol=5 * math.sqrt(2 / dimension))


@pytest.mark.parametrize("a", [0.3, 1.0, 1.7])
def test_round_robin_elastic_averaging_is_stable_below_its_bound(a: float) -> None:
    """Asynchronous EASGD is stable exactly up to alpha = (4 - 2a)/(4 - a); here for W = 3."""
    # Zhang et al. 2015, arXiv:1412.6651, abstract: "the stability of EASGD is guaranteed when a
    # simple stability condition is satisfied"; in its round-robin analysis with h = 1 and a = lr
    # this is 0 <= a <= 2 and 0 <= alpha <= (4 - 2a)/(4 - a), whatever W. For W = 3 nothing above
    # is stable.
    limit = (4 - 2 * a) / (4 - a)
    ends = []
    for share in (0.97, 1.03):
        algorithm = algorithms.elastic_averaging(a, share * limit, period=1)
        run = ds.simulate(
            algorithm, ds.problems.quadratic([1.0]), ds.Fleet(workers=3), updates=3000, batch=1, evaluate_every=1
        )
        ends.append((norms(run)[500:600].max(), norms(run)[-100:].max()))
    (early, late), (early_above, late_above) = ends
    assert late < early or late < 1e-200
    assert late_above > early_above


@pytest.mark.parametrize("alpha", [0.05, 0.4, 0.9])
def test_elastic_averaging_needs_no_smaller_step_than_serial(alpha: float) -> None:
    """Below alpha's bound a step of 1.05 is stable for any number of workers, unlike Downpour's."""
    # Zhang et al. 2015, the same condition; (4 - 2a)/(4 - a) is 0.64 at a = 1.05.
    for workers in (2, 8):
        fleet = ds.Fleet(workers=workers)
        run = ds.simulate(
            algorithms.elastic_averaging(1.05, alpha * 0.64, period=1),
            ds.problems.quadratic([1.0]),
            fleet,
            updates=4000,
            batch=1,
        )
        assert norms(run)[-1] < 1e-6
    downpour = ds.simulate(algorithms.downpour(1.05), ds.problems.quadratic([1.0]), ds.Fleet(workers=8), updates=400)
    assert norms(downpour)[-1] > 1e6
