"""What a reader is shown of a result: asked for here, answered by the report.

Runs and traces are made far below the report and know nothing of charts, yet a notebook asks them
for a picture. So they ask the `Display` that the package's ``__init__``, which stands above all
rooms, hands in as `load`. It is imported when it is first asked: a run needs no charts.
"""

from collections.abc import Callable
from typing import Any, Protocol


class Display(Protocol):
    """What shows results; the report's module ``notebook`` is one."""

    def run_chart(self, run: Any, picture: str, view: str | None) -> Any:  # noqa: ANN401 # a run; a chart of Altair
        """Return a picture of a run."""

    def run_html(self, run: Any) -> str:  # noqa: ANN401 # a run
        """Return a run as HTML."""

    def trace_html(self, trace: Any) -> str:  # noqa: ANN401 # a trace
        """Return a trace as HTML."""


load: Callable[[], Display]
"""Returns what shows results; set by the package's ``__init__``."""
