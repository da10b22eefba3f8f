import json
from itertools import pairwise
from typing import Any

import jsonschema
import numpy as np
import polars as pl
import pytest

from distsgd.algorithm import Cycle, Pull, Push, Step
from distsgd.errors import ConfigError
from distsgd.order.fleet import Fleet
from distsgd.order.laws import constant, exponential
from distsgd.order.schedule import schedule
from distsgd.report.timeline import Delays, perfetto, spans
from distsgd.trace import JOIN, LEAVE, PULL, PUSH, ROW, Trace

LATENCY, SERVICE = 0.2, 0.05
KNOWN = Delays(LATENCY, SERVICE)
CYCLES: dict[str, Cycle] = {
    "asynchronous": (Pull(), Step(), Push()),
    "synchronous": (Pull(), Step(), Push(quorum=4)),
    "bounded": (Pull(bound=1), Step(), Push()),
    "periodic": (Pull(every=2), Step(), Push(every=3)),
    "step first": (Step(), Push(), Pull()),
}


def ordered(cycle: Cycle, updates: int = 40, **fleet: float) -> Trace:
    """Return the order of four unequal workers behind a slow network and a busy server."""
    machines = {"latency": LATENCY, "service": SERVICE} | fleet
    return schedule(cycle, Fleet(4, exponential(1.0), **machines), updates=updates)


def lengths(found: pl.DataFrame, by: str, *kinds: str) -> np.ndarray:
    """Return the time of some kinds of spans, summed over `by`."""
    own = found.filter(pl.col("kind").is_in(kinds))
    total = np.zeros(int(found[by].max()) + 1)
    np.add.at(total, own[by].to_numpy(), (own["end"] - own["start"]).to_numpy())
    return total


@pytest.mark.parametrize("name", CYCLES)
def test_a_worker_computes_or_waits(name: str) -> None:
    """Computing and waiting cover a worker's time, and computing is as long as it was utilised."""
    trace = ordered(CYCLES[name])
    found = spans(trace, KNOWN)
    own = found.filter(pl.col("kind").is_in(["compute", "waiting"])).sort("worker", "start", "end")
    for _, one in own.group_by("worker"):
        assert one["start"][1:].to_list() == one["end"][:-1].to_list()
        assert one["start"][0] == 0.0
    last = np.zeros(4)
    np.maximum.at(last, trace.rows["worker"], trace.rows["sent"])
    busy = lengths(found, "worker", "compute")
    np.testing.assert_allclose(busy / last, trace.utilisation)


@pytest.mark.parametrize("known", [Delays(), KNOWN, Delays(9.0, 9.0)])
@pytest.mark.parametrize("name", CYCLES)
def test_a_message_spends_all_its_time(name: str, known: Delays) -> None:
    """In flight, queue and service make up a message's time, whatever is known of the fleet."""
    trace = ordered(CYCLES[name])
    rows = trace.rows
    end = np.where(rows["verb"] == PULL, rows["done"], rows["time"])
    found = lengths(spans(trace, known), "row", "in flight", "held", "queue", "apply")
    np.testing.assert_allclose(found, end - rows["sent"])


def test_the_server_serves_one_message_at_a_time() -> None:
    """Each message is served for as long as the fleet says, and none before the one in front."""
    served = spans(ordered(CYCLES["asynchronous"], service=1.0), Delays(LATENCY, 1.0))
    own = served.filter(pl.col("kind") == "apply")
    assert (own["start"][1:] >= own["end"][:-1]).all()
    np.testing.assert_allclose(own["end"] - own["start"], 1.0)


def test_a_worker_is_held_for_others() -> None:
    """Pulls are held until a round closes or a bound allows them, never where none waits."""
    for name, is_held in (("synchronous", True), ("bounded", True), ("asynchronous", False)):
        trace = ordered(CYCLES[name])
        held = spans(trace, KNOWN).filter(pl.col("kind") == "held")
        assert (len(held) > 0) == is_held
        assert (trace.rows["verb"][held["row"].to_numpy()] == PULL).all()


