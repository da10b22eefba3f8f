"""A failure in another process, as a value: an exception itself may not survive the way."""

import traceback
from typing import NamedTuple

from distsgd.errors import ConfigError, DistsgdError, WireError, WorkerLost, raised

_KNOWN = (ConfigError, WireError, WorkerLost)
_LONGEST = 7_500
"""Characters of each text. As UTF-8 both are less than a pipe holds: sending them never waits."""


class Failure(NamedTuple):
    """What has ended a process that was not killed."""

    kind: type[DistsgdError]
    """`ConfigError`, `WireError` or `WorkerLost`; `DistsgdError` stands for any other exception."""
    sentence: str
    traceback: str
    """For the log; a longer one keeps its end."""

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Return what to send of `error`."""
        kind = next((one for one in _KNOWN if isinstance(error, one)), DistsgdError)
        sentence = raised(error) if kind is DistsgdError else str(error)
        return cls(kind, sentence[:_LONGEST], "".join(traceback.format_exception(error))[-_LONGEST:])

    def error(self, process: str) -> DistsgdError:
        """Return the error to raise for it here; a setting that cannot be used is the caller's."""
        is_caller_s = self.kind is ConfigError
        error = self.kind(self.sentence if is_caller_s else f"{process} failed: {self.sentence}")
        error.add_note(f"In {process}:\n{self.traceback}")
        return error
