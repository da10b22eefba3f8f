import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"


def said_by(script: str) -> str:
    """Return what a quick call of a script prints; it may not write to stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "error", SCRIPTS / f"{script}.py", "--quick"], check=False,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def shard_size(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the script as a module."""
    monkeypatch.syspath_prepend(SCRIPTS)
    spec = importlib.util.spec_from_file_location("shard_size", SCRIPTS / "shard_size.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.ray
def test_tune_finds_a_rate_for_every_staleness() -> None:
    """The search with Ray Tune prints a row per staleness, and stale gradients end worse."""
    rows = [line.split("│")[1:-1] for line in said_by("tune").splitlines() if line.startswith("│")]
    assert [(int(row[0]), int(row[1])) for row in rows] == [(0, 2), (16, 2)]
    fresh, stale = (float(row[3]) for row in rows)
    assert fresh < stale


def test_shards_by_hand(shard_size: ModuleType) -> None:
    """Eight workers that push a million numbers in a tenth of a second carry 640 MB/s.

    A link of 10 Gbit/s carries 1,250 MB/s, of which 70 % are for use.
    """
    assert shard_size.enough(8, 1_000_000) == (640e6, 1)
    assert shard_size.enough(64, 1_000_000) == (5120e6, 6)


def test_enough_shards_are_enough(shard_size: ModuleType) -> None:
    """On as many shards as the rule names, simulated workers hardly wait; on one they do."""
    found = shard_size.predictions(200, 1_000_000, 20)
    one, several = (int(row[3].rstrip("%")) for row in found if row[0] == "Downpour")
    assert one < 20
    assert several > 85


def test_shard_size_prints_its_tables() -> None:
    """The script prints the loads of all sizes, and every algorithm on several shards."""
    said = said_by("shard_size")
    assert said.count("│ 1,000 ") == 3
    assert said.count("│ synchronous ") == 2
