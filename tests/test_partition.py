import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

import distsgd as ds
from distsgd.data import Data
from distsgd.data.partition import SHARED, Parts, class_histogram
from distsgd.data.stream import Stream
from distsgd.errors import ConfigError
from distsgd.problem import Problem

SHARDED = ds.Partition("sharded")
RESHUFFLED = ds.Partition("sharded", "reshuffled")
FLEET = ds.Fleet(workers=5, compute=ds.lognormal(1.0, 0.5))


def skewed(concentration: float, sampler: str = "replacement") -> ds.Partition:
    """Return a skewed partition."""
    return ds.Partition("skewed", sampler, concentration)


def labelled(samples: int, classes: int) -> Data:
    """Return samples that are numbers, whose class is their remainder."""
    x = np.arange(float(samples))[:, None]
    y = np.arange(samples) % classes
    return Data("numbers", x, y, x[:0], y[:0])


def divided(partition: ds.Partition, data: Data, workers: int, seed: int = 0) -> Parts:
    """Return the parts of a partition that divides."""
    parts = partition.divide(data, workers, seed)
    assert parts is not None
    return parts


@settings(deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 5),
    st.integers(0, 5),
    st.data(),
    st.sampled_from([SHARDED, skewed(1e-6), skewed(0.1), skewed(1.0), skewed(1e9)]),
)
def test_each_sample_belongs_to_one_worker(
    samples: int, classes: int, seed: int, drawn: st.DataObject, partition: ds.Partition
) -> None:
    """Parts are disjoint, their union is everything, and none is empty."""
    workers = drawn.draw(st.integers(1, samples))
    parts = divided(partition, labelled(samples, classes), workers, seed)
    assert sorted(parts.members.tolist()) == list(range(samples))
    assert parts.sizes.min() >= 1
    assert parts.sizes.sum() == samples == sum(parts.of(w).size for w in range(workers))


def test_shards_are_equal() -> None:
    """The sizes of shards differ by at most one."""
    sizes = divided(SHARDED, labelled(1003, 3), 10).sizes
    assert sorted(sizes) == [100] * 7 + [101] * 3


def test_shards_are_drawn_at_random() -> None:
    """Over many seeds every worker owns a sample equally often, and pairs are not kept together."""
    owners = np.array(
        [[one in divided(SHARDED, labelled(8, 2), 2, seed).of(0) for one in (0, 1)] for seed in range(2000)]
    )
    assert chisquare(np.bincount(owners[:, 0])).pvalue > 0.01
    together = np.count_nonzero(owners[:, 0] == owners[:, 1])
    assert chisquare([together, 2000 - together], [2000 * 3 / 7, 2000 * 4 / 7]).pvalue > 0.01


def test_the_histogram_conserves_samples() -> None:
    """Rows of a class histogram sum to the parts' sizes, columns to the classes' sizes."""
    data = labelled(1000, 7)
    parts = divided(skewed(0.3), data, 9)
    histogram = class_histogram(parts, data.y)
    assert histogram.classes.tolist() == list(range(7))
    assert np.array_equal(histogram.counts.sum(axis=1), parts.sizes)
    assert np.array_equal(histogram.counts.sum(axis=0), np.bincount(data.y))


def test_a_large_concentration_gives_equal_shares() -> None:
    """As the concentration grows, every worker gets the same share of each class."""
    data = labelled(8000, 4)
    counts = class_histogram(divided(skewed(1e6), data, 10), data.y).counts
    assert abs(counts - 200).max() <= 3


def test_a_small_concentration_gives_each_class_to_one_worker() -> None:
    """As the concentration falls, one worker owns nearly all of a class."""
    data = labelled(8000, 4)
    counts = class_histogram(divided(skewed(1e-4), data, 10), data.y).counts
    assert (counts.max(axis=0) >= 2000 - 10).all()


def test_no_worker_s_number_is_favoured() -> None:
    """Over many seeds the first, a middle and the last worker see equally many classes."""
    data = labelled(1000, 4)
    seen = sum(class_histogram(divided(skewed(0.05), data, 8, seed), data.y).counts > 0 for seed in range(300)).sum(
        axis=1
    )
    assert chisquare(seen).pvalue > 0.01


