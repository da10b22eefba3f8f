import re
import subprocess
import sys
from pathlib import Path

import pytest
import shard_size
import tune

SCRIPTS = Path(__file__).parent.parent / "scripts"


def said_by(script: str) -> str:
    """Return what a quick call of a script prints; it may not write to stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "error", SCRIPTS / f"{script}.py", "--quick"],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.ray
def test_tune_finds_a_rate_for_every_staleness() -> None:
    """The search with Ray Tune prints a row per staleness, and nothing else."""
    rows = [line.split("│")[1:-1] for line in said_by("tune").splitlines() if line.startswith("│")]
    assert [(int(row[0]), int(row[1])) for row in rows] == [(0, 2), (16, 2)]


def test_a_trial_is_as_stale_as_it_says() -> None:
    """At one learning rate stale gradients end worse than fresh ones, and a divergence is worst."""
    rates = [(0.5, 0), (0.5, 64), (1e200, 0)]
    losses = [tune.trial({"learning_rate": rate, "staleness": tau})["loss"] for rate, tau in rates]
    assert losses == sorted(set(losses))
    assert losses[-1] == sys.float_info.max


def test_shards_by_hand() -> None:
    """Eight workers that push a million numbers in a tenth of a second carry 640 MB/s.

    A link of 10 Gbit/s carries 1,250 MB/s, of which 70 % are for use.
    """
    assert shard_size.enough(8, 1_000_000) == (640e6, 1)
    assert shard_size.enough(64, 1_000_000) == (5120e6, 6)


def test_enough_shards_are_enough() -> None:
    """On as many shards as the rule names, simulated workers hardly wait; on one they do."""
    found = shard_size.predictions(200, 1_000_000, 20)
    one, several = (int(row[3].rstrip("%")) for row in found if row[0] == "Downpour")
    assert one < 20
    assert several > 85


def test_the_readme_quotes_the_script() -> None:
    """Every figure in the page about clusters is one that the script prints."""
    page = (SCRIPTS.parent / "cluster" / "README.md").read_text().partition("What size means")[2]
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    printed = [*shard_size.loads(), *shard_size.predictions(1_000, 1_000_000, 50)]
    plain = {tuple(map(digits, row)) for row in printed}
    quoted = [tuple(map(digits, row)) for row in rows if re.search(r"\d", row[1])]
    assert len(quoted) == 9
    assert plain.issuperset(quoted)


def digits(cell: object) -> str:
    """Return a cell without what only a reader needs."""
    return re.sub(r"[, ]|step$|workers$|th", "", str(cell))


def test_shard_size_prints_its_tables() -> None:
    """The script prints the loads of all sizes, and every algorithm on several shards."""
    said = said_by("shard_size")
    assert said.count("│ 1,000 ") == 3
    assert said.count("│ synchronous ") == 2
