"""The runs of a comparison, from the first of tuning to the last: what has finished is here."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from distsgd.experiment.outcome import Outcome
from distsgd.experiment.runs import (
    NO_TARGETS,
    NOWHERE,
    LiveWatch,
    Make,
    Place,
    Watch,
    connected,
    made,
    outcome_of,
    run_jobs,
    worthwhile,
)
from distsgd.experiment.setup import Setup
from distsgd.experiment.target import Target
from distsgd.experiment.trials import Trial
from distsgd.experiment.tuning import find_targets, losses_of, n_tuning_runs, planned, tune


def outcomes(
    setup: Setup, place: Place = NOWHERE, trials: Sequence[Trial] = (), targets: Mapping[str, float] = NO_TARGETS
) -> Generator[Outcome, None, None]:
    """Run everything, as the `trials` of tuning say, and give each run as it finishes.

    In one process they come fleet by fleet, algorithm by algorithm, seed by seed; see `run_jobs`.
    """
    for job, done in run_jobs(setup, planned(setup, trials), place, targets):
        yield outcome_of(job, done)


@dataclass
class Execution:
    """A comparison that is carried out: whatever stops it, what has finished by then is here."""

    setup: Setup
    trials: list[Trial] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    targets: dict[str, Target] = field(default_factory=dict)

    @property
    def n_runs(self) -> int:
        """Number of runs, those of tuning included, at most."""
        return self.setup.n_runs + n_tuning_runs(self.setup)

    def carry_out(
        self,
        folder: Path | None = None,
        *,
        processes: int | None = None,
        is_fresh: bool = False,
        watch: Watch | None = None,
        watch_live: LiveWatch | None = None,
        on: str = "local",
        make: Make = made,
    ) -> None:
        """Tune what is to be tuned, then run everything, or raise a `ConfigError` as `run_jobs`.

        Runs are saved and found in `folder`; saved ones are made again if `is_fresh`. `processes`
        work at once: if None, one per core where the work is worth starting them, and as many as
        the cluster has CPUs where simulated runs are made `on` "ray". `watch` is told of each
        outcome as it comes, `watch_live` of live runs on their way.
        """
        if processes is None and on == "local":
            processes = worthwhile(self.setup, self.n_runs // len(self.setup.problems))
        place = Place(folder, processes, is_fresh, watch_live, on, make)
        with connected(place):
            self.targets |= find_targets(self.setup, place, watch)
            targets = losses_of(self.targets)
            self.trials += tune(self.setup, place, watch, targets=targets)
            # Closed as soon as it is left: a traceback may keep it, and its work would go on.
            with closing(outcomes(self.setup, place, self.trials, targets)) as found:
                for outcome in found:
                    self.outcomes.append(outcome)
                    if watch is not None:
                        watch(outcome)
