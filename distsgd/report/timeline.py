"""What workers and server did when: an order as spans of time, and as a file for Perfetto.

1. A worker computes from when it went on until it sends; then it waits until it goes on again.
2. A message is in flight, queues for the server's link and for the server, and is served until its
   row's time. The answer to a pull is in flight again.
3. A pull that the server leaves aside while it is idle is held: its worker waits for others, for
   the end of a round or for the slowest.
4. A trace does not know how long a message travels and is served; the fleet does. Without a fleet
   all the time between sending and being served is queueing, or being held.
5. What a worker did before the server gave it up, or before it joined, is not known: no span.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from distsgd.errors import check_count, check_number
from distsgd.run import Run
from distsgd.trace import DROP, JOIN, LEAVE, PULL, VERBS, Trace

Kind: TypeAlias = Literal["compute", "waiting", "in flight", "held", "queue", "apply"]
KINDS: tuple[Kind, ...] = ("waiting", "compute", "queue", "apply", "in flight", "held")
"""What a span of time was spent on; the first two are a worker's, the others a message's."""

MOST_ROWS = 50_000
"""Served messages in one file for Perfetto, at most: about 40 MB."""

WORKERS, SERVER = 1, 2
"""Process numbers in a file for Perfetto."""


class Delays(NamedTuple):
    """What a message costs beside queueing: one way in flight, and at the server [s]."""

    latency_s: float = 0.0
    service_s: float = 0.0


def delays(run: Run) -> Delays:
    """Return the delays of the fleet that `run` was simulated on, 0 where it has no machines."""
    fleet = run.settings["fleet"]
    return Delays(float(fleet.get("latency", 0.0)), float(fleet.get("service", 0.0)))


def spans(trace: Trace, known: Delays = Delays()) -> pl.DataFrame:  # noqa: B008 # immutable
    """Return what workers and messages spent their time on, but for spans without length.

    Returned are the columns kind (one of `KINDS`), worker, row (of the trace), start and end [s],
    ordered by kind and row. An ``apply`` is there for every message, also one that took no time; a
    worker that was given up has sent none.
    """
    rows = trace.rows
    order = np.argsort(rows["worker"], kind="stable")
    went_on = np.empty(len(rows))
    went_on[order] = _went_on(rows[order])
    arrived, begun = _arrived(rows, known)
    queued = _queued(rows, arrived, begun)
    answered = np.flatnonzero((rows["verb"] == PULL) | (rows["verb"] == JOIN))
    every = np.flatnonzero(rows["verb"] != LEAVE)
    parts = [
        _part("waiting", rows, every, rows["sent"], rows["done"]),
        _part("compute", rows, order, went_on, rows["sent"]),
        _part("in flight", rows, every, rows["sent"], arrived),
        _part("in flight", rows, answered, rows["time"], rows["done"]),
        _part("held", rows, every, arrived, queued),
        _part("queue", rows, every, queued, begun),
        _part("apply", rows, every, begun, rows["time"]),
    ]
    return pl.concat(parts).sort("kind", "row", "start")


def _row_before(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the value of the row before each one; 0 for the first."""
    return np.concatenate([[0.0], values])[:-1]


def _went_on(rows: npt.NDArray[np.void]) -> npt.NDArray[np.float64]:
    """Return when each message's worker had gone on before it, for rows ordered by worker."""
    is_first = np.diff(rows["worker"], prepend=-1) != 0
    # A first message at step 0 was sent without computing, whenever its worker was started.
    started = np.where(rows["step"] == 0, rows["sent"], 0.0)
    is_unknown = rows["verb"] > DROP
    return np.where(is_unknown, rows["sent"], np.where(is_first, started, _row_before(rows["done"])))


def _arrived(rows: npt.NDArray[np.void], known: Delays) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return when each message reached the server, and when the server began with it [s]."""
    begun = np.maximum(rows["time"] - known.service_s, rows["sent"])
    begun = np.maximum(begun, _row_before(rows["time"]))
    return np.minimum(rows["sent"] + known.latency_s, begun), begun


def _queued(
    rows: npt.NDArray[np.void], arrived: npt.NDArray[np.float64], begun: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return when each message began to queue: a pull not before the server was last idle [s]."""
    was_idle = begun - _row_before(rows["time"]) > 4 * np.spacing(begun)
    busy_since = begun[np.maximum.accumulate(np.where(was_idle, np.arange(len(rows)), 0))]
    held = np.minimum(np.maximum(arrived, busy_since), begun)
    return np.where(rows["verb"] == PULL, held, arrived)


