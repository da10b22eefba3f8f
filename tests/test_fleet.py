import json
import math
from typing import Any

import pytest

from distsgd.errors import ConfigError
from distsgd.order import laws
from distsgd.order.fleet import Failures, Fleet, StaleReads, fixed_staleness, stale_reads


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "workers must be a whole number >= 1, not 0"),
        ({"workers": 1.5}, "workers must be a whole number >= 1, not 1.5"),
        ({"workers": 2, "latency": -1.0}, "latency must be >= 0 s and finite, not -1.0"),
        ({"workers": 2, "latency": math.nan}, "latency must be >= 0 s and finite, not nan"),
        ({"workers": 2, "latency": math.inf}, "latency must be >= 0 s and finite, not inf"),
        ({"workers": 2, "bandwidth": 0.0}, "bandwidth must be > 0 bytes/s, not 0.0"),
        ({"workers": 2, "bandwidth": math.nan}, "bandwidth must be > 0 bytes/s, not nan"),
        ({"workers": 2, "service": -1.0}, "service must be >= 0 s and finite, not -1.0"),
        ({"workers": 2, "shards": 0}, "shards must be a whole number >= 1, not 0"),
        ({"workers": 2, "speeds": [1.0]}, r"speeds must have one entry per worker \(2\), not 1"),
        ({"workers": 2, "speeds": [1.0, 0.0]}, r"speeds\[1\] must be > 0 and finite, not 0.0"),
        (
            {"workers": 2, "speeds": 2.0},
            r"speeds must be a value such as \[1, 0.5\], with one entry per worker, not 2.0",
        ),
        ({"workers": 2, "compute": 1.0}, "compute must be a value such as .* one entry per worker, not 1.0"),
        ({"workers": 2, "compute": [laws.constant(1.0)]}, "compute must have one entry per worker"),
        ({"workers": 2, "compute": [1.0, 2.0]}, "each entry of compute must be a value such as"),
        ({"workers": 2, "failures": 3.0}, "failures must be Failures"),
    ],
)
def test_a_fleet_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    """A `ConfigError` names the setting, its bound and the value."""
    with pytest.raises(ConfigError, match=message):
        Fleet(**settings)


@pytest.mark.parametrize("numbers", [(0.0, 1.0), (math.nan, 1.0), (1.0, -1.0), (1.0, math.inf)])
def test_failures_that_cannot_be_are_refused(numbers: tuple[float, float]) -> None:
    """A time to failure is positive, and a repair takes a finite time."""
    with pytest.raises(ConfigError, match="failures"):
        Failures(*numbers)


def test_a_fleet_keeps_what_it_was_given() -> None:
    """A list that its owner changes later does not change the fleet."""
    speeds = [1.0, 2.0]
    fleet = Fleet(workers=2, speeds=speeds)
    speeds[0] = 9.0
    assert fleet.speeds == (1.0, 2.0)


def test_settings_identify_a_fleet_and_are_json() -> None:
    """Fleets that differ in anything have different settings, and JSON carries these unchanged."""
    fleets = [
        Fleet(workers=2),
        Fleet(workers=3),
        Fleet(workers=2, compute=laws.exponential(1.0)),
        Fleet(workers=2, compute=[laws.exponential(1.0), laws.constant(1.0)]),
        Fleet(workers=2, speeds=[1.0, 2.0]),
        Fleet(workers=2, latency=0.1),
        Fleet(workers=2, bandwidth=1e6),
        Fleet(workers=2, service=0.1),
        Fleet(workers=2, shards=2),
        Fleet(workers=2, failures=Failures(10.0, 1.0)),
        stale_reads(laws.constant(3.0)),
        stale_reads(laws.constant(3.0), seed=1),
    ]
    texts = [json.dumps(fleet.settings, allow_nan=False) for fleet in fleets]
    assert len(set(texts)) == len(fleets)
    assert [json.loads(text) for text in texts] == [fleet.settings for fleet in fleets]


def test_fixed_staleness_is_a_round_of_equal_workers() -> None:
    """Staleness tau takes tau + 1 equal workers."""
    assert fixed_staleness(4) == Fleet(workers=5, compute=laws.constant(1.0))
    with pytest.raises(ConfigError, match="tau must be a whole number >= 0, not -1"):
        fixed_staleness(-1)


def test_stale_reads_need_a_law() -> None:
    """A number is not a law: the error shows what is."""
    with pytest.raises(ConfigError, match=r"law must be a law such as exponential\(4.0\), not 4.0"):
        StaleReads(4.0)  # type: ignore[arg-type] # the mistake under test
    with pytest.raises(ConfigError, match="seed must be a whole number >= 0, not -1"):
        stale_reads(laws.constant(1.0), seed=-1)
