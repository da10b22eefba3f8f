"""Search for the learning rate that suits a staleness, with Ray Tune.

Usage: python scripts/tune.py [--quick]

Every gradient is exactly so many versions old (`distsgd.fixed_staleness`). For each staleness the
search samples learning rates, on a logarithmic scale between 0.01 and 10, and keeps the one with
the lowest training loss after a few epochs of softmax on the digits. Trials are tasks of the
cluster that RAY_ADDRESS names, else of a Ray that the script starts and ends.

distsgd's own tuning (`"tune"` in an experiment file) needs no Ray; this is for those who want
Tune's searchers and schedulers.
"""

import os
import sys
import tempfile
from typing import Any

from papers import show

import distsgd as ds
from distsgd.live.ray.session import connected

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints a table a second

STALENESSES, QUICK_STALENESSES = [0, 4, 16, 64], [0, 16]
RATES, QUICK_RATES = 12, 2
EPOCHS = 3.0
LOWEST, HIGHEST = 0.01, 10.0


def trial(config: dict[str, Any]) -> dict[str, float]:
    """Return the loss of one learning rate at one staleness; a run that diverged has a huge one."""
    problem = ds.problems.softmax(ds.data.digits(), l2=1e-4)
    run = ds.simulate(
        ds.algorithms.downpour(config["learning_rate"]),
        problem,
        ds.fixed_staleness(config["staleness"]),
        epochs=EPOCHS,
        evaluations=1,
    )
    return {"loss": run.history["loss"][-1] if run.status == "done" else sys.float_info.max}


def search(stalenesses: list[int], rates: int, folder: str) -> list[dict[str, float]]:
    """Return what was tried: a dictionary of learning_rate, staleness and loss each."""
    from ray import tune  # noqa: PLC0415 # after the variable above, and after its start

    tuner = tune.Tuner(
        trial,
        param_space={"learning_rate": tune.loguniform(LOWEST, HIGHEST), "staleness": tune.grid_search(stalenesses)},
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            num_samples=rates,
            reuse_actors=True,
            search_alg=tune.search.BasicVariantGenerator(random_state=0),
        ),
        run_config=tune.RunConfig(storage_path=folder, verbose=0),
    )
    return [one.config | {"loss": one.metrics["loss"]} for one in tuner.fit()]


def main(arguments: list[str]) -> None:
    """Print the best learning rate of every staleness."""
    is_quick = "--quick" in arguments
    stalenesses = QUICK_STALENESSES if is_quick else STALENESSES
    rates = QUICK_RATES if is_quick else RATES
    with connected(), tempfile.TemporaryDirectory() as folder:
        tried = search(stalenesses, rates, folder)
    rows = []
    for staleness in stalenesses:
        own = [one for one in tried if one["staleness"] == staleness]
        best = min(own, key=lambda one: one["loss"])
        rows.append([staleness, len(own), best["learning_rate"], best["loss"]])
    headings = ["staleness", "trials", "learning rate", "loss"]
    show(f"Downpour after {EPOCHS:g} epochs", headings, rows)


if __name__ == "__main__":
    main(sys.argv[1:])
