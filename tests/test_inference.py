import math

import coverage_of_intervals as coverage
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from distsgd.statistics.inference import Factors, Known, Ratio, alone, compare_all, extreme, leaders, quotients

INF = math.inf
Table = dict[str, dict[int, Known]]


def exact(*values: float) -> dict[int, Known]:
    """Return exact numbers of seeds 0, 1, ..."""
    return {seed: Known(value, value) for seed, value in enumerate(values)}


def missed(end: float, n_seeds: int) -> dict[int, Known]:
    """Return misses after a common end."""
    return dict.fromkeys(range(n_seeds), Known(end, INF))


def table_of(logs: np.ndarray) -> Table:
    """Return a table of exact numbers."""
    return {f"a{name}": exact(*np.exp(row)) for name, row in enumerate(logs)}


def close(one: Ratio, other: Ratio, **tolerance: float) -> bool:
    """Return whether two ratios are equal, None and infinity included."""
    return all(
        here is there if None in {here, there} else here == pytest.approx(there, **tolerance)
        for here, there in zip(one, other, strict=True)
    )


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Return a table of up to 4 algorithms and 4 seeds with misses, gaps and coarse times."""
    n_seeds = draw(st.integers(1, 4))
    low = st.floats(0.5, 100.0)
    cell = st.one_of(
        low.map(lambda value: Known(value, value)),
        low.map(lambda value: Known(value, 1.1 * value)),
        low.map(lambda value: Known(value, INF)),
    )
    row = st.dictionaries(st.integers(0, n_seeds - 1), cell, max_size=n_seeds)
    rows = draw(st.lists(row, min_size=2, max_size=4))
    return {f"a{place}": own for place, own in enumerate(rows)}


@pytest.mark.parametrize("n_seeds", [2, 3, 5, 20])
def test_two_algorithms_have_the_paired_t_interval(n_seeds: int) -> None:
    """The interval of two algorithms with exact numbers is that of SciPy's paired t-test."""
    logs = np.random.default_rng(n_seeds).normal(size=(2, n_seeds))
    got = compare_all(table_of(logs)).ratio("a0", "a1")
    known = stats.ttest_rel(*logs).confidence_interval(0.95)
    assert (got.low, got.high) == pytest.approx(np.exp([known.low, known.high]))
    assert got.median == pytest.approx(math.exp(float((logs[0] - logs[1]).mean())))
    assert got.n_pairs == n_seeds


def test_equal_variances_give_tukey_s_intervals() -> None:
    """Intervals are Tukey's of the residuals, or wider where variances differ by chance."""
    n_rows, n_seeds, rng = 4, 6, np.random.default_rng(5)
    freedom = (n_rows - 1) * (n_seeds - 1)
    quantile = stats.studentized_range.ppf(0.95, n_rows, freedom)
    factors = []
    for _ in range(20):
        logs = rng.normal(size=(n_rows, n_seeds))
        rest = logs - logs.mean(axis=1, keepdims=True) - logs.mean(axis=0) + logs.mean()
        width = 2 * quantile * math.sqrt((rest**2).sum() / freedom / n_seeds)
        got = compare_all(table_of(logs)).ratio("a0", "a1")
        factors.append(math.log(got.high / got.low) / width)
        assert got.median == pytest.approx(math.exp(logs[0].mean() - logs[1].mean()))
    assert min(factors) == pytest.approx(1.0)
    assert np.median(factors) == pytest.approx(1.0)
    assert max(factors) < 1.5


def test_noisy_algorithms_are_not_taken_for_quiet_ones() -> None:
    """The interval of two algorithms with larger deviations is wider than that of two others."""
    logs = np.random.default_rng(2).normal(size=(6, 8)) * np.array([9, 9, 1, 1, 1, 1])[:, None]
    compared = compare_all(table_of(logs))
    noisy, quiet = compared.ratio("a0", "a1"), compared.ratio("a2", "a3")
    assert noisy.high / noisy.low > (quiet.high / quiet.low) ** 1.5


