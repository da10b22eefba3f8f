"""What was found in a comparison, in sentences: each number as the summary has it."""

from collections.abc import Mapping, Sequence

from distsgd.experiment.trials import Trial, Tuned, by_group, tolerated
from distsgd.report.case_conclusions import case_conclusion, case_of
from distsgd.report.formatting import few, interval_text, number
from distsgd.report.numbers.engines import Agreement
from distsgd.report.numbers.findings import Growth
from distsgd.report.numbers.groups import grouped
from distsgd.report.numbers.summary import Summary
from distsgd.report.warnings import warnings
from distsgd.statistics.inference import Known, extreme


def conclusions(summary: Summary) -> list[str]:
    """Return what the comparison found: a point per problem and fleet, then what lies across."""
    per_case = [
        case_conclusion(case_of(summary, problem, fleet, _place(summary, problem, fleet)))
        for problem, fleet in summary.cases
        if any(one.finished for one in summary.of_fleet(fleet, problem))
    ]
    live = _agreement(summary) + _left_out(summary)
    tuning = [*_targets(summary), _disagreement(summary.tuned, summary.trials), *_sensitivity(summary), _edges(summary)]
    across = [_suffered(summary, own) for own in _growths(summary)]
    found = [*warnings(summary), *per_case, *live, _certainty(summary), *tuning, *across, *_troubles(summary)]
    return [text for text in found if text]


def _problems(summary: Summary) -> list[str]:
    return list(dict.fromkeys(problem for problem, _ in summary.cases))


def _place(summary: Summary, problem: str, fleet: str) -> str:
    return fleet if len(_problems(summary)) == 1 else f"{fleet} with {problem}"


def _growths(summary: Summary) -> list[list[Growth]]:
    groups = grouped(summary.growths, lambda one: (one.problem, one.fleet)).values()
    return [own for own in groups if len(own) > 1]


def _suffered(summary: Summary, ordered: Sequence[Growth]) -> str:
    """Return what staleness did to final losses; the largest growth stands first."""
    most, least = ordered[0], ordered[-1]
    where = f" with {most.problem}" if len(_problems(summary)) > 1 else ""
    text = f"From {most.fresh} to {most.fleet}{where}, final training losses grew"
    claims = ("" if least.rivals else ", the least"), ("" if most.rivals else ", the most")
    ends = [
        f"{interval_text(one.median, one.low, one.high)} times ({one.algorithm}{claim})"
        for one, claim in zip((least, most), claims, strict=True)
    ]
    open_ends = " and ".join(["most"] * bool(most.rivals) + ["least"] * bool(least.rivals))
    tail = f"; which grew {open_ends} is not settled" if open_ends else ""
    return f"{text} {ends[0]} to {ends[1]}{tail}."


def _agreement(summary: Summary) -> list[str]:
    """Return for each problem and live fleet how far its losses are from the simulated ones."""
    known = [one for one in summary.agreements if one.typical is not None]
    return [
        _agreed(_place(summary, *place), sorted(own, key=lambda one: one.typical or 0.0))
        for place, own in grouped(known, lambda one: (one.problem, one.fleet)).items()
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
        text += f", whose factor is the largest, and of {_factor(least)}, for {least.algorithm}"
    return f"{text}."


def _factor(one: Agreement) -> str:
    return f"typically {number(one.typical)}, and at most {number(one.largest)}"


def _left_out(summary: Summary) -> list[str]:
    """Return for each algorithm that did not run somewhere where that is, and why."""
    groups = grouped(summary.settings.get("left_out", ()), lambda one: (one["algorithm"], one["reason"]))
    texts = []
    for (algorithm, reason), own in groups.items():
        places = [_place(summary, one["problem"], one["fleet"]) for one in own]
        texts.append(f"{algorithm} did not run on {few(places, 'fleets')}: {reason}.")
    return texts


def _certainty(summary: Summary) -> str:
    seeds = {line.seed for line in summary.runs}
    if len(seeds) == 1:
        return "One seed was run: how far others differ from it is not known, and no order is."
    times = [one.time_to_target for one in summary.results if one.time_to_target is not None]
    precise = max((time.precision for time in times), default=0.0)
    share = f"{precise:.1%} of themselves, or to " if precise else ""
    known = f" Times to the target are known to {share}one update." if times else ""
    return (
        "An interval behind a ratio is one of 95 %: all intervals of a problem and fleet hold together, seed by seed."
        f" An order is claimed where it does not hold 1.{known}"
    )


def _targets(summary: Summary) -> list[str]:
    return [
        f"The target loss{f' of {problem}' * bool(problem)}, {number(target.loss)}, is {target.origin}."
        for problem, target in summary.targets.items()
        if target.origin != "given"
    ]


def _disagreement(tuned: Sequence[Tuned], trials: Sequence[Trial]) -> str:
    """Return which tuned values are not settled: those that the seeds of tuning do not share."""
    if not tuned:
        return ""
    if min(len(trial.seeds) for trial in trials) < 2:
        return (
            "One seed of tuning chose the values: what another would have chosen is not known, so no order between"
            " tuned algorithms is claimed."
        )
    apart = [one for one in tuned if any(low < high for low, high in one.between.values())]
    if not apart:
        return "The seeds of tuning agree on every tuned value."
    names = [f"{one.algorithm} on {one.fleet} ({_between(one)})" for one in apart]
    return (
        f"The seeds of tuning do not agree on {few(names, f'of the {len(tuned)} tuned values')}; an order that another"
        " of their choices could turn around is not claimed."
    )


def _between(one: Tuned) -> str:
    ranges = {name: ends for name, ends in one.between.items() if ends[0] < ends[1]}
    return ", ".join(f"{name} {number(low)} to {number(high)}" for name, (low, high) in ranges.items())


def _sensitivity(summary: Summary) -> list[str]:
    """Return for each problem and tuned fleet which algorithm needs tuning most, where settled."""
    known = [(trials[0], widths) for trials in by_group(summary.trials) if (widths := tolerated(trials))]
    return [
        _widest(_place(summary, *place), {one.algorithm: widths for one, widths in own})
        for place, own in grouped(known, lambda pair: (pair[0].problem, pair[0].fleet)).items()
    ]


def _widest(place: str, table: Mapping[str, Mapping[int, Known]]) -> str:
    texts = [
        f"{name} tolerates the {word} range of its tuned parameter"
        for word, is_widest in (("widest", True), ("narrowest", False))
        if (name := extreme(table, largest=is_widest))
    ]
    if not texts:
        return ""
    return f"On {place}, {' and '.join(texts)}, within twice the cost of its best value."


def _edges(summary: Summary) -> str:
    at_edge = [f"{one.algorithm} on {one.fleet}" for one in summary.tuned if one.at_edge]
    if not at_edge:
        return ""
    return (
        f"The best value that was tried for {few(at_edge, 'tuned algorithms')} lies at the edge of what was tried:"
        " a better one may lie beyond."
    )


def _troubles(summary: Summary) -> list[str]:
    n_runs = len(summary.runs)
    n_diverged = sum(line.status == "diverged" for line in summary.runs)
    texts = {
        f"{n_diverged} of {n_runs} runs diverged; they are listed below.": n_diverged > 0,
        "The comparison was stopped: this is what had finished.": not summary.is_complete,
    }
    return [text for text, applies in texts.items() if applies]
