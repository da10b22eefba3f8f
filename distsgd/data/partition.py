"""Partitions: which part of the data a worker sees, and in what order it walks through it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distsgd.errors import ConfigError, check_count, check_name, check_number, check_seed
from distsgd.kernels.draws.laws import GAMMA, LAW, fill
from distsgd.kernels.draws.noise import fill_uniform
from distsgd.kernels.draws.random import BOOSTS, PARTS, SHARES
from distsgd.samples.dataset import Data
from distsgd.sparse import Floats, Integers

PartsName: TypeAlias = Literal["shared", "sharded", "skewed"]
SamplerName: TypeAlias = Literal["replacement", "reshuffled"]
SAMPLERS = ("replacement", "reshuffled")

_LEAST_CONCENTRATION = 1e-6
"""Far below it logarithms of shares overflow; long before, each class has one owner."""


class Parts(NamedTuple):
    """The samples of each worker: part w is ``members[starts[w] : starts[w + 1]]``, ascending."""

    members: NDArray[np.uint32]
    """uint32[n]: every sample once."""
    starts: NDArray[np.uint64]
    """uint64[workers + 1]"""

    def of(self, worker: int) -> NDArray[np.uint32]:
        """Return the samples of one worker."""
        return self.members[int(self.starts[worker]) : int(self.starts[worker + 1])]

    @property
    def sizes(self) -> Integers:
        """Samples of each worker, int64[workers]."""
        return np.diff(self.starts).astype(np.int64)


class ClassHistogram(NamedTuple):
    """How often each class occurs in each worker's part."""

    classes: Integers
    """The labels, ascending, int64[c]."""
    counts: Integers
    """int64[workers, c]"""


@dataclass(frozen=True)
class Partition:
    r"""Which samples a worker sees, and how it draws its batches from them.

    Parts are ``"shared"``: every worker sees all samples; ``"sharded"``: each sample belongs to one
    worker, chosen at random, and sizes differ by at most 1; ``"skewed"``: the samples of each class
    c are divided in the proportions

    .. math:: p_c \sim Dirichlet(\alpha, \dots, \alpha),

    so that with a small :math:`\alpha` a worker sees few classes, and many or few samples. A
    worker that would be left with nothing takes one sample of the largest part.

    Batches are drawn with ``"replacement"``, or ``"reshuffled"``: the worker walks through a random
    permutation of its part, and through a fresh one when that is used up; a batch may reach across.
    Either way a batch is a function of (seed, worker, step).

    Parameters
    ----------
    parts : {"shared", "sharded", "skewed"}, default "shared"
        Which samples each worker sees.
    sampler : {"replacement", "reshuffled"}, default "replacement"
        How a worker draws.
    concentration : float, optional
        :math:`\alpha` of skewed parts, >= 1e-6; the larger, the more equal the parts.

    Raises
    ------
    ConfigError
        If a name is unknown, or `concentration` is missing, out of its bound or has no use.

    References
    ----------
    Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019,
    divides classes by Dirichlet proportions.
    """

    parts: PartsName = "shared"
    sampler: SamplerName = "replacement"
    concentration: float | None = None

    def __post_init__(self) -> None:
        check_name("parts", self.parts, ("shared", *_DIVISIONS))
        check_name("sampler", self.sampler, SAMPLERS)
        if (self.parts == "skewed") != (self.concentration is not None):
            raise ConfigError(
                f"concentration must be given for skewed parts and for no others, "
                f"not {self.concentration} for {self.parts} ones"
            )
        if self.concentration is not None:
            check_number("concentration", self.concentration, at_least=_LEAST_CONCENTRATION)

    @property
    def settings(self) -> dict[str, Any]:
        """What identifies the partition, ready for JSON."""
        known = {"parts": self.parts, "sampler": self.sampler}
        if self.concentration is None:
            return known
        return known | {"concentration": float(self.concentration)}

    @property
    def is_divided(self) -> bool:
        """Whether each sample belongs to one worker."""
        return self.parts != "shared"

    def divide(self, data: Data | None, workers: int, seed: int) -> Parts | None:
        """Return the part of each worker, the same for equal arguments on every machine.

        Parameters
        ----------
        data : Data or None
            Its training samples are divided; None where a problem's samples are virtual.
        workers : int
            Number of parts, >= 1.
        seed : int
            Seed of the division, >= 0 and < 2**63.

        Returns
        -------
        Parts or None
            None for shared parts.

        Raises
        ------
        ConfigError
            If there are more workers than samples, or nothing to divide by.
        """
        check_seed(seed)
        if not self.is_divided:
            return None
        if data is None:
            raise ConfigError(f"{self.parts} parts need a problem with data; use parts='shared'")
        if check_count("workers", workers) > data.samples:
            raise ConfigError(
                f"workers must be <= {data.samples}, the samples of {data.name}, so that "
                f"{self.parts} parts have one each, not {workers}; use parts='shared'"
            )
        return _gathered(_DIVISIONS[self.parts](self, data, workers, seed), workers)


