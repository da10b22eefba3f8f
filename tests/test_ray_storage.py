from pathlib import Path

import numpy as np
import pytest

from distsgd import ConfigError
from distsgd.live.ray.storage import RemoteFolder, opened, remove
from distsgd.live.server import checkpoint
from distsgd.live.server.checkpoint import Name
from distsgd.trace import ROW


@pytest.fixture(params=["path", "uri"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a folder as a path, and as a URI."""
    return opened(tmp_path / "run" if request.param == "path" else f"file://{tmp_path}/run")


def test_checkpoints_lie_behind_a_uri_as_in_a_folder(folder: Path) -> None:
    """What a server writes into a folder or behind a URI is what the next one reads, to the bit."""
    folder.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(0).normal(size=5)
    for number in (1, 2):
        name = Name(0, number)
        checkpoint.save_columns(folder, name, 0, {"x": x + number})
        segment = checkpoint.save_rows(folder, name, 0, np.zeros(3, ROW))
        memory = checkpoint.ServiceMemory(number, 0, 0, 0.0, [])
        checkpoint.save_description(
            folder, name, checkpoint.Description(checkpoint.FORMAT, 1, False, "done", memory, [segment], [])
        )
    checkpoint.remove_older(folder, 0)
    found = checkpoint.load(folder)
    assert found is not None
    assert (found.name, len(found.rows)) == (Name(0, 2), 3)
    assert checkpoint.load_model(folder, found).tobytes() == (x + 2).tobytes()
    names = {one.name for one in folder.glob("*")}
    assert not any(name.endswith(".part") or name.startswith("0000-00000001.0") for name in names)
    remove(folder)
    assert not folder.exists()


def test_a_uri_that_nobody_opens_is_refused() -> None:
    """A scheme that neither fsspec nor pyarrow knows is the caller's error."""
    with pytest.raises(ConfigError, match="storage nowhere://x cannot be opened"):
        opened("nowhere://x")


def test_a_remote_folder_knows_its_uri(tmp_path: Path) -> None:
    """In a sentence, a folder behind a URI is called by it."""
    folder = opened(f"file://{tmp_path}") / "run"
    assert isinstance(folder, RemoteFolder)
    assert str(folder) == f"file://{tmp_path}/run"
