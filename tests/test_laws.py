import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from distsgd.errors import ConfigError
from distsgd.kernels.draws import random
from distsgd.kernels.draws.random import COMPUTE, FAILURE
from distsgd.order import laws
from distsgd.order.laws import Law

positive = st.floats(1e-3, 1e3)
any_law = st.one_of(
    st.builds(laws.constant, st.floats(0, 1e3)),
    st.builds(laws.exponential, positive),
    st.builds(laws.shifted_exponential, st.floats(0, 1e3), positive),
    st.builds(laws.lognormal, positive, st.floats(0, 10)),
    st.builds(laws.gamma, positive, positive),
    st.builds(laws.pareto, positive, st.floats(1.01, 10)),
    st.builds(lambda low, width: laws.uniform(low, low + width), st.floats(0, 1e3), positive),
    st.builds(laws.empirical, st.lists(positive, min_size=1, max_size=5)),
)

# Each law beside the same one in SciPy; the fixed seed makes the test's chance of failing 0 or 1.
DISTRIBUTIONS = [
    (laws.exponential(2.0), stats.expon(scale=2.0)),
    (laws.shifted_exponential(0.5, 2.0), stats.expon(loc=0.5, scale=2.0)),
    (laws.lognormal(2.0, 0.5), stats.lognorm(s=math.sqrt(math.log(1.25)), scale=2.0 / math.sqrt(1.25))),
    (laws.gamma(2.0, 4.0), stats.gamma(4.0, scale=0.5)),
    (laws.gamma(2.0, 0.3), stats.gamma(0.3, scale=2.0 / 0.3)),
    (laws.pareto(2.0, 3.0), stats.pareto(3.0, scale=4.0 / 3.0)),
    (laws.uniform(0.5, 1.5), stats.uniform(0.5, 1.0)),
]


@pytest.mark.parametrize(("law", "expected"), DISTRIBUTIONS, ids=lambda one: str(one)[:24])
def test_samples_follow_the_law(law: Law, expected: stats.rv_continuous) -> None:
    """The Kolmogorov-Smirnov distance of 20,000 draws from SciPy's law is not significant."""
    samples = law.sample(seed=0, n=20_000)
    assert stats.kstest(samples, expected.cdf).pvalue > 1e-3
    assert law.mean == pytest.approx(expected.mean(), rel=1e-12)


def test_empirical_draws_each_sample_equally_often() -> None:
    """An empirical law draws its samples, and nothing else, with equal chances."""
    values, counts = np.unique(laws.empirical([1.0, 2.0, 4.0]).sample(0, n=9_000), return_counts=True)
    assert values.tolist() == [1.0, 2.0, 4.0]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_stragglers_are_slower_by_their_factor() -> None:
    """A transient straggler multiplies the step by the factor, with the probability given."""
    steady = laws.lognormal(1.0, 0.5)
    slow = steady.with_stragglers(0.1, 8.0)
    ratio = slow.sample(0, n=10_000) / steady.sample(0, n=10_000)
    assert set(np.round(ratio, 9)) == {1.0, 8.0}
    # Four standard deviations of the share of 10,000 independent draws.
    assert np.mean(ratio > 2.0) == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 10_000))
    assert slow.mean == pytest.approx(1.7)
    # Who straggles does not depend on how long the step would have taken.
    others = steady.sample(1, n=10_000)
    assert stats.ks_2samp(steady.sample(0, n=10_000)[ratio > 2.0], others).pvalue > 1e-3


@pytest.mark.jit_off
@pytest.mark.bounds
@settings(deadline=None)
@given(law=any_law, stragglers=st.none() | st.tuples(st.floats(0, 1), positive))
def test_text_and_law_are_one(law: Law, stragglers: tuple[float, float] | None) -> None:
    """`Law.parse` gives back the law whose text `str` returned."""
    whole = law if stragglers is None else law.with_stragglers(*stragglers)
    assert Law.parse(str(whole)) == whole


