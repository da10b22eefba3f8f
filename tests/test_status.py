import math

import numpy as np
import pytest

from distsgd.status import status_after


@pytest.mark.parametrize(
    ("loss", "x", "is_stopped", "status"),
    [
        (0.5, 1.0, False, "done"),
        (0.5, 1.0, True, "stopped"),
        (0.4, 1.0, True, "target"),
        (math.nan, 1.0, False, "diverged"),
        (0.4, math.inf, False, "diverged"),
    ],
)
def test_a_run_ends_where_its_numbers_say(loss: float, x: float, is_stopped: bool, status: str) -> None:
    """Numbers that are not finite come first, then the target, then a caller that asks to stop."""
    assert status_after(np.array([x]), loss, 0.4, lambda: is_stopped) == status
