"""Streams: which samples a worker uses at a step."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distsgd.data.partition import SAMPLERS, Parts
from distsgd.errors import ConfigError, check_count, check_name, check_number, check_seed
from distsgd.kernels.draws.stream import Sampling, fill_batches, fill_keys


class Stream:
    """Mini-batches as a function of (seed, worker, step) alone.

    A worker's samples do not depend on how fast it is, on the other workers, or on the engine. So a
    batch can be drawn before, after or without the batches of other steps.

    A step has a `batch` >= 1 (the papers' b) of all `samples`, >= 1 and <= 2**32, or of its
    worker's one of `parts`. They are drawn uniformly, or, "reshuffled", from a fresh random
    permutation for each epoch of the worker. A number out of its bounds is a `ConfigError`, as is
    another `sampler`.
    """

    def __init__(
        self, samples: int, batch: int, seed: int = 0, *, parts: Parts | None = None, sampler: str = "replacement"
    ) -> None:
        check_number("samples", samples, below=2.0**32 + 1)
        self.samples = check_count("samples", samples)
        self.batch_size = check_count("batch", batch)
        self.seed = check_seed(seed)
        check_name("sampler", sampler, SAMPLERS)
        members, starts = parts or Parts(np.empty(0, np.uint32), np.zeros(1, np.uint64))
        self.sampling = Sampling(self.seed, self.samples, members, starts, sampler == "reshuffled")
        """What compiled loops draw from."""
        self._workers = starts.size - 1 if parts else np.iinfo(np.int64).max

    def batch(self, worker: int, step: int) -> NDArray[np.uint32]:
        """Return the sample indices of one worker's step, uint32[b]."""
        row: NDArray[np.uint32] = self.batches([worker], [step])[0]
        return row

    def batches(self, workers: ArrayLike, steps: ArrayLike) -> NDArray[np.uint32]:
        """Return the sample indices of m steps, one per row, uint32[m, b]."""
        who: NDArray[Any] = np.asarray(workers, dtype=np.int64)
        when: NDArray[Any] = np.asarray(steps, dtype=np.int64)
        if who.max(initial=0) >= self._workers:
            raise ConfigError(f"workers must be < {self._workers}, the number of parts, not {who.max()}")
        out = np.empty((who.size, self.batch_size), dtype=np.uint32)
        fill_batches(self.sampling, who, when, out)
        return out

    def keys(self, workers: ArrayLike, steps: ArrayLike) -> NDArray[np.uint64]:
        """Return what random layers draw from in m steps, uint64[m]: streams of their own."""
        who, when = (np.asarray(given, dtype=np.int64) for given in (workers, steps))
        out = np.empty(who.size, dtype=np.uint64)
        fill_keys(self.seed, who, when, out)
        return out
