"""What a run on a Ray cluster tells Ray's metrics, from where Prometheus and a dashboard get it.

1. The lead measures, from the rows of its trace, once a second; the evaluator adds the loss. No
   other process has to know of metrics.
2. Counters count every message. Histograms take at most `MOST_OBSERVED` of them each time, evenly
   spread, so that measuring takes the same time whatever the load.
"""

import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.live.ray.session import package
from distsgd.live.server.records import Rows
from distsgd.trace import DROP, JOIN, LEAVE, PULL, PUSH

EVERY_S = 1.0
"""Time between two measurements [s]."""
MOST_OBSERVED = 1_000
"""Messages that each histogram takes at once."""
STALENESS = [0.5, 1.5, 2.5, 4.5, 8.5, 16.5, 32.5, 64.5, 128.5, 256.5, 1024.5]
"""Upper ends of the staleness histogram's classes [versions]."""
QUEUE_S = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0]
"""Upper ends of the queue time's classes [s]."""

COUNTERS = {
    "distsgd_updates_total": "Updates of the parameters",
    "distsgd_pulls_total": "Pulls that have been served",
    "distsgd_pushes_total": "Pushes that have been served",
    "distsgd_dropped_pushes_total": "Pushes that came after their round had closed",
    "distsgd_lost_workers_total": "Workers that have been given up",
    "distsgd_bytes_total": "Bytes of parameters and gradients in messages, all shards together",
}
HISTOGRAMS = {
    "distsgd_staleness": ("Versions between the read and the arrival of a gradient", STALENESS),
    "distsgd_queue_seconds": ("Time between sending a message and its service", QUEUE_S),
}
GAUGES = {"distsgd_loss": "Training loss, when it was last evaluated"}
TAGS = ("run", "role")


class Measured(NamedTuple):
    """What some rows of a trace tell."""

    counts: dict[str, float]
    """What to add to each counter."""
    observed: dict[str, NDArray[np.float64]]
    """What each histogram takes."""


def measure(rows: NDArray[np.void], before: int, sizes: tuple[float, float]) -> Measured:
    """Return what consecutive rows of a trace tell: sums over all, and values of single ones.

    `before` is the server's version in front of them, `sizes` those of a pull's reply and of a
    push [bytes].
    """
    verb, version = rows["verb"], rows["version"]
    met = np.append(before, version[:-1]) if rows.size else version
    n_of = {one: int(np.count_nonzero(verb == one)) for one in (PULL, PUSH, DROP, JOIN, LEAVE)}
    n_pushes = n_of[PUSH] + n_of[DROP]
    counts = {
        "distsgd_updates_total": int(version[-1]) - before if rows.size else 0,
        "distsgd_pulls_total": n_of[PULL],
        "distsgd_pushes_total": n_pushes,
        "distsgd_dropped_pushes_total": n_of[DROP],
        "distsgd_lost_workers_total": n_of[LEAVE],
        "distsgd_bytes_total": (n_of[PULL] + n_of[JOIN]) * sizes[0] + n_pushes * sizes[1],
    }
    is_push, is_sent = verb == PUSH, verb != LEAVE
    observed = {
        "distsgd_staleness": (met - rows["read"])[is_push].astype(np.float64),
        "distsgd_queue_seconds": (rows["time"] - rows["sent"])[is_sent],
    }
    return Measured(counts, {name: _spread(values) for name, values in observed.items()})


def _spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return at most `MOST_OBSERVED` of the values, evenly spread."""
    if len(values) <= MOST_OBSERVED:
        return values
    places = np.arange(MOST_OBSERVED) * len(values) // MOST_OBSERVED
    return values[places]


class Meters:
    """The metrics of one process of a run; its role is a name such as ``server-0``."""

    def __init__(self, run: str, role: str) -> None:
        ray, tags = package("ray.util.metrics"), {"run": run, "role": role}
        self._meters: dict[str, Any] = {name: ray.Counter(name, text, TAGS) for name, text in COUNTERS.items()}
        self._meters |= {name: ray.Histogram(name, *about, TAGS) for name, about in HISTOGRAMS.items()}
        self._meters |= {name: ray.Gauge(name, text, TAGS) for name, text in GAUGES.items()}
        for meter in self._meters.values():
            meter.set_default_tags(tags)

    def add(self, measured: Measured) -> None:
        """Tell what some rows have told."""
        for name, amount in measured.counts.items():
            if amount > 0:
                self._meters[name].inc(amount)
        for name, values in measured.observed.items():
            for value in values.tolist():
                self._meters[name].observe(value)

    def tell_loss(self, loss: float) -> None:
        """Tell the training loss."""
        self._meters["distsgd_loss"].set(loss)


class RowMeter:
    """Measures the rows of a trace that grows, every `EVERY_S`; `sizes` as in `measure`."""

    def __init__(self, meters: Meters, sizes: tuple[float, float]) -> None:
        self._meters, self._sizes = meters, sizes
        self._n, self._version, self._due_at = -1, 0, 0.0

    def __call__(self, rows: Rows) -> None:
        """Measure the rows since the last time, if it is due; not those of an earlier life."""
        now = time.monotonic()
        if now < self._due_at:
            return
        self._due_at = now + EVERY_S
        new = rows.since(max(0, self._n if self._n >= 0 else rows.n - 1))
        if self._n >= 0:
            self._meters.add(measure(new, self._version, self._sizes))
        self._n = rows.n
        if new.size:
            self._version = int(new["version"][-1])