def class_histogram(parts: Parts, labels: Integers | Floats) -> ClassHistogram:
    """Return how often each of `labels`, whole numbers [n], occurs in each worker's part."""
    classes, places = np.unique(labels, return_inverse=True)
    counts = np.zeros((parts.starts.size - 1, classes.size), dtype=np.int64)
    owners = np.repeat(np.arange(len(counts)), parts.sizes)
    np.add.at(counts, (owners, places[parts.members]), 1)
    return ClassHistogram(classes.astype(np.int64), counts)


def _sharded(_: Partition, data: Data, workers: int, seed: int) -> Integers:
    owners = np.empty(data.samples, dtype=np.int64)
    owners[_shuffle(data.samples, seed)] = np.arange(data.samples) * workers // data.samples
    return owners


def _skewed(partition: Partition, data: Data, workers: int, seed: int) -> Integers:
    if not data.has_classes:
        raise ConfigError(f"skewed parts need class labels, but {data.name} has others; use parts='sharded'")
    _, classes = np.unique(data.y, return_inverse=True)
    order = _shuffle(data.samples, seed)
    owners = np.empty(data.samples, dtype=np.int64)
    for number in range(classes.max() + 1):
        members = order[classes[order] == number]
        shares = _dirichlet(float(partition.concentration or 0), workers, seed, number)
        # rounded to the nearest: rounded down, the last worker would get one of each class
        ends = np.rint(np.cumsum(shares) * members.size)
        owners[members] = np.searchsorted(ends[:-1], np.arange(members.size), side="right")
    return _with_no_part_empty(owners, workers)


_DIVISIONS: dict[str, Callable[[Partition, Data, int, int], Integers]] = {"sharded": _sharded, "skewed": _skewed}
"""The owner of each sample, int64[n]."""

SHARED = Partition()
"""Every worker sees all samples, and draws with replacement."""


def _shuffle(samples: int, seed: int) -> Integers:
    keys = np.empty(samples)
    fill_uniform(seed, PARTS, 0, keys)
    return np.argsort(keys, kind="stable")


def _dirichlet(concentration: float, workers: int, seed: int, number: int) -> Floats:
    """Return gamma variates over their sum, float64[workers].

    A variate of shape a is one of shape a + 1 times u^(1 / a). The logarithms are finite where the
    variates themselves, for a small shape, would all be 0.
    """
    law = np.zeros(1, dtype=LAW)
    law["kind"], law["a"], law["b"] = GAMMA, concentration + 1.0, 1.0
    raised = fill(law[0], np.empty(0), seed, SHARES, number, workers)
    u = np.empty(workers)
    fill_uniform(seed, BOOSTS, number, u)
    logarithms = np.log(raised) + np.log(u) / concentration
    shares = np.exp(logarithms - logarithms.max())
    return np.asarray(shares / shares.sum())


def _with_no_part_empty(owners: Integers, workers: int) -> Integers:
    sizes = np.bincount(owners, minlength=workers)
    for worker in np.flatnonzero(sizes == 0):
        largest = sizes.argmax()
        owners[(owners == largest).argmax()] = worker
        sizes[largest] -= 1
        sizes[worker] = 1
    return owners


def _gathered(owners: Integers, workers: int) -> Parts:
    sizes = np.bincount(owners, minlength=workers)
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint64)
    return Parts(np.argsort(owners, kind="stable").astype(np.uint32), starts)