def test_one_number_has_the_t_interval() -> None:
    """The interval of one exact positive number is that of Student's t of its logarithms."""
    logs = np.random.default_rng(3).normal(size=5)
    got = alone(exact(*np.exp(logs)))
    known = stats.ttest_1samp(logs, 0.0).confidence_interval(0.95)
    assert (got.low, got.high) == pytest.approx(np.exp([known.low, known.high]))


@given(tables())
@settings(max_examples=20, deadline=None)
def test_turning_a_ratio_round_inverts_it(table: Table) -> None:
    """The ratio of b to a is the inverse of that of a to b, its interval included."""
    compared = compare_all(table)
    for one, other in compared.ratios:
        assert close(compared.ratio(one, other), compared.ratio(other, one).inverse())


@given(tables(), st.floats(0.01, 100.0))
@settings(max_examples=20, deadline=None)
def test_units_do_not_count(table: Table, unit: float) -> None:
    """All numbers times a constant give the same ratios."""
    scaled = {
        name: {seed: Known(unit * low, unit * high) for seed, (low, high) in own.items()} for name, own in table.items()
    }
    here, there = compare_all(table), compare_all(scaled)
    assert all(close(here.ratios[pair], there.ratios[pair], rel=1e-6) for pair in here.ratios)


@given(tables())
@settings(max_examples=20, deadline=None)
def test_names_of_seeds_do_not_count(table: Table) -> None:
    """Other names of the seeds, in the same order, change nothing."""
    renamed = {name: {7 * seed + 3: one for seed, one in own.items()} for name, own in table.items()}
    assert compare_all(table) == compare_all(renamed)


def test_the_order_of_seeds_does_not_count() -> None:
    """Seeds in another order change nothing where numbers are known."""
    logs = np.random.default_rng(4).normal(size=(3, 5))
    here, there = compare_all(table_of(logs)), compare_all(table_of(logs[:, ::-1]))
    assert all(close(here.ratios[pair], there.ratios[pair]) for pair in here.ratios)


@given(st.integers(0, 1000), st.floats(1.0, 1.5), st.floats(1.0, 1.5))
@settings(max_examples=20, deadline=None)
def test_a_coarser_clock_never_narrows(seed: int, below: float, above: float) -> None:
    """Numbers known less closely, all by the same factors, give intervals that hold the others."""
    sharp = table_of(np.random.default_rng(seed).normal(size=(3, 4)))
    coarse = {
        name: {key: Known(low / below, high * above) for key, (low, high) in own.items()} for name, own in sharp.items()
    }
    here, there = compare_all(sharp), compare_all(coarse)
    for pair, ratio in here.ratios.items():
        wide = there.ratios[pair]
        assert wide.low <= ratio.low * (1 + 1e-9)
        assert wide.high >= ratio.high / (1 + 1e-9)


def test_equal_seeds_are_as_sure_as_their_clock() -> None:
    """Without any variance the interval is what the resolution leaves open, and no less."""
    ratio = compare_all(
        {"a": dict.fromkeys(range(3), Known(50.0, 60.0)), "b": dict.fromkeys(range(3), Known(60.0, 70.0))}
    ).ratio("b", "a")
    assert (ratio.low, ratio.high) == pytest.approx((60 / 60, 70 / 50), rel=1e-6)
    assert not ratio.is_settled


@pytest.mark.parametrize("n_seeds", [1, 2, 5])
@pytest.mark.parametrize("known", [Known(3.0, 3.0), Known(3.0, 4.0), Known(3.0, INF)])
def test_equal_numbers_claim_nothing(known: Known, n_seeds: int) -> None:
    """A table of equal values has no order, and all algorithms lead."""
    table = {name: dict.fromkeys(range(n_seeds), known) for name in "abc"}
    compared = compare_all(table)
    assert not compared.is_order_known
    assert compared.reason
    assert leaders(table) == ["a", "b", "c"]
    assert extreme(table) is None


