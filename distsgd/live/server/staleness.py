"""Injected staleness: how many versions ago a live pull reads."""

import math

from distsgd.errors import check_count
from distsgd.kernels.draws.random import READS
from distsgd.order.laws import Draws, Law

DRAWS = 1000
"""Draws of each worker that decide how many versions are kept."""


MOST = 2**48
"""No run has so many versions; a law may say more."""


class InjectedStaleness:
    """The lag of each pull [versions]: a function of (seed, worker, number of the pull).

    A pull at the server's version v reads version ``max(0, v - lag)``, whatever the worker has
    pushed; behind a restart, none from before. A law's sample is rounded down; and since versions
    have to be kept, it is at most the longest among the first `DRAWS` of each worker. A number in
    place of a law is the lag of every pull, None no lag.
    """

    def __init__(self, staleness: Law | int | None, seed: int, workers: int) -> None:
        self._draws: list[Draws] = []
        if isinstance(staleness, Law):
            stream = {"seed": seed, "purpose": READS}
            self._draws = [Draws("staleness", staleness, MOST, worker=w, **stream) for w in range(workers)]
            self.longest = math.floor(max(draws.of(n) for draws in self._draws for n in range(DRAWS)))
        else:
            self.longest = min(check_count("staleness", staleness or 0, at_least=0), MOST)

    def lag_of(self, worker: int, pull: int) -> int:
        """Return the lag of a worker's pull number `pull`."""
        return min(math.floor(self._draws[worker].of(pull)), self.longest) if self._draws else self.longest
