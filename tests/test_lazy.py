import importlib
import os
import pickle
import sys
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

import distsgd as ds
from distsgd.problems.lazy import Lazy


def test_a_value_is_made_once_at_its_first_use() -> None:
    """Nothing is called before the value is asked for, and nothing twice."""
    calls: list[tuple[object, ...]] = []

    def make(*given: object) -> int:
        calls.append(given)
        return len(calls)

    lazy = Lazy(make, "given")
    assert calls == []
    assert [lazy.value("more"), lazy.value("more")] == [1, 1]
    assert calls == [("given", "more")]


def test_unpickling_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy, and a copy of that, imports the module of its function when it is first asked."""
    (tmp_path / "imported_late.py").write_text("def make(x): return x + 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    content = cloudpickle.dumps(Lazy(importlib.import_module("imported_late").make, 1))
    del sys.modules["imported_late"]
    copy = pickle.loads(pickle.dumps(pickle.loads(content)))
    assert "imported_late" not in sys.modules
    assert copy.value() == 2
    assert "imported_late" in sys.modules


class Counted(ds.Problem):
    """A problem that says in which processes gradients are evaluated."""

    dimension, samples, is_threaded = 1, 100, True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def loss(self, x: np.ndarray) -> float:
        """Return the mean square."""
        return float(np.mean((x - np.arange(100)) ** 2) / 2)

    def gradient(self, x: np.ndarray, batch: np.ndarray) -> np.ndarray:
        """Return the gradient, and note the process."""
        (self.folder / str(os.getpid())).touch()
        return x - np.mean(batch)


@pytest.mark.parametrize(("is_threaded", "n_processes"), [(True, 2), (False, 3)])
def test_no_gradient_of_a_threaded_problem_in_the_launcher(tmp_path: Path, is_threaded: bool, n_processes: int) -> None:
    """The process that forks evaluates no gradient where that would start threads."""
    problem = Counted(tmp_path)
    problem.is_threaded = is_threaded
    ds.launch(ds.algorithms.synchronous(0.5), problem, workers=2, updates=20)
    assert len({one.name for one in tmp_path.iterdir()} - {str(os.getpid())}) == n_processes
