"""The answer in sentences: pure functions of a summary, each number as the summary has it.

An order between two algorithms is claimed where the interval of their ratio, seed by seed, does not
hold 1; with fewer than three common seeds, where their bands do not overlap.
"""

import math
from collections.abc import Mapping, Sequence

from distsgd.report.contrasts import Tolerance
from distsgd.report.engines import Agreement
from distsgd.report.findings import Contrast, Quantity
from distsgd.report.statistics import Spread
from distsgd.report.summary import Result, Summary
from distsgd.report.text import listed, number, spread_text

CLEAR = 1.5
"""Ranges of a parameter differ if one is this many times as wide: a grid is too coarse for less."""


def answer(summary: Summary) -> list[str]:
    """Return what the comparison found: a point per problem and fleet, then what lies across."""
    per_case = [_on_case(summary, problem, fleet) for problem, fleet in summary.cases]
    across = [point for problem in _problems(summary) for point in _across_fleets(summary, problem)]
    live = _agreement(summary) + _left_out(summary)
    return per_case + live + _certainty(summary) + _tuning(summary) + across + _troubles(summary)


def _problems(summary: Summary) -> list[str]:
    return list(dict.fromkeys(problem for problem, _ in summary.cases))


def _on_case(summary: Summary, problem: str, fleet: str) -> str:
    results = summary.of_fleet(fleet, problem)
    contrasts = [one for one in summary.contrasts if (one.problem, one.fleet) == (problem, fleet)]
    texts = [_lowest(results, contrasts), _fastest(results, contrasts), _mostly_diverged(results)]
    place = _place(summary, problem, fleet)
    return f"On {place}, {' '.join(text for text in texts if text)}"


def _place(summary: Summary, problem: str, fleet: str) -> str:
    return fleet if len(_problems(summary)) == 1 else f"{fleet} with {problem}"


def _loss(result: Result) -> float:
    return math.inf if result.loss is None else result.loss.median


def _lowest(results: Sequence[Result], contrasts: Sequence[Contrast]) -> str:
    ordered = sorted((result for result in results if _loss(result) < math.inf), key=_loss)
    if not ordered:
        return "no algorithm ended with a finite loss."
    best, *others = ordered
    text = f"{best.algorithm} ended with the lowest training loss, {spread_text(best.loss)}"
    ratios = _ratios(contrasts, "loss")
    rivals = [
        other.algorithm for other in others
        if not _is_settled(ratios.get(other.algorithm), other.loss, best.loss)
    ]  # fmt: skip
    if rivals:
        against = _few(rivals, "others")
        return f"{text}; the seeds do not settle its order against {against}."
    if not others:
        return f"{text}."
    return f"{text}, ahead of {others[0].algorithm} at {spread_text(others[0].loss)}."


def _ratios(contrasts: Sequence[Contrast], quantity: Quantity) -> dict[str, Contrast]:
    return {one.algorithm: one for one in contrasts if one.quantity == quantity}


def _is_settled(ratio: Contrast | None, other: Spread | None, best: Spread | None) -> bool:
    if ratio is not None and ratio.low is not None:
        return ratio.low > 1
    return not _overlap(other, best)


def _overlap(one: Spread | None, other: Spread | None) -> bool:
    return one is not None and other is not None and one.low <= other.high and other.low <= one.high


def _fastest(results: Sequence[Result], contrasts: Sequence[Contrast]) -> str:
    timed = [result.time_to_target for result in results if result.time_to_target is not None]
    if not timed:
        return ""
    times = _times(results)
    if not times:
        return f"None met the target loss of {number(timed[0].target)} in most runs."
    first, *others = sorted(times, key=times.__getitem__)
    text = f"The target loss of {number(timed[0].target)} was met first by {first}"
    text += f", after {number(times[first])} {timed[0].clock} seconds"
    ratios = _ratios(contrasts, "seconds")
    if others:
        text += f"; {others[0]} took {_longer(times[others[0]], ratios[others[0]])}"
    if len(others) > 1:
        last = others[-1]
        text += f", and {last}, the last, {_longer(times[last], ratios[last])}"
    missed = [result.algorithm for result in results if result.algorithm not in times]
    text += f"; half or more of the runs of {_few(missed, 'others')} missed it" if missed else ""
    return f"{text}."


def _longer(time: float, ratio: Contrast) -> str:
    """Return how many times as long, with the interval or why there is none."""
    if ratio.median is None:
        return f"{number(time)}"
    seeds = f"{ratio.n_pairs} seed{'s' * (ratio.n_pairs != 1)}"
    text = f"{number(ratio.median)} times as long"
    if ratio.low is None or ratio.high is None:
        return f"{text} (from {seeds}: too few to say how sure)"
    high = number(ratio.high) if ratio.high < math.inf else "unbounded"
    return f"{text} [{number(ratio.low)}, {high}] ({seeds})"


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


def _across_fleets(summary: Summary, problem: str) -> list[str]:
    engines = dict.fromkeys(summary.engine_on(fleet) for fleet in summary.fleets)
    groups = [
        [fleet for fleet in summary.fleets if summary.engine_on(fleet) == engine]
        for engine in engines
    ]
    return [point for fleets in groups for point in _across(summary, problem, fleets)]


