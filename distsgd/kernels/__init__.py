"""Everything compiled. No other room imports numba.

1. Nothing here validates: the caller of a kernel has checked every index and every size, since an
   index off by one row is silent corruption in compiled code.
2. Floating-point operations keep their order and are never contracted (numba's default), so that a
   kernel has the bits of the same expression in NumPy.
3. Randomness is a function of a key (`random`), never a state: what a worker draws depends on
   (seed, purpose, worker, draw) alone.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])

NotCompilable = numba.core.errors.NumbaError
"""What the compiler raises on Python that it does not know."""


def _folder() -> str:
    """Return where machine code is kept: a folder named after the source of all kernels.

    Numba looks at the file of a kernel alone, and would go on using what an edited or upgraded
    neighbour had been inlined into. The cycle is among the neighbours: kernels take its numbers.
    """
    here = Path(__file__).parent
    files = [*sorted(here.rglob("*.py")), here.parent / "rules" / "cycle.py"]
    sources = b"".join(path.read_bytes() for path in files)
    checks = os.environ.get("NUMBA_BOUNDSCHECK", "")
    name = hashlib.sha256(sources + checks.encode()).hexdigest()[:16]
    own = here / "__pycache__" if os.access(here, os.W_OK) else Path.home() / ".cache" / "distsgd"
    return str(Path(os.environ.get("NUMBA_CACHE_DIR", own), name))


_FOLDER = _folder()


def compiled(function: Function) -> Function:
    """Compile `function` at its first call, and keep the machine code on disk for the next process.

    Only for kernels that take no function as an argument: a cached kernel that has captured another
    dispatcher would be looked up under an identity that differs in each process.
    """
    config: Any = numba.config
    usual, config.CACHE_DIR = config.CACHE_DIR, _FOLDER
    try:
        return numba.njit(cache=True)(function)  # type: ignore[return-value] # called like it
    finally:
        config.CACHE_DIR = usual  # other packages keep their own place


def specialised(function: Function) -> Function:
    """Compile `function` at its first call, in this process only.

    A division by zero is infinity or NaN, as in NumPy, and no error.
    """
    return numba.njit(error_model="numpy")(function)  # type: ignore[return-value] # called like it
