import importlib
import pickle
import sys
from pathlib import Path

import cloudpickle
import pytest

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
