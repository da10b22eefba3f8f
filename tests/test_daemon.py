import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys, traceback

sys.path.insert(0, sys.argv[3])
if sys.argv[2] == "closed":
    for handle in (0, 1, 2):
        os.close(handle)
try:
    import distsgd as ds

    problem = ds.problems.quadratic([1.0, 2.0], noise=0.1)
    own = ds.algorithms.downpour(0.1)
    live = ds.launch(own, problem, workers=2, updates=20)
    found = ds.compare({"own": own}, problem, ds.Fleet(2), updates=5, seeds=2, processes=2)
    text = f"{live.status}, {len(found.outcomes)} runs"
except BaseException:
    text = traceback.format_exc()
with open(sys.argv[1], "w") as file:
    file.write(text)
"""


@pytest.mark.parametrize("how", ["closed", "never open"])
def test_a_daemon_can_launch_and_compare(tmp_path: Path, how: str) -> None:
    """A process without standard streams makes live runs, and comparisons in several processes."""
    package = str(Path(__file__).parent.parent)
    given = [sys.executable, "-c", SCRIPT, str(tmp_path / "found"), how, package]
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *given]
    subprocess.run(given if how == "closed" else shell, check=True, timeout=120, cwd=tmp_path)
    assert (tmp_path / "found").read_text() == "done, 2 runs"
