"""How a run ends, decided in one place for all engines."""

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Status: TypeAlias = Literal["done", "target", "diverged", "stopped"]
"""How a run ended: its budget is spent, its target is met, its numbers left the finite ones, or
its caller stopped it."""


def status_after(
    x: NDArray[np.float64], loss: float, target: float | None, is_stopped: Callable[[], bool] = lambda: False
) -> Status:
    """Return how a run ends at an evaluation of the parameters `x`; "done" if it may go on."""
    if not (math.isfinite(loss) and np.isfinite(x).all()):
        return "diverged"
    if target is not None and loss <= target:
        return "target"
    return "stopped" if is_stopped() else "done"
