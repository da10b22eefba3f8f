import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import msgspec
import pytest

from distsgd.experiment.target import Target
from distsgd.experiment.trials import Trial
from distsgd.report.conclusions import conclusions
from distsgd.report.numbers.summary import Outcome, Summary, summarise
from distsgd.run import Run

MakeRun: TypeAlias = Callable[..., Run]
NAN = math.nan


@pytest.fixture
def summed(make_run: MakeRun) -> Callable[..., Summary]:
    """Return a function from the losses of each algorithm's seeds to their numbers."""

    def summary(
        losses: Mapping[str, Sequence[Sequence[float]]],
        target: float | None = 0.5,
        trials: Sequence[Trial] = (),
        origin: str = "given",
        workers: Mapping[str, int] = {},
    ) -> Summary:
        outcomes = [
            Outcome(
                name,
                "machines",
                seed,
                make_run(
                    one,
                    seed=seed,
                    status="done" if math.isfinite(one[-1]) else "diverged",
                    fleet={"kind": "fleet", "workers": workers.get(name, 1)},
                ),
            )
            for name, several in losses.items()
            for seed, one in enumerate(several)
        ]
        targets = {} if target is None else {"": Target(target, origin)}
        return summarise(outcomes, {}, is_complete=True, trials=trials, targets=targets)

    return summary


@pytest.fixture
def found(summed: Callable[..., Summary]) -> Callable[..., str]:
    """Return a function from the losses of each algorithm's seeds to the answer."""
    return lambda *given, **more: " ".join(conclusions(summed(*given, **more)))


def falling(*updates: int, last: int = 40) -> list[list[float]]:
    """Return for each seed losses that meet a target of 0.5 after so many updates."""
    return [[2.0] * update + [0.4] * (last + 1 - update) for update in updates]


def test_the_first_to_the_target_comes_first(found: Callable[..., str]) -> None:
    """Where the seeds settle it, the answer begins with the algorithm that is soonest, and when."""
    text = found({"late": falling(20, 24, 22, 21, 23), "early": falling(5, 6, 5, 6, 5)})
    assert text.startswith("On machines: early meets the target loss of 0.500 soonest, after 5 virtual seconds.")


def test_an_order_that_seeds_do_not_settle_is_not_claimed(found: Callable[..., str]) -> None:
    """An algorithm with the least median that may be later is not called the soonest."""
    text = found({"one": falling(10, 20, 10), "other": falling(20, 10, 21)})
    assert "one has the least median time to the target loss of 0.500, 10 virtual seconds" in text
    assert "it is not settled that it is sooner than other" in text
    assert "soonest" not in text


def test_too_few_seeds_are_said_plainly(found: Callable[..., str]) -> None:
    """Where nothing is settled, the answer says above which ratio these seeds would settle it."""
    text = found({"one": falling(10, 20, 10), "other": falling(20, 10, 21)})
    assert "With 3 seeds of 2 algorithms, a ratio is settled only if it is above about" in text
    apart = found({"one": falling(5, 6, 5, 6), "other": falling(30, 33, 31, 35)})
    assert "a ratio is settled only" not in apart


def test_equal_times_claim_no_order(found: Callable[..., str]) -> None:
    """Two algorithms that meet the target at the same updates are in no order."""
    text = found({"one": falling(5, 6, 7), "other": falling(5, 6, 7)})
    assert "not settled that it is sooner than other" in text


def test_one_machine_is_compared_with(summed: Callable[..., Summary]) -> None:
    """How many times sooner than one machine is said with its interval, and what it costs."""
    summary = summed({"serial": falling(30, 32, 31, 33), "many": falling(5, 6, 5, 6)})
    several = [
        result if result.algorithm == "serial" else msgspec.structs.replace(result, workers=8)
        for result in summary.results
    ]
    text = conclusions(msgspec.structs.replace(summary, results=several))[0]
    assert "times sooner than one machine (serial)." in text
    (contrast,) = (one for one in summary.contrasts if one.quantity == "seconds")
    assert 1 < contrast.low < contrast.median < contrast.high
    assert f"{contrast.median:.2f} [{contrast.low:.2f}, {contrast.high:.2f}] times sooner" in text
    assert "In machine time (workers times seconds)" in text


def test_losses_are_labelled_by_what_is_equal(found: Callable[..., str]) -> None:
    """The losses at equal time stand beside those at equal budgets, each with its label."""
    short, long = [[2.0, 1.0, 0.9]] * 3, [[2.0, 1.5, 1.2, 0.8, 0.3]] * 3
    text = found({"short": short, "long": long}, None)
    assert "after equal time (2 s) short with 0.900" in text
    assert "after equal budgets (- updates) long with 0.300" in text


def test_a_target_that_nobody_reaches_is_said(found: Callable[..., str]) -> None:
    """If most runs of every algorithm miss the target, no first one is named."""
    text = found({"one": [[2, 1]] * 3, "other": [[2, 1.5]] * 3})
    assert "No algorithm met the target loss of 0.500 in more than half of its runs." in text
    assert "soonest" not in text