def test_a_slow_link_is_a_queue() -> None:
    """A push whose bytes take their time queues for the link, and is not held by anybody."""
    fleet = Fleet(2, exponential(1.0), bandwidth=10.0)
    trace = schedule(CYCLES["asynchronous"], fleet, updates=20, push_bytes=5.0)
    found = spans(trace, Delays())
    pushes = np.flatnonzero(trace.rows["verb"] == PUSH)
    queue = lengths(found.filter(pl.col("kind") == "queue"), "row", "queue")
    assert (queue[pushes] > 0.4999).all()


def test_what_queues_meets_a_busy_server() -> None:
    """While a pull queues, the server serves those in front of it without a break."""
    trace = ordered(CYCLES["synchronous"])
    found = spans(trace, KNOWN)
    served = found.filter(pl.col("kind") == "apply")
    for row in found.filter(pl.col("kind") == "queue").iter_rows(named=True):
        if trace.rows["verb"][row["row"]] == PULL:
            during = served.filter(pl.col("end") > row["start"], pl.col("start") < row["end"])
            busy = (during["end"].clip(upper_bound=row["end"]) - during["start"].clip(lower_bound=row["start"])).sum()
            assert busy == pytest.approx(row["end"] - row["start"])


def test_nothing_queues_at_an_idle_server() -> None:
    """A message that meets no other spends its time in flight and being served."""
    trace = schedule(CYCLES["asynchronous"], Fleet(1, constant(1.0), latency=0.5), updates=5)
    found = spans(trace, Delays(0.5, 0.0))
    # The pull that follows a push arrives at the same instant.
    assert set(found["kind"]) == {"waiting", "compute", "in flight", "apply"}


def common(ph: str, **more: object) -> dict[str, Any]:
    """Return the schema of an event of type `ph`: the documented fields, and nothing else."""
    number = {"type": "integer", "minimum": 0}
    fields = {"ph": {"const": ph}, "name": {"type": "string", "minLength": 1}, "pid": number, "tid": number} | more
    return {"properties": fields, "required": list(fields), "additionalProperties": False}


TIME = {"type": "number", "minimum": 0}
TEXT = {"type": "string"}
SLICE = common("X", ts=TIME, dur=TIME, cat=TEXT, args={"type": "object"})
SLICE["required"].remove("args")
SCHEMA = {
    "type": "object",
    "required": ["traceEvents"],
    "properties": {
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "otherData": {"additionalProperties": TEXT},
        "traceEvents": {
            "type": "array",
            "minItems": 1,
            "items": {
                "oneOf": [
                    SLICE,
                    common("b", ts=TIME, cat=TEXT, id={"type": "integer"}),
                    common("e", ts=TIME, cat=TEXT, id={"type": "integer"}),
                    common("i", ts=TIME, cat=TEXT, args={"type": "object"}, s={"const": "t"}),
                    common("C", ts=TIME, args={"additionalProperties": {"type": "number"}}),
                    common("M", args={"properties": {"name": TEXT}, "required": ["name"]})
                    | {"not": {"properties": {"name": {"pattern": "^(?!process_name|thread_name)"}}}},
                ]
            },
        },
    },
}
"""The Trace Event Format, as far as this project uses it."""


@pytest.mark.parametrize("name", CYCLES)
def test_a_file_for_perfetto_follows_its_schema(name: str) -> None:
    """Every event has the fields, types and names that the Trace Event Format documents."""
    jsonschema.validate(json.loads(perfetto(ordered(CYCLES[name]), KNOWN)), SCHEMA)


def events(trace: Trace, **options: int) -> list[dict[str, Any]]:
    """Return the events of `trace`."""
    found: list[dict[str, Any]] = json.loads(perfetto(trace, KNOWN, **options))["traceEvents"]
    return found