@pytest.mark.parametrize("concentration", [0.2, 1.0, 5.0])
def test_shares_have_the_variance_of_a_dirichlet_law(concentration: float) -> None:
    """A share's mean is 1 / W and its variance (1 / W)(1 - 1 / W) / (alpha W + 1)."""
    data, workers = labelled(4000, 2), 4
    shares = np.array(
        [
            class_histogram(divided(skewed(concentration), data, workers, seed), data.y).counts / 2000
            for seed in range(400)
        ]
    )
    expected = (1 / workers) * (1 - 1 / workers) / (concentration * workers + 1)
    assert shares.mean() == pytest.approx(1 / workers)
    assert shares.var() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("partition", [ds.Partition(sampler="reshuffled"), RESHUFFLED])
def test_an_epoch_visits_each_sample_of_a_worker_once(partition: ds.Partition) -> None:
    """Each pass of a worker over its part is a permutation of it, and passes differ."""
    data, workers, batch = labelled(97, 3), 4, 3
    parts = partition.divide(data, workers, 5)
    stream = Stream(97, batch, 5, parts=parts, sampler="reshuffled")
    for worker in range(workers):
        own = np.arange(97) if parts is None else parts.of(worker)
        drawn = stream.batches([worker] * own.size, range(own.size)).reshape(batch, own.size)
        assert (np.sort(drawn, axis=1) == own).all()
        assert not np.array_equal(drawn[0], drawn[1])


@pytest.mark.parametrize("samples", [2, 3, 5])
def test_every_permutation_is_equally_likely(samples: int) -> None:
    """Over workers and epochs all orders of a few samples are equally frequent."""
    number = np.arange(12_000)
    stream = Stream(samples, samples, 3, sampler="reshuffled")
    orders = stream.batches(number % 50, number // 50)
    found = np.unique(orders, axis=0, return_counts=True)[1]
    assert found.size == np.prod(np.arange(1, samples + 1))
    assert chisquare(found).pvalue > 0.01


@pytest.mark.jit_off
@pytest.mark.bounds
def test_the_largest_permutation_stays_inside() -> None:
    """A permutation of 2**32 samples, or of a prime number of them, has no sample twice."""
    for samples in (2**32, 65_537):
        drawn = Stream(samples, 200, 1, sampler="reshuffled").batch(0, 3)
        assert np.unique(drawn).size == 200
        assert drawn.max() < samples


@pytest.mark.parametrize("partition", [SHARDED, RESHUFFLED, skewed(0.5)])
def test_a_worker_draws_from_its_own_part(partition: ds.Partition) -> None:
    """No sample of a batch belongs to another worker, and in time all of the part is drawn."""
    parts = divided(partition, labelled(60, 3), 4)
    stream = Stream(60, 4, parts=parts, sampler=partition.sampler)
    for worker in range(4):
        drawn = stream.batches([worker] * 200, range(200))
        assert set(drawn.ravel()) == set(parts.of(worker))


def test_one_worker_owns_everything() -> None:
    """A single part is the whole, so it has the bits of shared data."""
    parts = divided(SHARDED, labelled(50, 2), 1)
    assert np.array_equal(Stream(50, 8, parts=parts).batch(0, 3), Stream(50, 8).batch(0, 3))


def test_same_in_another_process() -> None:
    """Another process divides and draws the same."""
    program = (
        "import distsgd as ds; from distsgd.data.stream import Stream; data = ds.data.digits(); "
        "parts = ds.Partition('skewed', concentration=0.3).divide(data, 7, 3); "
        "stream = Stream(data.samples, 9, 3, parts=parts, sampler='reshuffled'); "
        "print(stream.batch(6, 2).tolist())"
    )
    said = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True) for _ in range(2)
    ]
    data = ds.data.digits()
    parts = skewed(0.3).divide(data, 7, 3)
    here = Stream(data.samples, 9, 3, parts=parts, sampler="reshuffled").batch(6, 2).tolist()
    assert {one.stdout.strip() for one in said} == {str(here)}


