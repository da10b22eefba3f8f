"""What all tests share: one thread per process, runs made by hand, and the command line."""

import os
import secrets

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# One token for every Ray of the tests: else Ray writes one into the user's home, and reads it once.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
os.environ.pop("RAY_ADDRESS", None)

import gc
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import polars as pl
import pytest

from distsgd.commands.cli import main
from distsgd.run import HISTORY, Run
from distsgd.trace import PULL, PUSH, ROW, Trace

MakeRun = Callable[..., Run]
Call = Callable[..., tuple[int, str, str]]


def round_robin(updates: int) -> Trace:
    """One worker that pulls and pushes in turn, a second apart."""
    rows = np.zeros(2 * updates, dtype=ROW)
    rows["verb"] = [PULL, PUSH] * updates
    rows["time"] = rows["sent"] = rows["done"] = (np.arange(2 * updates) + 1) // 2
    rows["step"] = (np.arange(2 * updates) + 1) // 2
    rows["version"] = (np.arange(2 * updates) + 1) // 2
    rows["read"] = np.arange(2 * updates) // 2
    return Trace(rows, 1)


@pytest.fixture
def make_run() -> MakeRun:
    """Return a maker of runs with given losses, one update and one second apart."""

    def make(losses: Sequence[float], *, seed: int = 0, status: str = "done", **settings: object) -> Run:
        n = len(losses)
        columns = dict.fromkeys(HISTORY, np.arange(n, dtype=np.float64))
        columns |= {"loss": np.array(losses), "test_loss": np.array(losses) + 1.0}
        columns["accuracy"] = np.where(np.isfinite(losses), 0.5, np.nan)
        return Run(
            x=np.array([1.0, np.nan, -0.0]) if status == "diverged" else np.array([0.1, 0.2]),
            history=pl.DataFrame(columns, schema=HISTORY, strict=False),
            trace=round_robin(n - 1),
            status=status,
            diverged_at=n - 1 if status == "diverged" else None,
            settings={"algorithm": {"name": "serial"}, "fleet": {"workers": 1}, "seed": seed} | settings,
        )

    return make


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Return a function that runs the command line, and gives exit code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["distsgd", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code or 0, *capsys.readouterr())

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with long files; let Ray leave sockets to the garbage collector, whenever that runs."""
    # A long file that comes last keeps one core busy while the other has nothing left to do.
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"))


@pytest.fixture(autouse=True)
def _what_ray_has_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Collect what Ray has left in the test that used it, so that it is not met in another one."""
    yield
    if request.node.get_closest_marker("ray"):
        gc.collect()
