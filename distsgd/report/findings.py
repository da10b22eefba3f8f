"""What the runs of a comparison say about each other: targets, contrasts, profiles, scaling.

Everything here is a pure function of marks: a mark is what one run came to.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from distsgd.errors import check_number
from distsgd.report.contrasts import paired_ratio, performance_profiles, speed_ups
from distsgd.report.statistics import median_time

Quantity: TypeAlias = Literal["seconds", "loss"]


class Mark(NamedTuple):
    """What one run came to: its labels, the time to its target [s], its final training loss.

    None for a target that it missed, and for a loss that is not finite.
    """

    problem: str
    fleet: str
    algorithm: str
    seed: int
    seconds: float | None
    loss: float | None


class Reference(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A target that an algorithm sets: `factor` times its median final training loss.

    On the fleet `fleet`, by default the first one.
    """

    reference: str
    fleet: str | None = None
    factor: float = 1.05

    def __post_init__(self) -> None:
        check_number("target.factor", self.factor, above=0)


class Target(msgspec.Struct, frozen=True):
    """The training loss to reach, and where it comes from, in words; None if nothing gives one."""

    loss: float | None
    origin: str


class Contrast(msgspec.Struct, frozen=True):
    """How many times as much an algorithm needs as the first one, over the seeds of both.

    `quantity` is "seconds" for the virtual time to the target, "loss" for the last training loss;
    `against` is the algorithm with the lowest median of it on this problem and fleet. `low` and
    `high` are a 95 % bootstrap interval, None below three pairs. See `contrasts.paired_ratio`.
    """

    problem: str
    fleet: str
    quantity: Literal["seconds", "loss"]
    algorithm: str
    against: str
    low: float | None
    median: float | None
    high: float | None
    n_pairs: int


class ProfileLine(msgspec.Struct, frozen=True):
    """Share of the pairs of problem and fleet on which `algorithm` met the target within a factor.

    The factor is of the least median time of all algorithms there.
    """

    algorithm: str
    factor: list[float]
    share: list[float]


class Scaling(msgspec.Struct, frozen=True):
    """What more workers bring to an algorithm, on fleets that differ in nothing else.

    All lists go by `workers`: names of the fleets, median time to the target [s], see `speed_ups`.
    """

    problem: str
    algorithm: str
    fleets: list[str]
    workers: list[int]
    seconds: list[float | None]
    speed_up: list[float | None]
    efficiency: list[float | None]


def find_targets(marks: Sequence[Mark], given: float | Reference | None) -> dict[str, Target]:
    """Return the target of each problem.

    A number holds for every problem. A reference gives each problem its own: `factor` times the
    median final training loss of an algorithm over its seeds. So whoever meets the target is about
    as good as the reference.

    Parameters
    ----------
    marks : sequence of Mark
        What ran.
    given : float, Reference or None
        What was asked for.

    Returns
    -------
    dict of str to Target
        By problem; nothing if no target is given.
    """
    problems = dict.fromkeys(mark.problem for mark in marks)
    if given is None:
        return {}
    if not isinstance(given, Reference):
        return dict.fromkeys(problems, Target(float(given), "given"))
    return {problem: _reference(problem, marks, given) for problem in problems}


def _reference(problem: str, marks: Sequence[Mark], given: Reference) -> Target:
    fleet = given.fleet or marks[0].fleet
    place = (problem, fleet, given.reference)
    losses = [mark.loss for mark in marks if mark[:3] == place]
    origin = (
        f"{given.factor:g} times the median final training loss of {given.reference} on {fleet}"
    )
    median = median_time(losses) if losses else None
    if median is None:
        return Target(None, f"{origin}, which has none")
    return Target(given.factor * median, f"{origin} ({len(losses)} runs)")


def contrasts(marks: Sequence[Mark]) -> list[Contrast]:
    """Return how each algorithm compares with the first one, on each problem and fleet.

    Parameters
    ----------
    marks : sequence of Mark
        What ran.

    Returns
    -------
    list of Contrast
        First the times to the target, then the final losses; none where no median is known.
    """
    return [
        contrast
        for quantity in ("seconds", "loss")
        for place, case in _by_case(marks).items()
        for contrast in _against_first(place, _by_algorithm(case, quantity), quantity)
    ]


