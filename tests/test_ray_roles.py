import queue
import threading
from types import SimpleNamespace

import pytest
import zmq

from distsgd.live.peers.evaluator import Judged
from distsgd.live.ray.roles import Mailbox, Server
from distsgd.problem import Evaluation


@pytest.mark.parametrize(("is_one_machine", "host"), [(True, "127.0.0.1"), (False, "127.0.0.2")])
def test_a_reserved_port_can_be_listened_at(monkeypatch: pytest.MonkeyPatch, is_one_machine: bool, host: str) -> None:
    """A shard can listen at the port that it holds: on loopback, or on its node's address."""
    util = SimpleNamespace(util=SimpleNamespace(get_node_ip_address=lambda: "127.0.0.2"))
    monkeypatch.setattr("distsgd.live.ray.roles.import_module", lambda _: util)
    server = Server([])
    endpoint = server.open(is_one_machine)
    assert endpoint.startswith(f"tcp://{host}:")
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.bind(endpoint)
    server._reserved.close()


def test_the_evaluator_waits_until_the_driver_has_what_it_found() -> None:
    """What the servers hear of an evaluation, the driver has: the next question says so."""
    mailbox, sent = Mailbox(), queue.SimpleQueue[int]()
    found = [Judged(n, Evaluation(0.5, 0.5, 0.5), 0.0, 0, None) for n in range(3)]

    def evaluate() -> None:
        for one in found:
            mailbox.send(one)
            sent.put(one.update)

    thread = threading.Thread(target=evaluate)
    thread.start()
    received = []
    for _ in found:
        received.append(mailbox.taken(20.0))
        assert sent.qsize() == len(received) - 1
    assert mailbox.taken(0.0) is None
    thread.join()
    assert received == found