@given(tables(), st.floats(0.1, 1.0), st.floats(1.0, 10.0))
@settings(max_examples=20, deadline=None)
def test_noise_widens_as_said(table: Table, low: float, high: float) -> None:
    """Noise of one algorithm moves both ends of its ratios by its factors, the median by none."""
    plain, noisy = compare_all(table), compare_all(table, {"a0": Factors(low, high)})
    for other in list(table)[1:]:
        before, after = plain.ratio("a0", other), noisy.ratio("a0", other)
        assert after.median == before.median
        if before.low is None:
            assert after == before
        else:
            assert after[0::2] == pytest.approx((before.low * low, before.high * high))


def test_unknown_noise_settles_nothing() -> None:
    """An algorithm of which the tuning is not known has no order against any other one."""
    table = {"a": exact(1.0, 1.01, 1.0), "b": exact(9.0, 9.02, 9.01), "c": exact(5.0, 5.02, 5.0)}
    compared = compare_all(table, {"b": Factors(0.0, INF)})
    assert compared.ratio("b", "a")[0::2] == (0.0, INF)
    assert extreme(table) == "b"
    assert extreme(table, noise={"b": Factors(0.0, INF)}) is None
    assert leaders(table, largest=True, noise={"b": Factors(0.0, INF)}) == ["b", "a", "c"]


def test_one_seed_says_nothing() -> None:
    """One seed gives ratios without an interval, and a sentence says why."""
    compared = compare_all({"a": exact(2.0), "b": exact(4.0)})
    assert compared.ratio("b", "a") == (None, pytest.approx(2.0), None, 1)
    assert "One seed" in compared.reason
    assert alone(exact(2.0)) == (None, pytest.approx(2.0), None, 1)


def test_few_seeds_say_which_ratio_they_would_settle() -> None:
    """Where nothing is settled, the sentence names the ratio at which the interval leaves out 1."""
    compared = compare_all({"a": exact(2.0, 3.0), "b": exact(3.0, 4.0)})
    ratio = compared.ratio("b", "a")
    assert compared.least_ratio == pytest.approx(math.sqrt(ratio.high / ratio.low))
    assert f"{compared.least_ratio:.3g}" in compared.reason
    assert compared.least_ratio > ratio.median


def test_absurd_ratios_are_no_advice() -> None:
    """Where only ratios above 1,000 would be settled, the reason names none and asks for seeds."""
    compared = compare_all({"a": exact(1.0, 1e9), "b": exact(1e9, 1.0)})
    assert compared.least_ratio > 1_000.0
    assert "hardly any ratio is settled: not even one of 1,000; give more seeds" in compared.reason
    assert "e+" not in compared.reason


def test_a_number_without_a_logarithm_is_left_out() -> None:
    """A time of 0 has no ratio, and its seed counts for the others."""
    compared = compare_all({"a": exact(0.0, 0.0), "b": exact(1.0, 2.0), "c": exact(1.5, 3.1)})
    assert compared.ratio("a", "b")[:3] == (None, None, None)
    assert compared.ratio("b", "c").low is not None
    assert compare_all({}).ratios == {}


def test_an_algorithm_that_always_missed_is_later_than_its_end() -> None:
    """It has a lower end near the end of its runs and no upper one; two such are not compared."""
    times = np.exp(np.random.default_rng(6).normal(0.0, 0.1, (2, 5)))
    table = {"a": exact(*times[0]), "b": exact(*times[1])}
    table |= {"c": missed(4.0, 5), "d": missed(4.0, 5)}
    compared = compare_all(table)
    later = compared.ratio("c", "a")
    assert 3.0 < later.low < 4.5
    assert (later.median, later.high) == (None, INF)
    assert compared.ratio("c", "d")[:3] == (0.0, None, INF)
    assert leaders(table, largest=True) == ["c", "d"]
    plain = compare_all({name: table[name] for name in "ab"})
    assert compared.ratio("a", "b").high < 1.2 * plain.ratio("a", "b").high


