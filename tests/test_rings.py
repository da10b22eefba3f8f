import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from distsgd.live.messages.rings import SLOTS, Rings, ShardEnd
from distsgd.live.messages.sockets import endpoints, gates, listen
from distsgd.live.messages.wire import Header, Kind, decode, encode

LARGEST_BYTES = 1000


def message(sequence: int) -> bytes:
    """Return a header that can be told from others."""
    return encode(Header(Kind.PULL, 0, sequence=sequence))


def sequences(parts: list[list[bytes]]) -> list[int]:
    """Return the numbers of messages as a shard has heard them."""
    return [decode(one[1:]).header.sequence for one in parts]


def heard(shard_end: ShardEnd) -> list[list[bytes]]:
    """Return all that a shard hears until no message is left."""
    shard_end.rcvtimeo = 0
    found = []
    while True:
        try:
            found.append(shard_end.recv_multipart())
        except zmq.Again:
            return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder that no other user may enter."""
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.fixture
def router(folder: Path) -> Iterator[zmq.Socket[bytes]]:
    """Return a ROUTER that listens at the socket file of the lead."""
    (gate,) = gates(endpoints(None, 1, folder))
    with zmq.Context() as context, listen(context, gate, LARGEST_BYTES) as socket:
        yield socket


def test_requests_arrive_in_order(router: zmq.Socket[bytes]) -> None:
    """A shard hears the requests of each worker once, in order, with the worker's own name."""
    rings = Rings(workers=2, shards=1)
    shard_end = rings.shard_end(0, router)
    for sequence in (1, 2, 3):
        rings.worker_end(0, 0).send_multipart([message(sequence)])
    rings.worker_end(1, 0).send_multipart([message(7)])
    found = heard(shard_end)
    assert sequences(found) == [1, 2, 3, 7]
    assert len({one[0] for one in found[:3]}) == 1
    assert found[3][0] != found[0][0]
    assert heard(shard_end) == []


def test_a_reply_reaches_who_has_asked(router: zmq.Socket[bytes]) -> None:
    """A reply to the name of a request reaches its worker and no other."""
    rings = Rings(workers=2, shards=1)
    shard_end, asking, other = rings.shard_end(0, router), rings.worker_end(0, 0), rings.worker_end(1, 0)
    asking.send_multipart([message(1)])
    ((name, request),) = heard(shard_end)
    shard_end.send_multipart([name, request])
    assert asking.recv_multipart() == [message(1)]
    other.rcvtimeo = 0
    with pytest.raises(zmq.Again):
        other.recv_multipart()


def test_who_waits_is_woken(router: zmq.Socket[bytes]) -> None:
    """A worker and a shard in two threads exchange 1,000 messages without waiting in vain."""
    rings = Rings(workers=1, shards=1)
    shard_end, worker_end = rings.shard_end(0, router), rings.worker_end(0, 0)

    def serve() -> None:
        for _ in range(1000):
            shard_end.send_multipart(shard_end.recv_multipart())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    for sequence in range(1000):
        worker_end.send_multipart([message(sequence)])
        assert worker_end.recv_multipart() == [message(sequence)]
    thread.join()


def test_another_shard_s_reply_is_no_message(router: zmq.Socket[bytes]) -> None:
    """A worker that is woken by one shard finds nothing of the other, and loses nothing."""
    rings = Rings(workers=1, shards=2)
    first, second = rings.worker_end(0, 0), rings.worker_end(0, 1)
    shard_end = rings.shard_end(1, router)
    second.send_multipart([message(5)])
    shard_end.send_multipart(heard(shard_end)[0])
    assert not first.poll(0)
    assert second.recv_multipart() == [message(5)]


def test_a_shard_that_starts_again_hears_what_is_there(router: zmq.Socket[bytes]) -> None:
    """What a killed shard has heard is heard again by the next one, the newest slots of it."""
    rings = Rings(workers=1, shards=1)
    worker_end = rings.worker_end(0, 0)
    for sequence in range(SLOTS + 3):
        worker_end.send_multipart([message(sequence)])
    newest = list(range(3, SLOTS + 3))
    assert sequences(heard(rings.shard_end(0, router))) == newest
    assert sequences(heard(rings.shard_end(0, router))) == newest


def test_a_new_worker_begins_behind_what_is_there(router: zmq.Socket[bytes]) -> None:
    """A worker that replaces another reads none of its replies, and writes behind its requests."""
    rings = Rings(workers=1, shards=1)
    shard_end, former = rings.shard_end(0, router), rings.worker_end(0, 0)
    former.send_multipart([message(1)])
    shard_end.send_multipart(heard(shard_end)[0])
    fresh = rings.worker_end(0, 0)
    assert not fresh.poll(0)
    fresh.send_multipart([message(2)])
    assert sequences(heard(shard_end)) == [2]


def test_all_others_come_through_the_router(router: zmq.Socket[bytes], folder: Path) -> None:
    """What comes through the ROUTER is heard, and answered, beside the rings."""
    rings = Rings(workers=1, shards=1)
    shard_end = rings.shard_end(0, router)
    shard_end.rcvtimeo = 10_000
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.connect(endpoints(None, 1, folder)[0])
        dealer.send(message(9))
        shard_end.send_multipart(shard_end.recv_multipart())
        assert dealer.recv() == message(9)
