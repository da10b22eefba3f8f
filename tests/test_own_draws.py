"""What own code draws when it is called from an experiment file."""

import subprocess
import sys
from pathlib import Path

import pytest

DRAWN = """
import sys
from pathlib import Path
from distsgd.experiment.own_code import Kind, maker
exec(sys.argv[2])
print(maker("mine:draw", Path(sys.argv[1]), Kind(float, "1.0"))())
"""


@pytest.mark.parametrize(("package", "draw"), [("numpy", "random.rand()"), ("torch", "rand(1).item()")])
def test_weights_that_are_drawn_are_the_same_in_every_process(package: str, draw: str, tmp_path: Path) -> None:
    """What a function draws does not depend on what its process has imported or drawn before."""
    pytest.importorskip(package, reason=f"needs distsgd[{package}]")
    (tmp_path / "mine.py").write_text(f"def draw():\n    import {package}\n    return {package}.{draw}\n")
    before = ["", f"import {package}; {package}.{draw}"]
    found = [
        subprocess.run([sys.executable, "-c", DRAWN, tmp_path, one], capture_output=True, text=True, check=True).stdout
        for one in before
    ]
    assert found[0] == found[1] != ""
