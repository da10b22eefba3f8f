"""Injected staleness: how many versions ago a live pull reads."""

import math

import numpy as np

from distsgd.errors import ConfigError, check_count
from distsgd.kernels.draws.random import READS
from distsgd.order.laws import Law

DRAWS = 1000
"""Draws of each worker that decide how many versions are kept."""


MOST = 2**48
"""No run has so many versions; a law may say more."""


class InjectedStaleness:
    """The lag of each pull [versions]: a function of (seed, worker, number of the pull).

    A pull at the server's version v reads version ``max(0, v - lag)``, whatever the worker has
    pushed; behind a restart, none from before. A law's sample is rounded down; and since versions
    have to be kept, it is at most the longest among the first `DRAWS` of each worker.

    Parameters
    ----------
    staleness : Law or int or None
        Law of the lags; or the same lag for every pull; None for no lag.
    seed : int
        Of the lags.
    workers : int
        How many workers pull.
    """

    def __init__(self, staleness: Law | int | None, seed: int, workers: int) -> None:
        self._law = staleness if isinstance(staleness, Law) else None
        self._seed = seed
        self._drawn: list[list[int]] = [[] for _ in range(workers)]
        if self._law is None:
            self.longest = min(check_count("staleness", int(staleness or 0), at_least=0), MOST)  # type: ignore[arg-type] # no law
        else:
            self.longest = math.floor(max(max(self._draw(w, DRAWS)) for w in range(workers)))

    def lag_of(self, worker: int, pull: int) -> int:
        """Return the lag of a worker's pull number `pull`."""
        if self._law is None:
            return self.longest
        drawn = self._drawn[worker]
        if pull >= len(drawn):
            values = self._draw(worker, 2 * pull + DRAWS)
            drawn = [min(math.floor(value), self.longest) for value in values]
            self._drawn[worker] = drawn
        return drawn[pull]

    def _draw(self, worker: int, n: int) -> list[float]:
        values = self._law.sample(self._seed, READS, worker, n)  # type: ignore[union-attr] # a law draws
        if np.isnan(values).any():
            msg = f"staleness must be a law of numbers, but {self._law} gives others; choose another"
            raise ConfigError(msg)
        found: list[float] = np.minimum(values, MOST).tolist()
        return found
