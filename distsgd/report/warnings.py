"""What a reader must know before any number: settings that are hardly meant, runs that failed."""

from collections import Counter
from collections.abc import Sequence

from distsgd.experiment.trials import Trial
from distsgd.report.numbers.summary import Summary


def warnings(summary: Summary) -> list[str]:
    """Return the warnings of a comparison, in sentences; nothing if there is nothing to say."""
    described = {**summary.algorithms, **summary.problems}
    unknown = dict.fromkeys(one["unidentified"] for one in described.values() if "unidentified" in one)
    doubts = [f"Warning: {text}." for text in (*summary.settings.get("warnings", ()), *unknown)]
    errors = [line.error for line in summary.runs if line.status == "failed"]
    failed = _failed("runs", errors, len(summary.runs))
    return doubts + failed + _failed_trials(summary.trials)


def _failed_trials(trials: Sequence[Trial]) -> list[str]:
    errors = [error for trial in trials for error in trial.errors]
    return _failed("runs of tuning", errors, sum(len(trial.seeds) for trial in trials))


def _failed(what: str, errors: Sequence[str], n_runs: int) -> list[str]:
    """Return how many runs failed, and with what: the errors that were most frequent."""
    if not errors:
        return []
    kinds = Counter(errors).most_common(3)
    listed = "; ".join(f"{count} times {error}" if len(kinds) > 1 else error for error, count in kinds)
    n_failed = f"All {n_runs}" if len(errors) == n_runs else f"{len(errors)} of {n_runs}"
    return [f"{n_failed} {what} failed with an error: {listed}."]