def _across(summary: Summary, problem: str, fleets: Sequence[str]) -> list[str]:
    stale = {fleet: _staleness(summary.of_fleet(fleet, problem)) for fleet in fleets}
    fresh = min(stale, key=stale.__getitem__, default="")
    worst = max(stale, key=stale.__getitem__, default="")
    growth = _growth(summary.of_fleet(fresh, problem), summary.of_fleet(worst, problem))
    if fresh == worst or len(growth) < 2:
        return []
    most, least = max(growth, key=growth.__getitem__), min(growth, key=growth.__getitem__)
    means = f"mean staleness {number(stale[fresh])} and {number(stale[worst])}"
    where = f", {problem}" if len(_problems(summary)) > 1 else ""
    text = (
        f"Between {fresh} and {worst} ({means}{where}), the final loss of {most} suffered most: "
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


def _staleness(results: Sequence[Result]) -> float:
    return max([result.staleness.mean for result in results if result.staleness], default=0.0)


def _agreement(summary: Summary) -> list[str]:
    """Return for each problem and live fleet how far its losses are from the simulated ones."""
    groups: dict[tuple[str, str], list[Agreement]] = {}
    for one in summary.agreements:
        if one.typical is not None:
            groups.setdefault((one.problem, one.fleet), []).append(one)
    return [
        _agreed(_place(summary, *place), sorted(own, key=lambda one: one.typical or 0.0))
        for place, own in groups.items()
    ]


def _agreed(place: str, ordered: Sequence[Agreement]) -> str:
    least, most = ordered[0], ordered[-1]
    text = (
        f"On {place}, losses after equally many updates differ, seed by seed, from the simulated"
        f" ones on {most.against} by a factor of {_factor(most)}, for {most.algorithm}"
    )
    if None not in (most.staleness, most.simulated_staleness):
        live, simulated = number(most.staleness), number(most.simulated_staleness)
        text += f" (mean staleness {live} live, {simulated} simulated)"
    if len(ordered) > 1:
        text += f", which differs most, and of {_factor(least)}, for {least.algorithm}"
    return f"{text}."


def _factor(one: Agreement) -> str:
    return f"typically {number(one.typical)}, and at most {number(one.largest)}"


def _left_out(summary: Summary) -> list[str]:
    """Return for each algorithm that did not run somewhere where that is, and why."""
    groups: dict[tuple[str, str], list[str]] = {}
    for one in summary.settings.get("left_out", ()):
        place = _place(summary, one["problem"], one["fleet"])
        groups.setdefault((one["algorithm"], one["reason"]), []).append(place)
    return [
        f"{algorithm} did not run on {_few(places, 'live fleets')}: {reason}."
        for (algorithm, reason), places in groups.items()
    ]


def _certainty(summary: Summary) -> list[str]:
    is_alone = len({line.seed for line in summary.runs}) == 1
    return ["One seed was run: how far others differ from it is not known."] if is_alone else []


def _tuning(summary: Summary) -> list[str]:
    return _targets(summary) + _sensitivity(summary) + _edges(summary)


def _targets(summary: Summary) -> list[str]:
    set_by_reference = {
        problem: target for problem, target in summary.targets.items() if target.origin != "given"
    }
    return [
        f"The target loss{f' of {problem}' * bool(problem)}, {number(target.loss)}, is"
        f" {target.origin}."
        for problem, target in set_by_reference.items()
    ]


def _sensitivity(summary: Summary) -> list[str]:
    """Return for each problem, on the first fleet that was tuned on, who needs tuning most."""
    points = []
    for problem in dict.fromkeys(one.problem for one in summary.tuned):
        fleet = next(one.fleet for one in summary.tuned if one.problem == problem)
        ranges = {
            one.algorithm: one.tolerance
            for one in summary.tuned
            if (one.problem, one.fleet) == (problem, fleet) and one.tolerance is not None
        }
        points += _least_and_most(_place(summary, problem, fleet), ranges)
    return points


def _least_and_most(place: str, ranges: Mapping[str, Tolerance]) -> list[str]:
    factors = {name: one.high / one.low for name, one in ranges.items()}
    least, most = (choose(factors, key=factors.__getitem__, default="") for choose in (max, min))
    if not factors or factors[least] < CLEAR * factors[most]:
        return []
    wide, narrow = (
        f"from {number(ranges[name].low)} to {number(ranges[name].high)}" for name in (least, most)
    )
    text = (
        f"On {place}, of the values that were tried, {least} tolerates the widest range of its"
        f" tuned parameter, {wide}, with at most twice its best loss; {most} the narrowest,"
        f" {narrow}."
    )
    return [text]


def _edges(summary: Summary) -> list[str]:
    at_edge = [f"{one.algorithm} on {one.fleet}" for one in summary.tuned if one.at_edge]
    if not at_edge:
        return []
    text = (
        f"The best value that was tried for {_few(at_edge, 'tuned algorithms')} lies at the edge of"
        " what was tried: a better one may lie beyond."
    )
    return [text]


def _troubles(summary: Summary) -> list[str]:
    n_runs = len(summary.runs)
    n_diverged = sum(line.status == "diverged" for line in summary.runs)
    n_failed = sum(line.status == "failed" for line in summary.runs)
    errors = [error for trial in summary.trials for error in trial.errors]
    texts = {
        f"{n_diverged} of {n_runs} runs diverged; they are listed below.": n_diverged > 0,
        f"{n_failed} of {n_runs} runs failed with an error; they are listed below.": n_failed > 0,
        f"{len(errors)} trials of tuning failed with an error, such as {errors[:1]}.": bool(errors),
        "The comparison was stopped: this is what had finished.": not summary.is_complete,
    }
    return [text for text, applies in texts.items() if applies]
