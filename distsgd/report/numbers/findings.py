"""What the runs of a comparison say about each other: contrasts, growth, profiles, scaling.

Everything here is a pure function of measurements, one per run.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import msgspec

from distsgd.experiment.trials import UNKNOWN, Tuned
from distsgd.report.numbers.groups import grouped
from distsgd.report.numbers.measurements import Measurement
from distsgd.statistics.inference import SAME, Comparisons, Factors, Known, Ratio, alone, compare_all, quotients
from distsgd.statistics.performance import performance_profiles, speed_ups
from distsgd.statistics.spreads import median_time

Quantity: TypeAlias = Literal["seconds", "machine_seconds", "loss_at_equal_time", "loss"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
"""What algorithms are compared by; times are those to the target."""

Table: TypeAlias = dict[str, dict[int, Known]]
"""A quantity by algorithm and seed."""


class Contrast(msgspec.Struct, frozen=True):
    """How many times as much an algorithm needs as the first one, seed by seed.

    `against` is the algorithm with the lowest median of the `quantity` on this problem and fleet.
    `low` and `high` are simultaneous intervals: all that can be formed on a problem and fleet hold
    together with 95 %. They know how well each number is known, and by how much another seed of
    tuning would have changed it. None where nothing can be said. See `inference.compare_all`.
    """

    problem: str
    fleet: str
    quantity: Quantity
    algorithm: str
    against: str
    low: float | None
    median: float | None
    high: float | None
    n_pairs: int

    @property
    def is_settled(self) -> bool:
        """Whether the algorithm needs more than the first one, as sure as the interval is."""
        return self.low is not None and self.low > 1


class Unsettled(msgspec.Struct, frozen=True):
    """Why no order of a quantity is known on a problem and fleet, in a sentence."""

    problem: str
    fleet: str
    quantity: Quantity
    reason: str


class Growth(msgspec.Struct, frozen=True):
    """How many times as large the final loss of an algorithm is on `fleet` as on `fresh`.

    A 95 % interval, which knows what another seed of tuning would have changed. `rivals` are the
    algorithms whose growth is not settled to be another one.
    """

    problem: str
    fresh: str
    fleet: str
    algorithm: str
    low: float | None
    median: float | None
    high: float | None
    rivals: list[str]


class ProfileLine(msgspec.Struct, frozen=True):
    """Share of the pairs of problem and fleet on which `algorithm` met the target within a factor.

    The factor is of the least median time of all algorithms there.
    """

    algorithm: str
    factor: list[float]
    share: list[float]


class Scaling(msgspec.Struct, frozen=True):
    """What more workers bring to an algorithm, on fleets that differ in nothing else.

    All lists go by `workers`: names of the fleets, median time to the target [s], see `speed_ups`,
    and a 95 % interval of the speed-up, seed by seed.
    """

    problem: str
    algorithm: str
    fleets: list[str]
    workers: list[int]
    seconds: list[float | None]
    speed_up: list[float | None]
    efficiency: list[float | None]
    low: list[float | None] = []
    high: list[float | None] = []


class Tunings(NamedTuple):
    """What tuning leaves open, and on which fleet what runs on a fleet was tuned."""

    tuned: Sequence[Tuned] = ()
    fleets: Mapping[str, str] = {}
    """For a live fleet, the one it takes after; for every fleet, the only one tuned on."""

    def noise(self, problem: str, fleet: str, quantity: Quantity) -> dict[str, Factors]:
        """Return by how much another seed of tuning would have changed a quantity."""
        place = problem, self.fleets.get(fleet, fleet)
        own = [one for one in self.tuned if (one.problem, one.fleet) == place]
        return {one.algorithm: _factors(one, quantity) for one in own}


def _factors(one: Tuned, quantity: Quantity) -> Factors:
    known = {"seconds": one.seconds, "machine_seconds": one.seconds, "loss": one.loss}
    return known.get(quantity, UNKNOWN)


class Compared(NamedTuple):
    """A quantity of the algorithms on a problem and fleet, and what the seeds settle of it."""

    problem: str
    fleet: str
    quantity: Quantity
    table: Table
    comparisons: Comparisons


def compared(measurements: Sequence[Measurement], tunings: Tunings = Tunings()) -> list[Compared]:  # noqa: B008 # immutable
    """Return every quantity of every problem and fleet, each two algorithms compared once."""
    return [
        Compared(
            problem,
            fleet,
            quantity,
            table := table_of(case, quantity),
            compare_all(table, tunings.noise(problem, fleet, quantity)),
        )
        for quantity in QUANTITIES
        for (problem, fleet), case in by_case(measurements).items()
    ]


def contrasts(found: Sequence[Compared]) -> list[Contrast]:
    """Return how each algorithm compares with the first one; none where no median is known."""
    return [
        Contrast(*one[:3], name, first, **one.comparisons.ratio(name, first)._asdict())
        for one in found
        if (first := first_of(one.table)) is not None
        for name in one.table
        if name != first
    ]


def unsettled(found: Sequence[Compared]) -> list[Unsettled]:
    """Return where no two algorithms are settled, and what it would take."""
    return [Unsettled(*one[:3], reason) for one in found if (reason := one.comparisons.reason)]


def first_of(table: Table) -> str | None:
    """Return the algorithm with the lowest median, None if no median is known."""
    known = {name: median for name, own in table.items() if (median := median_of(own)) is not None}
    return min(known, key=known.__getitem__, default=None)


def median_of(values: Mapping[int, Known]) -> float | None:
    """Return the median over seeds; None if half of them have no upper end."""
    return median_time([one.high for one in values.values()])


def growths(measurements: Sequence[Measurement], fresh: str, fleet: str, tunings: Tunings) -> list[Growth]:
    """Return by how much the final loss of each algorithm grew from one fleet, `fresh`, to another.

    All measurements are of one problem. The largest median stands first; algorithms that did not
    run on both fleets are left out.
    """
    problem = measurements[0].problem if measurements else ""
    before, after = (table_of([one for one in measurements if one.fleet == name], "loss") for name in (fresh, fleet))
    table = {name: quotients(after[name], before[name]) for name in after if name in before}
    table = {name: own for name, own in table.items() if own}
    noises = [tunings.noise(problem, name, "loss") for name in (fleet, fresh)]
    noise = {name: _both(name, *noises) for name in table}
    compared = compare_all(table, noise)
    found = [
        Growth(
            problem,
            fresh,
            fleet,
            name,
            *alone(own).widened(noise[name], SAME)[:3],
            rivals=_rivals(name, table, compared),
        )
        for name, own in table.items()
    ]
    # What diverged on the stale fleet in every run has grown beyond every number.
    return sorted(found, key=lambda one: -math.inf if one.median is None else -one.median)


def _both(name: str, over: Mapping[str, Factors], under: Mapping[str, Factors]) -> Factors:
    one, other = (noise.get(name, SAME) for noise in (over, under))
    return Factors(one.low / other.high, one.high / other.low if other.low else math.inf)


def _rivals(name: str, table: Table, compared: Comparisons) -> list[str]:
    return [other for other in table if other != name and not compared.is_settled(name, other)]


def profiles(measurements: Sequence[Measurement]) -> list[ProfileLine]:
    """Return each algorithm's performance profile of median times to the target."""
    times = [
        {name: median_of(own) for name, own in table_of(case, "seconds").items()}
        for case in by_case(measurements).values()
    ]
    algorithms = dict.fromkeys(one.algorithm for one in measurements)
    costs = {name: [one.get(name) for one in times] for name in algorithms}
    if not any(cost is not None for row in costs.values() for cost in row):
        return []
    found = performance_profiles(costs)
    return [ProfileLine(name, one.factor.tolist(), one.share.tolist()) for name, one in found.items()]