def test_a_miss_is_later_than_every_time(found: Callable[..., str]) -> None:
    """An algorithm whose runs all missed is said to have missed, and is in no lead."""
    text = found({"never": [[2.0] * 41] * 4, "early": falling(5, 6, 5, 6)})
    assert "after 5.50 virtual seconds" in text
    assert "Half or more of the runs of never missed it." in text


def test_all_runs_diverged_is_said(found: Callable[..., str]) -> None:
    """If every run diverged, the answer says so and names no best one."""
    text = found({"one": [[2, NAN]] * 3, "other": [[2, NAN]] * 3})
    assert "No algorithm ended with a finite loss" in text
    assert "Most runs of one and other diverged" in text
    assert "6 of 6 runs diverged" in text


def test_one_seed_claims_nothing(found: Callable[..., str]) -> None:
    """One seed says nothing about others: the answer says that, and claims no order."""
    text = found({"one": falling(2), "other": falling(30)})
    assert "One seed was run" in text
    assert "not settled that it is sooner than other" in text


def test_a_single_algorithm_is_not_compared(found: Callable[..., str]) -> None:
    """One algorithm alone is given with its time and its loss, and against no other."""
    text = found({"alone": [[2, 0.4]] * 3})
    assert "alone meets the target loss of 0.500 soonest, after 1 virtual seconds." in text
    assert "settled" not in text


def test_a_target_at_the_start_has_no_ratio(found: Callable[..., str]) -> None:
    """A target that the starting point meets gives a time of 0, and no order."""
    text = found({"one": [[2, 1]] * 3, "other": [[2, 1]] * 3}, 9.0)
    assert "0 virtual seconds; it is not settled that it is sooner than other" in text


def test_a_target_by_reference_is_explained(found: Callable[..., str]) -> None:
    """A target that an algorithm sets is given with how it was found."""
    text = found({"one": falling(3, 3)}, 0.42, origin="1.05 times the loss of one")
    assert "The target loss, 0.420, is 1.05 times the loss of one." in text


def tried(name: str, *costs: Sequence[float | None], errors: Sequence[str] = ()) -> list[Trial]:
    """Return a trial of the learning rates 1, 10, 100 and so on with the losses of its seeds."""
    return [
        Trial(
            "",
            "machines",
            name,
            {"learning_rate": 10.0**place},
            list(range(len(own))),
            list(own),
            ["done"] * len(own),
            [""] * len(own),
            list(errors),
        )
        for place, own in enumerate(costs)
    ]


WIDE = [(0.3, 0.3, 0.3), (0.2, 0.2, 0.2), (0.3, 0.3, 0.3), (0.31, 0.3, 0.3), (9.0, 9.0, 9.0)]
NARROW = [(9.0, 9.0, 9.0), (0.1, 0.1, 0.1), (9.0, 9.0, 9.0)]


def test_the_widest_range_is_claimed_where_seeds_settle_it(found: Callable[..., str]) -> None:
    """The widest range is claimed where all seeds of tuning agree on it by more than a step."""
    both = {"one": falling(3, 4, 5), "other": falling(3, 4, 5)}
    apart = [*tried("one", *WIDE), *tried("other", *NARROW)]
    assert "one tolerates the widest range of its tuned parameter" in found(both, trials=apart)
    alike = [*tried("one", *NARROW), *tried("other", *NARROW)]
    assert "tolerates" not in found(both, trials=alike)


def test_one_seed_of_tuning_claims_no_order(found: Callable[..., str]) -> None:
    """With one seed of tuning no order between tuned algorithms is claimed, and no widest range."""
    trials = [*tried("late", *([own[:1] for own in WIDE])), *tried("early", *[own[:1] for own in NARROW])]
    text = found({"late": falling(30, 31, 32), "early": falling(2, 3, 2)}, trials=trials)
    assert "One seed of tuning chose the values" in text
    assert "not settled that it is sooner than late" in text
    assert "tolerates" not in text


def test_seeds_of_tuning_that_disagree_are_said(found: Callable[..., str]) -> None:
    """Where the seeds of tuning choose different values, these are named."""
    trials = tried("one", (0.1, 0.3, 0.3), (0.2, 0.2, 0.2), (0.9, 0.9, 0.9))
    text = found({"one": falling(3, 4)}, trials=trials)
    assert "do not agree on one on machines (learning_rate 1 to 10)" in text
    agreed = tried("one", (0.3, 0.3), (0.2, 0.2), (0.9, 0.9))
    assert "agree on every tuned value" in found({"one": falling(3, 4)}, trials=agreed)


def test_failed_trials_are_said(found: Callable[..., str]) -> None:
    """Runs of tuning that ended in an error are counted, with the error."""
    text = found({"one": [[2, 0.4]] * 3}, trials=tried("one", (0.1,), (0.2,), errors=["oh"]))
    assert "All 2 runs of tuning failed with an error: oh." in text


def test_an_edge_of_the_grid_is_said(found: Callable[..., str]) -> None:
    """A tuned value at the edge of what was tried is named."""
    text = found({"one": [[2, 0.4]] * 3}, trials=tried("one", (0.3,), (0.2,)))
    assert "for one on machines lies at the edge of what was tried" in text
