import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_server import SmallServer

from distsgd import algorithms
from distsgd.live.messages.wire import Kind
from distsgd.live.server import checkpoint
from distsgd.order.budget import Limits


class Store:
    """Files that cannot be written for a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fails, self.n_failed, self.pattern = False, 0, ".*"
        self._write = checkpoint.write_file
        monkeypatch.setattr(checkpoint, "write_file", self.write)

    def write(self, folder: Path, name: str, data: bytes) -> None:
        """Write half of a file, and fail; or write it."""
        if not self.fails or not re.fullmatch(self.pattern, name):
            self._write(folder, name, data)
            return
        self.n_failed += 1
        (folder / name).write_bytes(data[: len(data) // 2])
        raise ConnectionError("the store is away")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Return a store that works until it is told to fail."""
    return Store(monkeypatch)


@pytest.mark.parametrize("pattern", [".*", r".*\.rows\.npy", r".*\.lead\.json", r".*\.0\..*"])
def test_a_store_that_fails_for_a_while_delays_checkpoints_only(
    store: Store, tmp_path: Path, pattern: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A run goes on while nothing can be written, counts it, says it once, and still replays."""
    endless = {"limits": Limits(updates=10**9), "checkpoint_every": 0.02}
    with SmallServer(algorithms.downpour(0.1), tmp_path, **endless) as server:
        server.work()
        saved = server.until(lambda state: state.saved is not None).saved
        store.fails, store.pattern = True, pattern
        state = server.until(lambda state: state.unsaved >= 3)
        assert saved is not None
        assert state.phase == "running"
        assert len([one for one in caplog.records if one.levelno == logging.WARNING]) == 1
        assert len(list((tmp_path / "kept").glob("*.part"))) == 0
        store.fails = False
        server.until(lambda later: (later.saved or 0) > state.updates)
        server.ask(Kind.STOP)
        server.assert_replays()
    assert "the store is away" in caplog.text


@pytest.mark.parametrize("pattern", [".*", r".*\.1\..*"])
def test_the_last_checkpoint_is_tried_until_it_is_written(store: Store, tmp_path: Path, pattern: str) -> None:
    """A run that has ended waits until its last checkpoint is complete, whichever shard fails."""
    store.fails, store.pattern = True, pattern
    with SmallServer(algorithms.downpour(0.1), tmp_path, shards=2) as server:
        server.work()
        server.until(lambda state: state.phase == "ending")
        server.until(lambda _: store.n_failed >= 2)
        assert server.ask().phase == "ending"
        store.fails = False
        server.assert_replays()


def test_a_failed_checkpoint_leaves_the_one_before(store: Store, tmp_path: Path) -> None:
    """While nothing can be written, the last complete checkpoint stays, and loads."""
    endless = {"limits": Limits(updates=10**9), "checkpoint_every": 0.02}
    with SmallServer(algorithms.downpour(0.1), tmp_path, **endless) as server:
        server.work()
        server.until(lambda state: state.saved is not None)
        store.fails = True
        server.until(lambda state: state.unsaved >= 2)
        kept = checkpoint.load(tmp_path / "kept")
        assert kept is not None
        assert len(checkpoint.load_model(tmp_path / "kept", kept)) == 5
        store.fails = False
        server.ask(Kind.STOP)
        server.assert_replays()