@pytest.fixture(scope="module")
def thin() -> Problem:
    """Logistic regression on sparse rows."""
    return ds.problems.logistic(ds.data.sparse(300, 80, 6, seed=2), l2=1e-3)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("partition", [RESHUFFLED, skewed(0.5)])
def test_interpreted_equals_compiled(partition: ds.Partition, batch: int, thin: Problem) -> None:
    """Whoever calls the rules draws the same samples, also on sparse data."""
    ends = [
        ds.simulate(
            ds.algorithms.hogwild(0.5),
            thin,
            FLEET,
            updates=200,
            batch=batch,
            seed=4,
            partition=partition,
            driver=driver,
        ).x
        for driver in ("interpreted", "compiled")
    ]
    assert ends[0].tobytes() == ends[1].tobytes()


def test_a_partition_belongs_to_the_run(thin: Problem) -> None:
    """A partition is among a run's settings and so in its hash, unless it is the usual one."""

    def run(partition: ds.Partition) -> ds.Run:
        return ds.simulate(ds.algorithms.downpour(0.5), thin, FLEET, updates=50, batch=2, partition=partition)

    runs = [run(partition) for partition in (SHARED, RESHUFFLED, skewed(0.5))]
    assert len({one.hash for one in runs}) == 3
    assert "partition" not in runs[0].settings
    assert ds.Partition(**runs[2].settings["partition"]) == skewed(0.5)
    for one in runs:
        again = ds.replay(one, ds.algorithms.downpour(0.5), thin)
        assert again.x.tobytes() == one.x.tobytes()
        assert again.hash == one.hash
    other = ds.replay(runs[2], ds.algorithms.downpour(0.5), thin, partition=SHARED)
    assert other.x.tobytes() == runs[0].x.tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("shraded",), "unknown parts 'shraded'; did you mean 'sharded'"),
        (("sharded", "reshuffle"), "unknown sampler 'reshuffle'; did you mean 'reshuffled'"),
        (("skewed",), "concentration must be given for skewed parts"),
        (("sharded", "replacement", 1.0), "concentration must be given for skewed parts"),
        (("skewed", "replacement", 0.0), "concentration must be >= 1e-06"),
    ],
)
def test_bad_partitions_are_named(arguments: tuple[str, ...], message: str) -> None:
    """What a partition cannot be is the caller's error."""
    with pytest.raises(ConfigError, match=message):
        ds.Partition(*arguments)


def test_a_name_is_no_partition() -> None:
    """A name where a partition belongs is answered with an example of one."""
    with pytest.raises(ConfigError, match="partition must be a value such as"):
        ds.simulate(
            ds.algorithms.serial(0.1), ds.problems.quadratic([1.0]), ds.Fleet(1), updates=1, partition="sharded"
        )


def test_impossible_divisions_are_refused() -> None:
    """There must be a sample for each worker, classes to skew by, and samples that exist."""
    numbers = Data("heights", np.ones((9, 1)), np.full(9, 0.5), np.ones((0, 1)), np.ones(0))
    for partition in (SHARDED, skewed(0.1)):
        with pytest.raises(ConfigError, match="workers must be <= 9, the samples of heights"):
            partition.divide(numbers, 10, 0)
        with pytest.raises(ConfigError, match="need a problem with data"):
            ds.simulate(
                ds.algorithms.serial(0.1), ds.problems.quadratic([1.0]), ds.Fleet(1), updates=1, partition=partition
            )
    with pytest.raises(ConfigError, match="skewed parts need class labels, but heights"):
        skewed(0.1).divide(numbers, 2, 0)
    parts = divided(SHARDED, numbers, 2)
    with pytest.raises(ConfigError, match="workers must be < 2, the number of parts, not 2"):
        Stream(9, 1, parts=parts).batch(2, 0)
    with pytest.raises(ConfigError, match="unknown sampler"):
        Stream(9, 1, sampler="shuffled")
