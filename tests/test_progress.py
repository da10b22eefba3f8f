import re

import pytest

from distsgd.experiment.outcome import Outcome
from distsgd.fold.request import Progress
from distsgd.report import progress as watching
from distsgd.report.progress import Pace


def test_a_line_about_a_live_run() -> None:
    """Updates per second are those since the last line, and begin anew with another run."""
    pace = Pace()
    at = Progress(1000, 1000, 2.0, float("nan"), 1.5, 3, 0)
    assert pace(at) == "1,000 updates, 500/s, loss -, staleness 1.50, 3 workers"
    later = at._replace(updates=1100, wall_seconds=3.0, loss=0.25, alive=1, lost=2)
    text = "1,100 updates, 100/s, loss 0.250, staleness 1.50, 1 worker (2 lost)"
    assert pace(later) == text
    assert "100 updates, 50/s" in pace(at._replace(updates=100))


@pytest.mark.parametrize(
    ("unsaved", "saved", "says"),
    [
        (0, 7, "3 workers"),
        (1, None, "3 workers, checkpoint failed 1 time, never written"),
        (2, 1234, "3 workers, checkpoint failed 2 times, last written at update 1,234"),
    ],
)
def test_a_failing_checkpoint_is_shown(unsaved: int, saved: int | None, says: str) -> None:
    """The line says how often no checkpoint could be written, and when it last was."""
    line = Pace()(Progress(1000, 1000, 2.0, 0.5, 1.5, 3, 0, unsaved, saved))
    assert line.endswith(says)


def test_progress_without_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where there is no terminal, a line now and then says how many runs are done; not each."""
    monkeypatch.setattr(watching, "EVERY_S", 0.0)
    outcome = Outcome("a", "m", 0)
    with watching.progress_of_runs(4) as shown:
        shown.watch(outcome)
        monkeypatch.setattr(watching, "EVERY_S", 1e9)
        shown.watch(outcome)
    out, errors = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"1 of 4 runs \(25 %\) after \d+ s, a on m\n", errors)
