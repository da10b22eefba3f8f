"""Hogwild! on shared memory: against scikit-learn, against one worker, against the memory."""

import statistics
import time
from typing import NamedTuple

import numpy as np
import scipy.sparse
from sklearn.linear_model import SGDClassifier
from table import Line

import distsgd as ds
from distsgd.live.options import Writes
from distsgd.problem import Problem

RATE = 0.5
"""Constant step size of all, close to the best for one epoch."""
EPOCHS = 4


class Measured(NamedTuple):
    """One epoch."""

    seconds: float
    loss: float


def rows(*, quick: bool = False) -> list[Line]:
    """Return the rows of the table of `scripts/bench`.

    Parameters
    ----------
    quick : bool
        Whether to measure a tenth of the samples, once.

    Returns
    -------
    list of Line
        Medians of interleaved repetitions.
    """
    samples, repetitions = (20_000, 1) if quick else (200_000, 7)
    problem = ds.problems.logistic(ds.data.sparse(samples, 47_236, 75, test_samples=0))
    measured: dict[str, list[Measured]] = {kind: [] for kind in ("peer", "one", "racy", "gathered")}
    bandwidths = []
    for _ in range(repetitions):
        measured["peer"].append(scikit_learn(problem))
        measured["one"] += launched(problem, 1)
        measured["racy"] += launched(problem, 2)
        measured["gathered"] += launched(problem, 2, writes="gathered")
        bandwidths.append(bandwidth())
    peer, one, racy, gathered = map(median, measured.values())
    rows = problem.support.rows
    bound = (rows.values.nbytes + rows.columns.nbytes) / statistics.median(bandwidths)
    what = f"Hogwild!, logistic, {samples:,} x 47,236, 75 non-zeros, "
    return [
        Line(
            what + "one worker",
            told(samples, one),
            told(samples, peer) + " of scikit-learn",
            f"{peer.seconds / one.seconds:.2f} times as fast",
            "4 times, no higher loss",
        ),
        *(
            Line(
                f"{what}two workers, {writes}",
                told(samples, two),
                told(samples, one) + " of one worker",
                f"{one.seconds / two.seconds:.2f} times as fast",
                reach,
            )
            for writes, two, reach in (("racy", racy, "-"), ("gathered", gathered, "1.8 times"))
        ),
        Line(
            what + "one worker",
            f"{one.seconds / rows.values.size * 1e9:.2f} ns/non-zero",
            f"{bound / rows.values.size * 1e9:.2f} to read its 12 bytes from memory",
            f"{one.seconds / bound:.1f} times its time",
            "-",
        ),
    ]


def told(samples: int, epoch: Measured) -> str:
    """Return samples per second, and the loss."""
    return f"{samples / epoch.seconds / 1e6:.2f} M samples/s (loss {epoch.loss:.4f})"


def median(epochs: list[Measured]) -> Measured:
    """Return the medians of time and loss."""
    return Measured(*map(statistics.median, zip(*epochs, strict=True)))


def launched(problem: Problem, workers: int, writes: Writes = "racy") -> list[Measured]:
    """Time some epochs of one run, with the loss after the first: that is what peers have."""
    algorithm = ds.algorithms.hogwild(RATE, backoff=1.0)
    history = ds.launch(algorithm, problem, workers=workers, epochs=EPOCHS, batch=1, writes=writes).history
    loss = history["loss"][1]
    return [Measured(seconds, loss) for seconds in history["wall_seconds"].diff()[1:]]


def scikit_learn(problem: Problem) -> Measured:
    """Time an epoch of scikit-learn's SGD with the same loss, step size and data."""
    rows, labels = problem.support.rows, problem.support.labels
    table = scipy.sparse.csr_matrix(
        (rows.values, rows.columns.astype(np.int32), rows.starts.astype(np.int32)), rows.shape
    )
    peer = SGDClassifier(
        loss="log_loss", penalty=None, learning_rate="constant", eta0=RATE, max_iter=1, tol=None, fit_intercept=False
    )
    start = time.perf_counter()
    peer.fit(table, labels)
    seconds = time.perf_counter() - start
    return Measured(seconds, problem.loss(peer.coef_[0]))


def bandwidth() -> float:
    """Return how fast one core reads memory [bytes/s]."""
    block = np.ones(2**25)  # 256 MB: more than any cache
    start = time.perf_counter()
    block.sum()
    return block.nbytes / (time.perf_counter() - start)
