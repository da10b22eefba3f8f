from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from distsgd.live.ray import channels as ray_channels
from distsgd.live.ray.channels import offset


def test_another_clock_is_known_to_half_of_the_shortest_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """The offset of a clock is off by at most half of the time that the quickest answer took."""
    now, generator = [100.0], np.random.default_rng(1)
    monkeypatch.setattr(ray_channels, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for ways in generator.exponential(0.01, (100, ray_channels.QUESTIONS, 2)):
        answers = iter(ways)

        def ask(answers: Iterator[tuple[float, float]] = answers) -> float:
            there, back = next(answers)
            now[0] += there
            answer = now[0] + 7.0
            now[0] += back
            return answer

        assert abs(offset(ask) - 7.0) <= ways.sum(axis=1).min() / 2 + 1e-9
