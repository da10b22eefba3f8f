"""Failures in processes of Ray: what our code raises is sent as a value, Ray has its own errors."""

import re
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from distsgd.errors import ConfigError, DistsgdError
from distsgd.live.machine.failure import Failure

Given = ParamSpec("Given")
Owner = TypeVar("Owner")
Answer = TypeVar("Answer")


def reported(do: Callable[Concatenate[Owner, Given], Answer]) -> Callable[Concatenate[Owner, Given], Answer | Failure]:
    """Make a method of an actor return the `Failure` that would end it."""

    @wraps(do)
    def answer(self: Owner, /, *arguments: Given.args, **options: Given.kwargs) -> Answer | Failure:
        try:
            return do(self, *arguments, **options)
        except Exception as error:  # noqa: BLE001 # whatever it is, the driver decides
            return Failure.of(missing_package("a node of the Ray cluster", error) or error)

    return answer


def refused(process: str, error: Exception) -> DistsgdError:
    """Return the error for a process of Ray that could not even begin."""
    return missing_package(process, error) or Failure.of(getattr(error, "cause", None) or error).error(process)


def missing_package(process: str, error: Exception) -> ConfigError | None:
    """Return the error for a package that `process` lacks, or None if `error` is another one.

    Ray wraps the exception of an import that fails, and keeps nothing of it but the text.
    """
    found = re.search(r"No module named '([^']+)'", str(error))
    if found is None:
        return None
    return ConfigError(f"{process} has no package {found[1]}; install distsgd there with all it needs")