def _part(
    kind: Kind,
    rows: npt.NDArray[np.void],
    numbers: npt.NDArray[np.int64],
    start: npt.NDArray[np.float64],
    end: npt.NDArray[np.float64],
) -> pl.DataFrame:
    start, end = start[numbers], end[numbers]
    columns = {"worker": rows["worker"][numbers], "row": numbers, "start": start, "end": end}
    # Two sums of the same times may differ in their last bits: that is no queue.
    kept = (end - start > 4 * np.spacing(end)) | (kind == "apply")
    part = pl.DataFrame({name: values[kept] for name, values in columns.items()})
    return part.select(pl.lit(kind).alias("kind"), pl.all())


def perfetto(
    trace: Trace,
    known: Delays = Delays(),  # noqa: B008 # immutable
    *,
    most_rows: int = MOST_ROWS,
) -> bytes:
    """Return `trace` as Chrome trace events, which https://ui.perfetto.dev opens.

    Workers are threads of one process: they compute or wait, and their messages are in flight. The
    server is another process: messages queue, and are applied one at a time; its counters are the
    version and the staleness of each update. An instant marks a worker that left or joined.

    Times are in microseconds. Shown are the first `most_rows` served messages; the file says how
    many there were.

    Raises
    ------
    ConfigError
        If `most_rows` is no number >= 1, or a delay is negative.

    References
    ----------
    Google, "Trace Event Format": complete (X), nestable asynchronous (b, e), instant (i), counter
    (C) and metadata (M) events in an object.
    """
    for name, value in known._asdict().items():
        check_number(name, value, at_least=0, unit=" s")
    shown = Trace(trace.rows[: check_count("most_rows", most_rows)], trace.workers)
    events = [*_names(shown), *_slices(shown, known), *_changes(shown), *_counters(shown)]
    content = {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"messages": str(len(trace.rows)), "messages shown": str(len(shown.rows))},
    }
    return msgspec.json.encode(content)


class _Event(msgspec.Struct, omit_defaults=True):
    ph: str
    name: str
    pid: int
    tid: int
    ts: float | None = None
    dur: float | None = None
    cat: str | None = None
    id: int | None = None
    args: dict[str, Any] | None = None
    s: str | None = None


def _names(trace: Trace) -> Iterator[_Event]:
    for pid, name in ((WORKERS, "workers"), (SERVER, "server")):
        yield _Event("M", "process_name", pid, 0, args={"name": name})
    for worker in np.unique(trace.rows["worker"]).tolist():
        yield _Event("M", "thread_name", WORKERS, worker, args={"name": f"worker {worker}"})
    yield _Event("M", "thread_name", SERVER, 0, args={"name": "served"})


def _slices(trace: Trace, known: Delays) -> Iterator[_Event]:
    rows = trace.rows
    for kind, worker, row, start, end in spans(trace, known).iter_rows():
        begin = _microseconds(start)
        length = round(_microseconds(end) - begin, 3)
        if kind in {"compute", "waiting"}:
            yield _Event("X", kind, WORKERS, worker, begin, length, "worker")
        elif kind == "apply":
            verb = VERBS[rows["verb"][row]]
            yield _Event("X", verb, SERVER, 0, begin, length, "server", args=_told(rows[row]))
        else:
            pid = WORKERS if kind == "in flight" else SERVER
            yield _Event("b", kind, pid, worker, begin, cat=kind, id=row)
            yield _Event("e", kind, pid, worker, begin + length, cat=kind, id=row)


def _told(row: np.void) -> dict[str, int]:
    return {name: int(row[name]) for name in ("worker", "step", "version", "read")}


def _changes(trace: Trace) -> Iterator[_Event]:
    """Yield an instant of the thread of each worker that left or joined."""
    for row in trace.rows[trace.rows["verb"] > DROP]:
        verb, worker, time = VERBS[row["verb"]], int(row["worker"]), _microseconds(row["time"])
        yield _Event("i", verb, WORKERS, worker, time, cat="worker", args=_told(row), s="t")


def _counters(trace: Trace) -> Iterator[_Event]:
    times = trace.seconds.tolist()
    for version, (time, staleness) in enumerate(zip(times, trace.staleness.tolist(), strict=True)):
        for name, value in (("version", version + 1), ("staleness", staleness)):
            yield _Event("C", name, SERVER, 0, _microseconds(time), args={name: value})


def _microseconds(seconds: float) -> float:
    return round(1e6 * float(seconds), 3)
