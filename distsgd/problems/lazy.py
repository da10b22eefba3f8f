"""What a problem has of a framework: made where it is first used, and never sent.

JAX and TensorFlow have threads, and a process with threads must not fork. The launcher of a live
run forks its processes with the problem at hand (`distsgd.live.machine.forking`, rule 1), and these
evaluate its first gradient. So

1. what a problem has of a framework is made at its first use, in each process anew;
2. unpickling a problem imports nothing: until the first use, functions of the user are bytes, for
   their modules import the framework.
"""

import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, Generic, TypeVar

import cloudpickle  # type: ignore[import-untyped] # cloudpickle ships no types

from distsgd.errors import ConfigError

Value = TypeVar("Value")


def framework(name: str, extra: str) -> ModuleType:
    """Return a package that is optional, or raise a `ConfigError` that says what to install."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        what = f"from_{extra} needs the package {name.partition('.')[0]}, which is not installed"
        raise ConfigError(f"{what}; install it with pip install 'distsgd[{extra}]'") from None


def xla_threads() -> int:
    """Return how many threads XLA has, or will have, in this process: its bits depend on them."""
    return int(os.environ.get("NPROC", "0")) or len(os.sched_getaffinity(0))


class Lazy(Generic[Value]):
    """What ``make(*given, *more)`` returns, called at the first use in each process.

    Pickled, it is the bytes of `make` and `given`. Forked processes do not share the arrays in
    bytes: `more` is for what is large, and an attribute of the problem anyhow, such as its data.
    """

    def __init__(self, make: Callable[..., Value], *given: Any) -> None:  # noqa: ANN401 # those of `make`
        self._content: Any = (make, given)
        self._made: tuple[Value, ...] = ()

    def value(self, *more: Any) -> Value:  # noqa: ANN401 # as above
        """Return it, the same object each time."""
        if not self._made:
            make, given = cloudpickle.loads(self._content) if isinstance(self._content, bytes) else self._content
            self._made = (make(*given, *more),)
        return self._made[0]

    def __getstate__(self) -> bytes:
        """Return bytes (rule 2)."""
        return self._content if isinstance(self._content, bytes) else bytes(cloudpickle.dumps(self._content))

    def __setstate__(self, content: bytes) -> None:
        """Keep the bytes until the first use."""
        self._content, self._made = content, ()
