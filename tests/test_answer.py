import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import pytest

from distsgd.report.answer import answer
from distsgd.report.summary import Outcome, Summary, summarise
from distsgd.report.trials import Trial
from distsgd.run import Run

MakeRun: TypeAlias = Callable[..., Run]
NAN = math.nan


@pytest.fixture
def found(make_run: MakeRun) -> Callable[..., str]:
    """Return a function from the losses of each algorithm's seeds to the answer."""

    def answered(
        losses: Mapping[str, Sequence[Sequence[float]]], target: object = 0.5,
        trials: Sequence[Trial] = (),
    ) -> str:  # fmt: skip
        outcomes = [
            Outcome(
                name, "machines", seed,
                make_run(one, seed=seed, status="done" if math.isfinite(one[-1]) else "diverged"),
            )
            for name, several in losses.items() for seed, one in enumerate(several)
        ]  # fmt: skip
        summary: Summary = summarise(outcomes, {"target": target}, is_complete=True, trials=trials)
        return " ".join(answer(summary))

    return answered


def test_how_much_longer_has_an_interval(found: Callable[..., str]) -> None:
    """Those who met the target later are given with their ratio, its interval and its seeds."""
    early, late = [[2, 0.4, 0.4, 0.4]] * 3, [[2, 1, 0.4, 0.4], [2, 1, 1, 0.4], [2, 1, 0.4, 0.4]]
    text = found({"early": early, "late": late})
    assert "met first by early, after 1 virtual seconds; late took 2 times as long" in text
    assert "[2, 3] (3 seeds)" in text


def test_two_seeds_are_too_few(found: Callable[..., str]) -> None:
    """With two seeds a ratio is given, and that its certainty is not known."""
    text = found({"early": [[2, 0.4, 0.4]] * 2, "late": [[2, 1, 0.4]] * 2})
    assert "late took 2 times as long (from 2 seeds: too few to say how sure)" in text


def test_common_seeds_settle_what_bands_do_not(found: Callable[..., str]) -> None:
    """Where one is better on every seed, the order is claimed although the bands overlap."""
    better = [[2, loss] for loss in (0.10, 0.20, 0.30)]
    worse = [[2, loss * 1.2] for loss in (0.10, 0.20, 0.30)]
    assert "ahead of worse" in found({"better": better, "worse": worse})
    assert "do not settle its order against worse" in found(
        {"better": better, "worse": worse[::-1]}
    )


def test_a_target_that_nobody_reaches_is_said(found: Callable[..., str]) -> None:
    """If nobody meets the target, no first one is named."""
    text = found({"one": [[2, 1]] * 3, "other": [[2, 1.5]] * 3})
    assert "None met the target loss of 0.500 in most runs." in text
    assert "first" not in text


def test_all_runs_diverged_is_said(found: Callable[..., str]) -> None:
    """If every run diverged, the answer says so and names no best one."""
    text = found({"one": [[2, NAN]] * 3, "other": [[2, NAN]] * 3})
    assert "no algorithm ended with a finite loss" in text
    assert "Most runs of one and other diverged" in text
    assert "6 of 6 runs diverged" in text


def test_one_seed_is_said(found: Callable[..., str]) -> None:
    """One seed says nothing about others, and the answer says that."""
    assert "One seed was run" in found({"one": [[2, 0.4]], "other": [[2, 1]]})


def test_a_single_algorithm_is_not_compared(found: Callable[..., str]) -> None:
    """One algorithm alone is neither ahead of nor behind anybody."""
    text = found({"alone": [[2, 0.4]] * 3})
    assert "alone ended with the lowest training loss, 0.400." in text
    assert "was met first by alone, after 1 virtual seconds." in text


def test_a_target_at_the_start_has_no_ratio(found: Callable[..., str]) -> None:
    """A target that the starting point meets gives no ratio of times."""
    assert "after 0 virtual seconds; other took 0" in found(
        {"one": [[2, 1]], "other": [[2, 1]]}, 9.0
    )


def test_a_target_by_reference_is_explained(found: Callable[..., str]) -> None:
    """A target that an algorithm sets is given with how it was found."""
    text = found({"one": [[2, 0.4]] * 3, "other": [[2, 1]] * 3}, {"reference": "one"})
    assert "The target loss, 0.420, is 1.05 times the median final training loss of one" in text


def tried(name: str, *losses: float, errors: Sequence[str] = ()) -> list[Trial]:
    """Return a trial of the learning rates 1, 10, 100 and so on for each loss."""
    return [
        Trial("", "machines", name, {"learning_rate": 10.0**place}, [9], [loss], ["done"], [""],
              list(errors))
        for place, loss in enumerate(losses)
    ]  # fmt: skip


def test_who_needs_tuning_most_is_said(found: Callable[..., str]) -> None:
    """The widest and the narrowest range of a tuned parameter are given with their ends."""
    trials = [*tried("one", 0.3, 0.2, 0.3, 9.0), *tried("other", 9.0, 0.1, 9.0)]
    text = found({"one": [[2, 0.4]] * 3, "other": [[2, 0.4]] * 3}, trials=trials)
    assert "one tolerates the widest range of its tuned parameter, from 1 to 100" in text
    assert "other the narrowest, from 10 to 10." in text
    alike = [*tried("one", 9.0, 0.1, 9.0), *tried("other", 9.0, 0.1, 9.0)]
    assert "tolerates" not in found({"one": [[2, 0.4]] * 3, "other": [[2, 0.4]] * 3}, trials=alike)


def test_failed_trials_are_said(found: Callable[..., str]) -> None:
    """Trials that ended in an error are counted, with one of the errors."""
    text = found({"one": [[2, 0.4]] * 3}, trials=tried("one", 0.1, 0.2, errors=["oh"]))
    assert "2 trials of tuning failed with an error, such as ['oh']" in text


def test_an_edge_of_the_grid_is_said(found: Callable[..., str]) -> None:
    """A tuned value at the edge of what was tried is named."""
    text = found({"one": [[2, 0.4]] * 3}, trials=tried("one", 0.3, 0.2))
    assert "for one on machines lies at the edge of what was tried" in text
