"""Everything compiled. No other room imports numba.

1. Nothing here validates: whoever calls a kernel has checked every index and every size, since an
   index off by one row is silent corruption in compiled code.
2. Floating-point operations keep their order and are never contracted (numba's default), so that a
   kernel has the bits of the same expression in NumPy.
3. Randomness is a function of a key (`random`), never a state: what a worker draws depends on
   (seed, purpose, worker, draw) alone.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile `function` at its first call, and keep the machine code on disk for the next process.

    Only for kernels that take no function as an argument: a cached kernel that has captured another
    dispatcher would be looked up under an identity that differs in each process.
    """
    return numba.njit(cache=True)(function)  # type: ignore[return-value] # called like it


def specialised(function: Function) -> Function:
    """Compile `function` at its first call, in this process only."""
    return numba.njit(function)
