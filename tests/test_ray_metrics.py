from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from distsgd.live.ray import metrics
from distsgd.live.ray.metrics import RowMeter, measure
from distsgd.live.server.records import Rows
from distsgd.trace import DROP, JOIN, LEAVE, PULL, PUSH, ROW


def rows_of(*rows: tuple[int, int, int, float]) -> np.ndarray:
    """Return rows of (verb, version, read, queue time)."""
    made = np.zeros(len(rows), ROW)
    for row, (verb, version, read, queued) in zip(made, rows, strict=True):
        row["verb"], row["version"], row["read"], row["time"] = verb, version, read, 5.0
        row["sent"] = 5.0 - queued
    return made


ROWS = rows_of(
    (PULL, 3, 3, 0.25),
    (PUSH, 4, 3, 0.0),
    (PUSH, 4, 3, 0.5),
    (PUSH, 5, 4, 0.0),
    (DROP, 5, 1, 0.0),
    (LEAVE, 6, 6, 5.0),
    (JOIN, 6, 6, 0.0),
)


def test_metrics_say_what_the_rows_say() -> None:
    """Counters are sums over rows, and staleness is that of each push when it arrives."""
    measured = measure(ROWS, 3, (100.0, 10.0))
    assert measured.counts == {
        "distsgd_updates_total": 3,
        "distsgd_pulls_total": 1,
        "distsgd_pushes_total": 4,
        "distsgd_dropped_pushes_total": 1,
        "distsgd_lost_workers_total": 1,
        "distsgd_bytes_total": 2 * 100 + 4 * 10,
    }
    assert measured.observed["distsgd_staleness"].tolist() == [0.0, 1.0, 0.0]
    queued = [0.25, 0.0, 0.5, 0.0, 0.0, 0.0]
    assert measured.observed["distsgd_queue_seconds"].tolist() == queued


class Told:
    """Stands for the meters of Ray."""

    def __init__(self) -> None:
        self.measured: list[metrics.Measured] = []

    def add(self, measured: metrics.Measured) -> None:
        """Keep what is told."""
        self.measured.append(measured)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Return the clock of the meters."""
    now = [0.0]
    monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_rows_are_measured_once(clock: list[float]) -> None:
    """However often the rows are shown, each counts once; those of an earlier life never do."""
    told, rows = Told(), Rows(rows_of((PUSH, 1, 0, 0.0)))
    meter = RowMeter(told, (1.0, 1.0))  # type: ignore[arg-type] # it has the method
    for n in range(7):
        meter(rows)
        rows.append(tuple(ROWS[n]))
        meter(rows)
        clock[0] += 2.0
    meter(rows)
    counts = [measured.counts for measured in told.measured]
    assert sum(one["distsgd_pushes_total"] for one in counts) == 4
    assert sum(one["distsgd_updates_total"] for one in counts) == 6 - 1


def test_histograms_take_few_of_many() -> None:
    """Of very many messages a histogram takes a thousand, spread over all of them."""
    rows = np.zeros(5000, ROW)
    rows["verb"], rows["read"] = PUSH, -np.arange(5000)
    taken = measure(rows, 0, (1.0, 1.0)).observed["distsgd_staleness"]
    assert taken.tolist() == list(range(0, 5000, 5))