def test_names_of_arguments_are_understood() -> None:
    """A law's arguments may be named in its text, as in Python."""
    assert Law.parse("lognormal(cv=0.5, mean=1)") == laws.lognormal(1.0, 0.5)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("lognorml(1, 2)", "did you mean 'lognormal'?"),
        ("lognormal(1)", r"missing a required argument: 'cv'; the arguments are \(mean, cv\)"),
        ("exponential(-1)", r"mean must be > 0 s and finite, not -1"),
        ("exponential(1).sample(0)", "is not a call of a law"),
        ("exponential(print(1))", "must look like"),
        ("exponential(**{})", "must look like|missing a required"),
        ("1 +", "must look like"),
        ("", "must look like"),
    ],
)
def test_a_text_that_is_no_law_is_refused(text: str, hint: str) -> None:
    """A text that is not the call of a law with numbers is a `ConfigError` that says what is."""
    with pytest.raises(ConfigError, match=hint):
        Law.parse(text)


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (laws.constant, (-1.0,)),
        (laws.constant, (math.nan,)),
        (laws.exponential, (0.0,)),
        (laws.exponential, (math.inf,)),
        (laws.shifted_exponential, (-0.1, 1.0)),
        (laws.lognormal, (1.0, -0.5)),
        (laws.gamma, (1.0, 0.0)),
        (laws.pareto, (1.0, 1.0)),
        (laws.uniform, (1.0, 1.0)),
        (laws.uniform, (-1.0, 1.0)),
        (laws.empirical, ([],)),
        (laws.empirical, ([1.0, 0.0],)),
        (laws.empirical, ([1.0, math.nan],)),
        (laws.empirical, (3.0,)),
        (laws.exponential(1.0).with_stragglers, (1.5, 2.0)),
        (laws.exponential(1.0).with_stragglers, (0.5, 0.0)),
    ],
)
def test_impossible_parameters_are_refused(make: object, arguments: tuple[object, ...]) -> None:
    """A parameter that allows negative, missing or infinite durations is a `ConfigError`."""
    with pytest.raises(ConfigError):
        make(*arguments)  # type: ignore[operator] # a constructor of laws


@pytest.mark.jit_off
@pytest.mark.bounds
@settings(deadline=None)
@given(law=any_law, seed=st.integers(0, 2**63 - 1), worker=st.integers(0, 10**6))
def test_a_draw_does_not_depend_on_how_many_are_drawn(law: Law, seed: int, worker: int) -> None:
    """The first draws of a stream are the same whether three or seven are drawn."""
    few, many = (law.sample(seed, COMPUTE, worker, n) for n in (3, 7))
    assert few.tolist() == many[:3].tolist()


def test_a_seed_has_63_bits() -> None:
    """A seed that kernels cannot hold is refused before any of them is called."""
    for seed in (-1, 2**63, 0.5):
        with pytest.raises(ConfigError, match="seed must be"):
            laws.exponential(1.0).sample(seed)  # type: ignore[arg-type] # the mistake under test


def test_no_two_purposes_have_one_number() -> None:
    """Streams of two purposes are never the same, since each has a number of its own."""
    numbers: dict[int, str] = {}
    for name, value in vars(random).items():
        if name.isupper() and not name.startswith("_") and isinstance(value, int):
            where = f"{random.__file__}: {name} has the number of {numbers.get(value)}"
            assert value not in numbers, f"{where}; add it behind the last purpose of the list"
            numbers[value] = name
    assert sorted(numbers) == list(range(len(numbers)))


def test_streams_differ_by_seed_purpose_and_worker() -> None:
    """Streams that differ in seed, purpose or worker share no draw."""
    law = laws.exponential(1.0)
    streams = [
        law.sample(seed, purpose, worker, 50)
        for seed in (0, 1, 2)
        for purpose in (COMPUTE, FAILURE)
        for worker in (0, 1, 2)
    ]
    assert len(np.unique(streams)) == 18 * 50