def _against_first(
    place: tuple[str, str], values: Mapping[str, dict[int, float | None]], quantity: Quantity
) -> Iterable[Contrast]:
    medians = {name: median_time(list(own.values())) for name, own in values.items()}
    known = {name: median for name, median in medians.items() if median is not None}
    first = min(known, key=known.__getitem__, default=None)
    if first is None:
        return
    for name, own in values.items():
        if name != first:
            ratio = paired_ratio(own, values[first])._asdict()
            yield Contrast(*place, quantity, name, first, **ratio)


def profiles(marks: Sequence[Mark]) -> list[ProfileLine]:
    """Return each algorithm's performance profile of median times to the target."""
    times = [_medians(case) for case in _by_case(marks).values()]
    algorithms = dict.fromkeys(mark.algorithm for mark in marks)
    costs = {name: [one.get(name) for one in times] for name in algorithms}
    if not any(cost is not None for row in costs.values() for cost in row):
        return []
    found = performance_profiles(costs)
    return [
        ProfileLine(name, one.factor.tolist(), one.share.tolist()) for name, one in found.items()
    ]


def scaling(marks: Sequence[Mark], fleets: Mapping[str, dict[str, Any]]) -> list[Scaling]:
    """Return what more workers bring, on fleets whose settings differ in their number only.

    Parameters
    ----------
    marks : sequence of Mark
        What ran.
    fleets : mapping of str to dict
        Settings of each fleet.

    Returns
    -------
    list of Scaling
        One per problem and algorithm that met the target somewhere, for each group of such fleets.
    """
    times = {place: _medians(case) for place, case in _by_case(marks).items()}
    return [
        line
        for group in _families(fleets)
        for problem in dict.fromkeys(mark.problem for mark in marks)
        for name in dict.fromkeys(mark.algorithm for mark in marks)
        for line in _scaled(
            problem,
            name,
            {count: (fleet, times.get((problem, fleet), {}).get(name)) for count, fleet in group},
        )
    ]


def _scaled(
    problem: str, algorithm: str, found: Mapping[int, tuple[str, float | None]]
) -> list[Scaling]:
    times = {count: time for count, (_, time) in found.items()}
    if all(time is None for time in times.values()):
        return []
    gains = speed_ups(times)
    return [
        Scaling(
            problem, algorithm, [found[count][0] for count in gains], list(gains),
            [times[count] for count in gains],
            [one.speed_up for one in gains.values()], [one.efficiency for one in gains.values()],
        )
    ]  # fmt: skip


def _families(fleets: Mapping[str, dict[str, Any]]) -> list[list[tuple[int, str]]]:
    """Return the groups of fleets that differ in the number of workers only, as (workers, name)."""
    groups: dict[str, dict[int, str]] = {}
    for name, settings in fleets.items():
        if "workers" in settings:
            others = {key: value for key, value in settings.items() if key != "workers"}
            same = groups.setdefault(json.dumps(others, sort_keys=True), {})
            same.setdefault(settings["workers"], name)
    return [list(group.items()) for group in groups.values() if len(group) > 1]


def _by_case(marks: Sequence[Mark]) -> dict[tuple[str, str], list[Mark]]:
    cases: dict[tuple[str, str], list[Mark]] = {}
    for mark in marks:
        cases.setdefault((mark.problem, mark.fleet), []).append(mark)
    return cases


def _by_algorithm(case: Sequence[Mark], quantity: Quantity) -> dict[str, dict[int, float | None]]:
    values: dict[str, dict[int, float | None]] = {}
    for mark in case:
        values.setdefault(mark.algorithm, {})[mark.seed] = getattr(mark, quantity)
    return values


def _medians(case: Sequence[Mark]) -> dict[str, float | None]:
    found = _by_algorithm(case, "seconds")
    return {name: median_time(list(own.values())) for name, own in found.items()}
