"""Compare: the runs of all algorithms, problems, fleets and seeds, made or taken from a folder."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from distsgd.algorithm import Algorithm
from distsgd.data.partition import SHARED, Partition
from distsgd.errors import check_seeds, warn
from distsgd.experiment.execution import Execution
from distsgd.experiment.labels import by_label
from distsgd.experiment.outcome import Outcome
from distsgd.experiment.runs import Watch
from distsgd.experiment.setup import Setup
from distsgd.experiment.sites import Engine
from distsgd.experiment.target import Reference
from distsgd.experiment.values import Tunable, Tuning
from distsgd.files import check_writable
from distsgd.fold.layers import LayerRates
from distsgd.fold.request import ModelFleet, ReadsName, RunConfig
from distsgd.live.machine.folder import locked
from distsgd.live.options import Live
from distsgd.order.budget import Budget
from distsgd.problem import Problem
from distsgd.report.comparison import Comparison
from distsgd.report.progress import Shown, is_watched, progress_of_runs


def compare(
    algorithms: Algorithm | Tunable | Mapping[str, Algorithm | Tunable],
    problem: Problem | Mapping[str, Problem],
    fleets: ModelFleet | Mapping[str, ModelFleet],
    *,
    epochs: float | None = None,
    updates: int | None = None,
    gradients: int | None = None,
    seconds: float | None = None,
    batch: int = 32,
    seeds: int | Sequence[int] = 3,
    evaluations: int = 40,
    target: float | Reference | None = None,
    note: str = "",
    tuning: Tuning | None = None,
    partition: Partition = SHARED,
    reads: ReadsName = "consistent",
    atomic: bool = True,
    layer_rates: LayerRates | None = None,
    layer_norms: bool = False,
    engine: Engine | Sequence[Engine] = "simulate",
    live: Live | None = None,
    processes: int | None = None,
    folder: str | Path | None = None,
    progress: bool | None = None,
    watch: Watch | None = None,
) -> Comparison:
    """Run every algorithm on every problem and fleet, over the same seeds and the same budget.

    Parameters
    ----------
    algorithms : Algorithm, Tunable or mapping of str to these
        By the name under which the report shows them; a single one is called by its name.
    problem : Problem or mapping of str to Problem
        What they minimise; a single one is called by its name.
    fleets : Fleet, StaleReads or mapping of str to these
        The machines; a single one is called "fleet".
    epochs, updates, gradients, seconds : float, optional
        The budget of every run, exactly one of them; seconds are virtual [s].
    batch : int, default 32
        Samples per gradient.
    seeds : int or sequence of int, default 3
        The seeds, or how many: 0, 1, 2 and so on.
    evaluations : int, default 40
        Evaluations per run, equally spaced in the budget.
    target : float or Reference, optional
        Training loss whose first crossing is timed; it does not stop a run.
    note : str, default ""
        What a reader of the report should know.
    tuning : Tuning, optional
        How every `Tunable` among the algorithms is tuned.
    partition : Partition, optional
        Which samples a worker sees; by default all, with replacement.
    reads : {"consistent", "interleaved"}, default "consistent"
        See `distsgd.simulate`.
    atomic : bool, default True
        See `distsgd.simulate`.
    layer_rates, layer_norms : optional
        Factors on the learning rate by layer, and whether histories have the norm of each layer's
        gradient, as in `simulate`.
    engine : {"simulate", "local", "ray"} or sequence of these, default "simulate"
        Whether runs are simulated, launched on this machine, or on a Ray cluster. With several,
        each fleet is compared on each; live runs are made one at a time, after the others.
    live : Live, optional
        How live runs are made, for example ``distsgd.Live(delay=distsgd.exponential(0.01))``.
    processes : int, optional
        How many work at once; by default one per core if the work is worth starting them.
    folder : str or Path, optional
        Where each run is saved as soon as it has finished, and the report at the end, see
        `Comparison.save`. A run that is saved there is not made again: where a comparison was
        stopped, the same call goes on. Runs of other comparisons may be there, too.
    progress : bool, optional
        Whether to show on standard error how far it is; by default where that is a terminal, and in
        a notebook.
    watch : callable, optional
        Called with each outcome as it comes, those of tuning first.

    Returns
    -------
    Comparison
        All runs, and their summary.

    Raises
    ------
    ConfigError
        If settings do not fit together, what is compared cannot be sent to other processes, or the
        folder cannot be written or is in use.
    """
    budget = Budget.of({"epochs": epochs, "updates": updates, "gradients": gradients, "seconds": seconds})
    config = RunConfig(
        budget,
        batch,
        evaluations=evaluations,
        partition=partition,
        reads=reads,
        atomic=atomic,
        layer_rates=layer_rates,
        layer_norms=layer_norms,
    )
    setup = Setup(
        by_label("algorithms", algorithms),
        problem,
        by_label("fleets", fleets),
        config,
        check_seeds("seeds", seeds),
        target,
        note,
        tuning or Tuning(),
        engine,
        live or Live(),
    )
    warn(setup.warnings)
    is_shown = is_watched() if progress is None else progress
    found, place = Execution(setup), None if folder is None else Path(folder)
    with contextlib.ExitStack() as stack:
        if place is not None:
            check_writable(place)
            stack.enter_context(locked(place))
        shown = stack.enter_context(progress_of_runs(found.n_runs)) if is_shown else Shown()
        told = _both(watch, shown.watch)
        found.carry_out(place, processes=processes, watch=told, watch_live=shown.watch_live)
        comparison = Comparison.of(found)
        if place is not None:
            comparison.report(place)
        return comparison


def _both(*watches: Watch | None) -> Watch:
    """Return what tells an outcome to each of `watches`."""

    def watch(outcome: Outcome) -> None:
        for one in watches:
            if one is not None:
                one(outcome)

    return watch
