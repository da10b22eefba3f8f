"""What is asked of a lock-free run: its epochs, the points of its history, and what is refused."""

from collections.abc import Callable

import numpy as np
import pytest
from small_lock_free import HOGWILD, PROBLEMS, request_of

import distsgd as ds
from distsgd import ConfigError
from distsgd.live.lock_free.launch import block_of, epochs_of
from distsgd.live.lock_free.workers import Epoch
from distsgd.order.budget import Budget


def test_workers_share_an_epoch() -> None:
    """The chunks of all workers are the epoch, and their sizes differ by 1 at most."""
    for steps in (7, 100, 101):
        shares = [Epoch(0, steps, 0, is_evaluated=True).share(w, 4) for w in range(4)]
        assert [first for first, _ in shares] == [0, *np.cumsum([n for _, n in shares])[:-1]]
        assert sum(n for _, n in shares) == steps
        assert max(n for _, n in shares) - min(n for _, n in shares) <= 1


@pytest.mark.parametrize(
    ("budget", "ends"),
    [
        (Budget("epochs", 2), [70, 140]),
        (Budget("epochs", 1.5), [70, 105]),
        (Budget("updates", 150), [70, 140, 150]),
        (Budget("gradients", 60), [60]),
    ],
)
def test_a_budget_ends_inside_an_epoch(budget: Budget, ends: list[int]) -> None:
    """Epochs follow one another until the budget is spent, and the last may be cut short."""
    epochs = epochs_of(request_of(PROBLEMS["logistic"], budget=budget))
    assert [epoch.end for epoch in epochs] == ends
    assert [epoch.version for epoch in epochs] == [0, *ends[:-1]]
    assert epochs[-1].is_evaluated


def test_a_point_of_the_history_is_an_end_of_an_epoch() -> None:
    """The objective is evaluated at the first end behind each wanted point, and at the last."""

    def evaluated(**asked: int) -> list[int]:
        request = request_of(PROBLEMS["logistic"], budget=Budget("epochs", 100), **asked)
        return [epoch.number + 1 for epoch in epochs_of(request) if epoch.is_evaluated]

    assert evaluated(evaluations=4) == [25, 50, 75, 100]
    assert evaluated(evaluate_every=30 * 70 + 1) == [31, 61, 91, 100]
    assert evaluated() == list(range(2, 101, 2))


def test_blocks_are_small_where_samples_are_few() -> None:
    """An epoch has a thousand blocks, or a block for each sample."""
    assert [block_of(n) for n in (1, 100, 2048, 20_000, 10**6)] == [1, 1, 2, 19, 64]


@pytest.mark.filterwarnings("ignore::distsgd.DistsgdWarning")  # refused all the same
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seconds": 1.0}, "give epochs, not seconds"),
        ({"epochs": 1, "staleness": 3}, "staleness has no meaning for hogwild"),
        ({"epochs": 1, "shards": 2}, "shards has no meaning"),
        ({"epochs": 1, "delay": ds.constant(1.0)}, "delay has no meaning"),
        ({"epochs": 1, "on_loss": "shrink"}, "on_loss has no meaning"),
        ({"epochs": 1, "partition": ds.Partition("sharded")}, "partition has no meaning"),
        ({"epochs": 1, "workers": 10, "batch": 8}, "workers must be <= 9, the batches of 8"),
        ({"epochs": 1, "writes": "gathered", "batch": 2}, "batches of 1 only, not 2"),
        ({"epochs": 1, "writes": "careful"}, "unknown writes 'careful'"),
        ({"epochs": 1, "on": "ray"}, "use on='local', or downpour on a cluster"),
        ({"epochs": 1, "updates": 1}, "give exactly one of"),
    ],
)
def test_what_has_no_meaning_is_refused(arguments: dict[str, object], message: str) -> None:
    """An argument that shared memory cannot follow is refused before anything starts."""
    with pytest.raises(ConfigError, match=message):
        ds.launch(HOGWILD, PROBLEMS["logistic"], **arguments)


@pytest.mark.filterwarnings("ignore::distsgd.DistsgdWarning")  # refused all the same
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "workers must be a whole number >= 1"),
        ({"workers": 65}, "workers must be <= 64 on one machine"),
        ({"on": "moon"}, "unknown on 'moon'"),
        ({"epochs": 0}, "epochs must be > 0"),
        ({"epochs": None}, "give exactly one of updates, gradients, epochs, seconds"),
        ({"epochs": None, "updates": 1.5}, "updates must be a whole number"),
        ({"evaluate_every": 1, "evaluations": 1}, "give evaluate_every or evaluations, not both"),
        ({"evaluations": 0}, "evaluations must be a whole number >= 1"),
        ({"partition": "sharded"}, "partition must be a value such as"),
        ({"staleness": -1}, "staleness must be a whole number >= 0"),
        ({"delay": [ds.constant(1.0)]}, r"delay must have one law per worker \(4\), not 1"),
        ({"delay": 0.1}, "delay must be a law such as"),
        ({"shards": 31}, "shards must be <= 30, the number of parameters"),
        ({"on_loss": "weep"}, "unknown on_loss 'weep'"),
        ({"heartbeat": 0.0}, "heartbeat must be > 0 s"),
        ({"writes": "atomic"}, "writes='atomic' has a meaning for lock-free algorithms only"),
    ],
)
def test_every_argument_of_launch_is_checked(arguments: dict[str, object], message: str) -> None:
    """An argument outside of its bounds is refused before any process starts."""
    with pytest.raises(ConfigError, match=message):
        ds.launch(ds.algorithms.downpour(0.1), PROBLEMS["logistic"], **{"epochs": 1} | arguments)


@pytest.mark.filterwarnings("ignore::distsgd.DistsgdWarning")  # refused all the same
def test_what_is_not_sparse_is_refused() -> None:
    """Dense gradients, and algorithms that wait or remember, are refused with what to use."""
    with pytest.raises(ConfigError, match="use a linear problem on sparse data"):
        ds.launch(HOGWILD, ds.problems.quadratic([1.0]), epochs=1)
    waiting = ds.algorithms.synchronous(0.1)._replace(lock_free=True, sparse=True)
    with pytest.raises(ConfigError, match="use hogwild, not synchronous"):
        ds.launch(waiting, PROBLEMS["logistic"], epochs=1)


def test_too_little_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that does not fit says how much it needs before anything starts."""
    free: Callable[[], float] = lambda: 1e3  # noqa: E731 # what the function does is all there is
    monkeypatch.setattr("distsgd.live.machine.forking._free_bytes", free)
    with pytest.raises(ConfigError, match=r"hogwild on logistic needs 0.0 GB of shared memory"):
        ds.launch(HOGWILD, PROBLEMS["logistic"], workers=1, epochs=1)
