"""Live runs to which something happens: what the tests of faults share."""

import time
from collections.abc import Callable

from distsgd.fold.request import Progress


class Drama:
    """Does something to a run once it is on its way, and ends it when it has recovered."""

    limit_s: float
    """A test that takes longer hangs."""

    def __init__(self, act: Callable[[], None], *, has_recovered: Callable[[Progress], bool]) -> None:
        self._act, self._has_recovered = act, has_recovered
        self._until, self._acted_at, self._is_over = time.monotonic() + self.limit_s, -1, False

    def watch(self, progress: Progress) -> None:
        """Act after some updates, and look for the end from then on."""
        if self._acted_at < 0 and progress.updates >= 20:
            self._acted_at = progress.updates
            self._act()
        elif self._acted_at >= 0:
            # servers that were killed may have gone back
            goes_on = abs(progress.updates - self._acted_at) > 20
            self._is_over = goes_on and self._has_recovered(progress)

    def stop(self) -> bool:
        """Return whether the run may end."""
        assert time.monotonic() < self._until
        return self._is_over
