from typing import Any

import pytest

import distsgd as ds
from distsgd import ConfigError, RayOptions

PROBLEM = ds.problems.quadratic([1.0, 2.0], noise=0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"worker": {}}, "worker must be resources such as"),
        ({"server": "CPU"}, "server must be resources such as"),
        ({"worker": {"": 1}}, "worker must have names of resources"),
        ({"evaluator": {"CPU": 0}}, r"evaluator\['CPU'\] must be > 0"),
        ({"patience": 0}, "patience must be > 0 s"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    """A resource without a name or an amount, and no patience at all, are the caller's errors."""
    with pytest.raises(ConfigError, match=words):
        RayOptions(**options)


def test_options_of_a_cluster_belong_to_a_cluster() -> None:
    """Processes of this machine reserve nothing, so that a launch there refuses to be told."""
    with pytest.raises(ConfigError, match="for on='ray' only"):
        ds.launch(ds.algorithms.downpour(0.1), PROBLEM, updates=1, ray=RayOptions())


def test_every_process_reserves_its_own() -> None:
    """What a run needs is the sum over shards, workers and evaluator, each in one bundle."""
    options = RayOptions(worker={"CPU": 2, "disk": 0.5}, server={"CPU": 0.5})
    assert options.bundles(2, 3) == [{"CPU": 0.5}, {"CPU": 0.5}, *[{"CPU": 2.0, "disk": 0.5}] * 3, {"CPU": 1.0}]
    assert options.total(2, 3) == {"CPU": 8.0, "disk": 1.5}