def test_perfetto_counts_what_the_trace_counts() -> None:
    """Counters show every version and the staleness of each update, at its microsecond."""
    trace = ordered(CYCLES["asynchronous"])
    shown = [event for event in events(trace) if event["ph"] == "C"]
    for name, values in (("version", np.arange(1, 41)), ("staleness", trace.staleness)):
        own = [event for event in shown if event["name"] == name]
        assert [event["args"][name] for event in own] == values.tolist()
        np.testing.assert_allclose([event["ts"] for event in own], 1e6 * trace.seconds, atol=1e-3)


def test_slices_of_a_thread_do_not_overlap() -> None:
    """The slices of a worker, and those of the server, follow each other to the nanosecond."""
    slices = [event for event in events(ordered(CYCLES["bounded"])) if event["ph"] == "X"]
    threads: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for event in slices:
        begin, length = round(1e3 * event["ts"]), round(1e3 * event["dur"])
        threads.setdefault((event["pid"], event["tid"]), []).append((begin, begin + length))
    assert len(threads) == 5
    for own in threads.values():
        own.sort()
        assert all(one[1] <= other[0] for one, other in pairwise(own))


def test_what_is_in_flight_arrives() -> None:
    """Every asynchronous event that begins ends, later and with the same identity."""
    found = events(ordered(CYCLES["synchronous"]))
    for begun, ended in zip(
        (event for event in found if event["ph"] == "b"), (event for event in found if event["ph"] == "e"), strict=True
    ):
        assert ended["ts"] > begun["ts"]
        for key in ("pid", "tid", "id", "cat", "name"):
            assert begun[key] == ended[key]


WITH_A_LOSS = [  # time, sent, done, worker, verb, step, version, read
    (0.0, 0.0, 0.5, 0, PULL, 0, 0, 0),
    (0.0, 0.0, 0.5, 1, PULL, 0, 0, 0),
    (2.0, 1.5, 1.5, 1, PUSH, 1, 1, 0),
    (4.0, 4.0, 4.0, 0, LEAVE, 0, 1, 1),
    (6.0, 5.0, 7.0, 0, JOIN, 0, 1, 1),
    (9.0, 8.0, 8.0, 0, PUSH, 1, 2, 1),
]


def test_what_a_lost_worker_did_is_not_known() -> None:
    """A lost worker computes from its join on; its loss is no message, its join is one."""
    trace = Trace(np.array(WITH_A_LOSS, ROW), 2)
    trace.verify()
    found = spans(trace).filter(pl.col("worker") == 0)
    own = found.filter(pl.col("kind").is_in(["compute", "waiting", "in flight"]))
    assert own.select("kind", "row", "start", "end").rows() == [
        ("compute", 5, 7.0, 8.0),
        ("in flight", 0, 0.0, 0.5),
        ("in flight", 4, 6.0, 7.0),
        ("waiting", 0, 0.0, 0.5),
        ("waiting", 4, 5.0, 7.0),
    ]
    assert found.filter(pl.col("kind") == "apply")["row"].to_list() == [0, 4, 5]


def test_perfetto_marks_losses_and_joins() -> None:
    """An instant stands where a worker was given up or joined, at its microsecond."""
    content = json.loads(perfetto(Trace(np.array(WITH_A_LOSS, ROW), 2)))
    jsonschema.validate(content, SCHEMA)
    marks = [event for event in content["traceEvents"] if event["ph"] == "i"]
    assert [(mark["name"], mark["tid"], mark["ts"]) for mark in marks] == [("leave", 0, 4e6), ("join", 0, 6e6)]


def test_a_huge_trace_is_cut() -> None:
    """A file shows so many messages and no more, and says how many there were."""
    trace = ordered(CYCLES["asynchronous"])
    content = json.loads(perfetto(trace, most_rows=10))
    assert content["otherData"] == {"messages": str(len(trace.rows)), "messages shown": "10"}
    assert sum(event.get("cat") == "server" for event in content["traceEvents"]) == 10
    with pytest.raises(ConfigError, match="most_rows must be"):
        perfetto(trace, most_rows=0)
