import socket
from pathlib import Path

import pytest
import zmq

from distsgd.errors import ConfigError
from distsgd.live.messages.sockets import Door, doors, endpoints, gates, knock, listen, make_keys, needs_keys


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    """A port that is in use is refused by the address, before anything starts."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"{address} cannot be listened at: it is in use"):
            endpoints(address, 1, tmp_path)
        gate = gates([address])[0]
        with zmq.Context() as context, pytest.raises(ConfigError, match="it is in use"), listen(context, gate, 100):
            pass


def test_another_machine_s_address_is_named(tmp_path: Path) -> None:
    """An address that is not this machine's is refused."""
    with pytest.raises(ConfigError, match=r"192\.0\.2\.77:5555 .* not an address of this machine"):
        endpoints("tcp://192.0.2.77:5555", 1, tmp_path)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:5", "tcp://127.0.0.1", "tcp://127.0.0.1:0", "tcp://x:5", "ipc:///tmp/x"]
)
def test_what_is_no_address_is_refused(address: str, tmp_path: Path) -> None:
    """An address has a protocol, a number and a port."""
    with pytest.raises(ConfigError, match="address must look like"):
        endpoints(address, 1, tmp_path)


def test_a_long_path_is_refused(tmp_path: Path) -> None:
    """A socket file's path has at most 107 bytes; the error says where to go."""
    assert endpoints(None, 2, tmp_path) == [f"ipc://{tmp_path}/0", f"ipc://{tmp_path}/1"]
    long = tmp_path / ("x" * 100)
    long.mkdir(mode=0o700)
    with pytest.raises(ConfigError, match=r"must be <= 107 bytes, not .*TMPDIR"):
        endpoints(None, 1, long)


def test_an_open_folder_is_refused(tmp_path: Path) -> None:
    """Socket files lie where only their user can go."""
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match=r"must be private \(mode 700\), not 40755"):
        endpoints(None, 1, tmp_path)


def test_only_what_can_be_overheard_needs_keys() -> None:
    """Socket files and loopback are private to the machine; everything else is encrypted."""
    assert not needs_keys(None)
    assert not needs_keys("tcp://127.0.0.1:5555")
    assert not needs_keys("tcp://[::1]:5555")
    assert needs_keys("tcp://192.0.2.2:5555")


def test_only_known_keys_are_heard(tmp_path: Path) -> None:
    """With keys, a shard hears its peers; no other, with other keys or with none."""
    keys, others = make_keys(1, [0]), make_keys(1, [0])
    listening = endpoints(None, 1, tmp_path)
    strangers = [doors(listening, 0, others)[0]._replace(server=keys.shards[0].public), Door(listening[0])]
    with (
        zmq.Context() as context,
        listen(context, gates(listening, keys)[0], 1000) as router,
        knock(context, doors(listening, 0, keys)[0]) as friend,
        knock(context, strangers[0]) as stranger,
        knock(context, strangers[1]) as plain,
    ):
        router.rcvtimeo = 10_000
        for one in (stranger, plain):
            one.send(b"stranger")
        for _ in range(3):
            friend.send(b"friend")
        assert [router.recv_multipart()[1] for _ in range(3)] == [b"friend"] * 3
        assert not router.poll(200)
