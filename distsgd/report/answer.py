"""The answer in sentences: pure functions of a summary, each number as the summary has it.

An order between two algorithms is claimed only where their bands do not overlap.
"""

import math
from collections.abc import Sequence

from distsgd.report.statistics import Spread
from distsgd.report.summary import Result, Summary
from distsgd.report.text import listed, number, spread_text


def answer(summary: Summary) -> list[str]:
    """Return what the comparison found: a point per fleet, then what staleness did."""
    per_fleet = [_on_fleet(fleet, summary.of_fleet(fleet)) for fleet in summary.fleets]
    return per_fleet + _across_fleets(summary) + _troubles(summary)


def _on_fleet(fleet: str, results: Sequence[Result]) -> str:
    texts = [_lowest(results), _fastest(results), _mostly_diverged(results)]
    return f"On {fleet}, {' '.join(text for text in texts if text)}"


def _loss(result: Result) -> float:
    return math.inf if result.loss is None else result.loss.median


def _lowest(results: Sequence[Result]) -> str:
    ordered = sorted((result for result in results if _loss(result) < math.inf), key=_loss)
    if not ordered:
        return "no algorithm ended with a finite loss."
    best, *others = ordered
    text = f"{best.algorithm} ended with the lowest training loss, {spread_text(best.loss)}"
    rivals = [other.algorithm for other in others if _overlap(other.loss, best.loss)]
    if rivals:
        against = _few(rivals, "others")
        return f"{text}; the seeds do not settle its order against {against}."
    if not others:
        return f"{text}."
    return f"{text}, ahead of {others[0].algorithm} at {spread_text(others[0].loss)}."


def _overlap(one: Spread | None, other: Spread | None) -> bool:
    return one is not None and other is not None and one.low <= other.high and other.low <= one.high


def _fastest(results: Sequence[Result]) -> str:
    timed = [result.time_to_target for result in results if result.time_to_target is not None]
    if not timed:
        return ""
    times = _times(results)
    if not times:
        return f"None met the target loss of {number(timed[0].target)} in most runs."
    first, last = min(times, key=times.__getitem__), max(times, key=times.__getitem__)
    text = f"The target loss of {number(timed[0].target)} was met first by {first}"
    text += f", after {number(times[first])} virtual seconds"
    if times[first] < times[last]:
        ratio = number(times[last] / times[first])
        text += f", and last by {last}, after {number(times[last])} ({ratio} times as long)"
    missed = [result.algorithm for result in results if result.algorithm not in times]
    text += f"; half or more of the runs of {_few(missed, 'others')} missed it" if missed else ""
    return f"{text}."


def _few(names: Sequence[str], kind: str) -> str:
    return listed(names) if len(names) <= 3 else f"{len(names)} {kind}"


def _times(results: Sequence[Result]) -> dict[str, float]:
    return {
        result.algorithm: result.time_to_target.median_s
        for result in results
        if result.time_to_target is not None and result.time_to_target.median_s is not None
    }


def _mostly_diverged(results: Sequence[Result]) -> str:
    names = [
        result.algorithm
        for result in results
        if result.finished and 2 * result.status.get("diverged", 0) > result.finished
    ]
    return f"Most runs of {listed(names)} diverged." if names else ""


def _across_fleets(summary: Summary) -> list[str]:
    stale = {fleet: _staleness(summary, fleet) for fleet in summary.fleets}
    fresh = min(stale, key=stale.__getitem__, default="")
    worst = max(stale, key=stale.__getitem__, default="")
    growth = _growth(summary.of_fleet(fresh), summary.of_fleet(worst))
    if fresh == worst or len(growth) < 2:
        return []
    most, least = max(growth, key=growth.__getitem__), min(growth, key=growth.__getitem__)
    means = f"mean staleness {number(stale[fresh])} and {number(stale[worst])}"
    text = (
        f"Between {fresh} and {worst} ({means}), the final loss of {most} suffered most: "
        f"it was {number(growth[most])} times as large; that of {least} least: "
        f"{number(growth[least])} times."
    )
    return [text]


def _growth(fresh: Sequence[Result], worst: Sequence[Result]) -> dict[str, float]:
    """Return by which factor the loss of each algorithm grew that does read stale parameters."""
    before = {result.algorithm: _loss(result) for result in fresh}
    return {
        result.algorithm: _loss(result) / before[result.algorithm]
        for result in worst
        if result.staleness is not None
        and result.staleness.mean > 0
        and 0 < before.get(result.algorithm, 0) < math.inf
        and _loss(result) < math.inf
    }


def _staleness(summary: Summary, fleet: str) -> float:
    means = [result.staleness.mean for result in summary.of_fleet(fleet) if result.staleness]
    return max(means, default=0.0)


def _troubles(summary: Summary) -> list[str]:
    n_runs = len(summary.runs)
    n_diverged = sum(line.status == "diverged" for line in summary.runs)
    n_failed = sum(line.status == "failed" for line in summary.runs)
    texts = {
        f"{n_diverged} of {n_runs} runs diverged; they are listed below.": n_diverged > 0,
        f"{n_failed} of {n_runs} runs failed with an error; they are listed below.": n_failed > 0,
        "The comparison was stopped: this is what had finished.": not summary.is_complete,
    }
    return [text for text, applies in texts.items() if applies]