def test_a_lone_rival_that_always_missed() -> None:
    """Where one of two always missed, seeds count as noise, and the order may be settled."""
    got = compare_all({"a": exact(5.0, 6.0, 7.0, 8.0, 9.0), "b": missed(30.0, 5)}).ratio("b", "a")
    assert 3.0 < got.low < 6.0
    assert got.high == INF


def test_the_leader_may_miss_one() -> None:
    """A leader that missed once keeps an interval around its ratio without the miss, and wider."""
    leader, other = [5.0, 6.1, 7.0, 8.2, 9.0], exact(7.0, 8.0, 10.0, 11.0, 12.5)
    with_miss = exact(*leader) | {4: Known(8.5, INF)}
    found = compare_all({"a": with_miss, "b": other}).ratio("b", "a")
    without = compare_all({"a": exact(*leader), "b": other}).ratio("b", "a")
    assert 0 < found.low < without.low < without.median < found.high < INF


def test_a_later_miss_makes_a_ratio_larger() -> None:
    """The longer a run lasted without arriving, the larger is the ratio, both ends included."""
    other = exact(7.0, 8.0, 10.0, 11.0, 12.5)
    first, second = (
        compare_all({"a": exact(7.5, 8.1, 10.4, 11.0) | {4: Known(end, INF)}, "b": other}) for end in (12.0, 14.0)
    )
    assert first.ratio("a", "b").median < second.ratio("a", "b").median
    assert first.ratio("a", "b").high < second.ratio("a", "b").high


def test_quotients_of_misses() -> None:
    """A miss above has no upper end, one below the lower end 0, and two misses say nothing."""
    above = {0: Known(4.0, 6.0), 1: Known(4.0, INF), 2: Known(4.0, 4.0), 3: Known(1.0, INF)}
    below = {0: Known(1.0, 2.0), 1: Known(2.0, 2.0), 2: Known(8.0, INF), 3: Known(1.0, INF)}
    assert quotients(above, below) == {0: Known(2.0, 6.0), 1: Known(2.0, INF), 2: Known(0.0, 0.5)}


def test_a_leader_is_extreme_only_if_settled() -> None:
    """Whose number is the largest or the least is named where every other one is settled."""
    table = {"a": exact(1.0, 2.0, 3.0), "b": exact(10.0, 20.1, 30.0), "c": exact(10.1, 20.0, 30.2)}
    assert extreme(table, largest=False) == "a"
    assert extreme(table, largest=True) is None
    assert leaders(table) == ["a"]
    assert set(leaders(table, largest=True)) == {"b", "c"}
    assert extreme({"a": exact(1.0, 2.0)}) is None
    assert leaders({}) == []


CASES = {
    "2 equal, 2 seeds": 400,
    "9 equal, 3 seeds": 150,
    "3 equal, 5 seeds": 200,
    "2 algorithms, 5 seeds: 20 % of the slowest miss": 100,
    "2 algorithms, 5 seeds: leader misses one": 100,
    "4 algorithms, 3 seeds: slowest misses all": 40,
    "4 algorithms, 5 seeds: half of all equals miss": 30,
    "9 algorithms, 5 seeds: two with 4 times the deviation": 150,
}


@pytest.mark.parametrize("name", CASES)
def test_intervals_hold(name: str) -> None:
    """All intervals of a table hold with 95 %, and no order is claimed in more than 5 %."""
    tries, scenario = CASES[name], (coverage.EQUAL | coverage.UNUSUAL)[name]
    score = coverage.score(scenario, tries)
    assert score.holds * tries >= stats.binom.ppf(0.001, tries, 0.95)
    assert score.false * tries <= stats.binom.ppf(0.999, tries, 0.05)


def test_true_differences_are_found() -> None:
    """One of nine that is 1.5 times as fast is told from the others: 80 % of them with 5 seeds."""
    tries = 100
    assert coverage.power(5, tries).each > 0.8 - 3 * math.sqrt(0.2 * 0.8 / tries / 2)
    assert coverage.power(8, tries).all * tries >= stats.binom.ppf(0.001, tries, 0.9)