def scaling(measurements: Sequence[Measurement], fleets: Mapping[str, dict[str, Any]]) -> list[Scaling]:
    """Return what more workers bring, on fleets whose settings differ in their number only.

    One finding per problem and algorithm that met the target somewhere, for each group of such
    fleets.
    """
    times = {place: table_of(case, "seconds") for place, case in by_case(measurements).items()}
    return [
        line
        for group in _families(fleets)
        for problem in dict.fromkeys(one.problem for one in measurements)
        for name in dict.fromkeys(one.algorithm for one in measurements)
        for line in _scaled(
            problem, name, {count: (fleet, times.get((problem, fleet), {}).get(name, {})) for count, fleet in group}
        )
    ]


def _scaled(problem: str, algorithm: str, found: Mapping[int, tuple[str, Mapping[int, Known]]]) -> list[Scaling]:
    times = {count: median_of(own) if own else None for count, (_, own) in found.items()}
    if all(time is None for time in times.values()):
        return []
    gains, fewest = speed_ups(times), found[min(found)][1]
    ratios = [_speed_up(fewest, found[count][1]) for count in gains]
    return [
        Scaling(
            problem,
            algorithm,
            [found[count][0] for count in gains],
            list(gains),
            [times[count] for count in gains],
            [one.speed_up for one in gains.values()],
            [one.efficiency for one in gains.values()],
            [one.low for one in ratios],
            [one.high for one in ratios],
        )
    ]


def _speed_up(few: Mapping[int, Known], many: Mapping[int, Known]) -> Ratio:
    if few is many:
        return Ratio(1.0, 1.0, 1.0, len(few))
    return alone(quotients(few, many))


def _families(fleets: Mapping[str, dict[str, Any]]) -> list[list[tuple[int, str]]]:
    """Return the groups of fleets that differ in the number of workers only, as (workers, name)."""
    groups: dict[str, dict[int, str]] = {}
    for name, settings in fleets.items():
        if "workers" in settings:
            others = {key: value for key, value in settings.items() if key != "workers"}
            same = groups.setdefault(json.dumps(others, sort_keys=True), {})
            same.setdefault(settings["workers"], name)
    return [list(group.items()) for group in groups.values() if len(group) > 1]


def by_case(measurements: Iterable[Measurement]) -> dict[tuple[str, str], list[Measurement]]:
    """Return the measurements of each problem and fleet."""
    return grouped(measurements, lambda one: (one.problem, one.fleet))


def table_of(case: Sequence[Measurement], quantity: Quantity) -> Table:
    """Return a quantity by algorithm and seed, where it is known."""
    values: Table = {}
    for one in case:
        own: Known | None = getattr(one, quantity)
        if own is not None:
            values.setdefault(one.algorithm, {})[one.seed] = own
    return values
