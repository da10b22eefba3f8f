import pytest
import zmq

from distsgd.live.messages.link import Ended, Link, Peer
from distsgd.live.messages.sockets import Door
from distsgd.live.messages.wire import Kind


def test_a_peer_that_is_moved_waits_for_no_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for servers that are gone goes on when it is told so."""
    monkeypatch.setattr("distsgd.live.messages.link.RESEND_S", 0.05)
    answers = iter([False, True])
    with zmq.Context() as context:
        peer = Peer(0, 1, [Door("tcp://127.0.0.1:9")], 0.0, is_over=lambda: next(answers))
        link = Link(peer, context)
        with pytest.raises(Ended):
            link.wait(link.ask(Kind.JOIN))
        link.close()
