"""What was found in one case (a problem on a fleet): what is soonest, how sure, at what cost.

1. The first question is the time to the target: how many times sooner than one machine, and than
   the others. Then what it costs in machine time. Then losses, at equal time and at the end of the
   budget, each with its label.
2. An order is claimed where the simultaneous interval of the ratio does not hold 1. A median that
   is lower without that is called the lowest median, and no more.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from distsgd.report.formatting import few, number, ratio_text, spread_text
from distsgd.report.numbers.findings import Contrast, Quantity
from distsgd.report.numbers.summary import Result, Summary
from distsgd.statistics.spreads import Spread


class Case(NamedTuple):
    """One problem on one fleet: its results, and how they compare with the first of each kind."""

    place: str
    results: Sequence[Result]
    contrasts: Sequence[Contrast]
    reasons: Mapping[Quantity, str]
    """Why no order of a quantity is known."""
    budget: str

    def by(self, quantity: Quantity) -> dict[str, Contrast]:
        """Return the contrasts of a quantity by algorithm."""
        return {one.algorithm: one for one in self.contrasts if one.quantity == quantity}

    @property
    def one_machine(self) -> Result | None:
        """The soonest algorithm that works on one machine, where others work on several."""
        alone = [one for one in self.results if one.workers == 1]
        has_several = any(one.workers > 1 for one in self.results)
        return min(alone, key=_time, default=None) if has_several else None


def case_of(summary: Summary, problem: str, fleet: str, place: str) -> Case:
    """Return what the summary knows of one problem on one fleet, which sentences call `place`."""
    ((unit, amount),) = summary.settings.get("budget", {"updates": math.nan}).items()
    return Case(
        place,
        summary.of_fleet(fleet, problem),
        [one for one in summary.contrasts if (one.problem, one.fleet) == (problem, fleet)],
        {one.quantity: one.reason for one in summary.unsettled if (one.problem, one.fleet) == (problem, fleet)},
        f"{number(amount)} {unit}",
    )


def case_conclusion(case: Case) -> str:
    """Return what was found for one problem on one fleet."""
    texts = [_soonest(case), _unsettled(case), _machine_time(case), _losses(case), _mostly_diverged(case.results)]
    return f"On {case.place}: {' '.join(text for text in texts if text)}"


def _time(result: Result) -> float:
    time = result.time_to_target
    return math.inf if time is None or time.median_s is None else time.median_s


def _machine(result: Result) -> float:
    time = result.time_to_target
    return math.inf if time is None or time.machine_s is None else time.machine_s


def _soonest(case: Case) -> str:
    timed = [one.time_to_target for one in case.results if one.time_to_target is not None]
    if not timed:
        return ""
    target, clock = f"the target loss of {number(timed[0].target)}", timed[0].clock
    first = min(case.results, key=_time)
    if _time(first) == math.inf:
        return f"No algorithm met {target} in more than half of its runs."
    after = f"{number(_time(first))} {clock} seconds"
    rivals = _rivals(first.algorithm, case, "seconds")
    if rivals:
        text = (
            f"{first.algorithm} has the least median time to {target}, {after}; it is not settled"
            f" that it is sooner than {few(rivals, 'others')}"
        )
    else:
        text = f"{first.algorithm} meets {target} soonest, after {after}"
    return f"{text}{_against_one_machine(first, case)}.{_missed(case.results)}"


def _unsettled(case: Case) -> str:
    """Return what it would take to settle an order, where none is; of one seed nothing more."""
    judged: Quantity = "seconds" if any(one.time_to_target for one in case.results) else "loss"
    seeds = max((one.n_pairs for one in case.contrasts), default=0)
    return case.reasons.get(judged, "") if seeds > 1 else ""


def _against_one_machine(first: Result, case: Case) -> str:
    one = case.one_machine
    if one is None:
        return ""
    if one is first:
        return "; that is one machine"
    contrast = case.by("seconds").get(one.algorithm)
    if contrast is None or contrast.median == contrast.low is None:
        return f"; one machine ({one.algorithm}) missed it" if _time(one) == math.inf else ""
    name, settled = f"one machine ({one.algorithm})", "" if contrast.is_settled else ", not settled"
    return f"; {ratio_text(contrast)} times sooner than {name}{settled}"


def _missed(results: Sequence[Result]) -> str:
    names = [one.algorithm for one in results if one.finished and _time(one) == math.inf]
    return f" Half or more of the runs of {few(names, 'others')} missed it." if names else ""


def _machine_time(case: Case) -> str:
    known = [one for one in case.results if _machine(one) < math.inf]
    if case.one_machine is None or not known:
        return ""
    first, soonest = min(known, key=_machine), min(case.results, key=_time)
    text = (
        f"In machine time (workers times seconds) {first.algorithm} costs least, "
        f"{number(_machine(first))} s{_order(first.algorithm, case, 'machine_seconds')}"
    )
    contrast = case.by("machine_seconds").get(soonest.algorithm)
    if contrast is not None and (contrast.median or contrast.low):
        text += f"; {soonest.algorithm} costs {ratio_text(contrast)} times as much"
    return f"{text}."


def _losses(case: Case) -> str:
    ends = [one.equal_time for one in case.results if one.equal_time is not None]
    labels: dict[Quantity, str] = {}
    if ends:
        labels["loss_at_equal_time"] = f"after equal time ({number(ends[0])} s)"
    labels["loss"] = f"after equal budgets ({case.budget})"
    texts = [f"{label} {found}" for quantity, label in labels.items() if (found := _lowest(case, quantity))]
    if not texts:
        return "No algorithm ended with a finite loss."
    return f"Lowest median training loss: {'; '.join(texts)}."


def _lowest(case: Case, quantity: Quantity) -> str:
    losses = {one.algorithm: _spread(one, quantity) for one in case.results}
    finite = {name: own for name, own in losses.items() if own is not None and math.isfinite(own.median)}
    if not finite:
        return ""
    name = min(finite, key=lambda one: finite[one].median)
    return f"{name} with {spread_text(finite[name])}{_order(name, case, quantity)}"


def _spread(result: Result, quantity: Quantity) -> Spread | None:
    spread: Spread | None = getattr(result, quantity)
    return spread


def _order(first: str, case: Case, quantity: Quantity) -> str:
    """Return against which others it is not settled that `first` is the first, as a clause."""
    found, rivals = case.by(quantity), _rivals(first, case, quantity)
    if found and all(one.low == 0 and one.high == math.inf for one in found.values()):
        return " (no order is claimed)"
    return f" (not settled against {few(rivals, 'others')})" if rivals else ""


def _rivals(first: str, case: Case, quantity: Quantity) -> list[str]:
    """Return the algorithms that are not settled to need more than `first`."""
    found = case.by(quantity)
    others = [one.algorithm for one in case.results if one.algorithm != first and one.finished]
    return [name for name in others if name not in found or not found[name].is_settled]


def _mostly_diverged(results: Sequence[Result]) -> str:
    names = [
        result.algorithm
        for result in results
        if result.finished and 2 * result.status.get("diverged", 0) > result.finished
    ]
    return f"Most runs of {few(names, 'algorithms')} diverged." if names else ""
