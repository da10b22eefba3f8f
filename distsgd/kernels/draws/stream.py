"""The samples of a worker's steps, drawn from its part of the data."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distsgd.kernels import compiled
from distsgd.kernels.draws.random import LAYERS, SAMPLES, Integer, below, draw, stream_key

_ROUNDS = 8
"""After 8 rounds all permutations of up to 6 places are equally frequent, after 6 not yet."""
_ONE, _HALF = np.uint64(1), np.uint64(32)


class Sampling(NamedTuple):
    """What decides the samples of every step."""

    seed: int
    samples: int
    """Samples of all workers together."""
    members: NDArray[np.uint32]
    """Samples of each part, part after part, uint32[n]; empty where every worker sees all."""
    starts: NDArray[np.uint64]
    """First member of each part, and their number, uint64[workers + 1]."""
    is_reshuffled: bool


@compiled
def shuffled(key: Integer, place: Integer, n: Integer) -> np.uint64:
    """Return where the permutation `key` of [0, n) takes `place`, for n <= 2**32.

    The places fill a table row by row. Each round turns every row by an amount of its own, then
    every column; whatever lands in the last row behind n goes on turning, so that [0, n) is
    permuted. No place is looked up, and any epoch can be entered anywhere.

    References
    ----------
    Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002: a Feistel network on
    a table, and cycle walking.
    """
    size = np.uint64(n)
    columns = np.uint64(math.ceil(math.sqrt(float(size))))
    rows = (size + columns - _ONE) // columns
    at = np.uint64(place)
    while True:
        row, column = at // columns, at % columns
        for i in range(_ROUNDS):
            turn = np.uint64(2 * i) << _HALF
            column = _turned(column, draw(key, turn + row), columns)
            turn += _ONE << _HALF
            row = _turned(row, draw(key, turn + column), rows)
        at = row * columns + column
        if at < size:
            return at


@compiled
def _turned(place: Integer, bits: Integer, n: Integer) -> np.uint64:
    """Return `place` moved on by a draw in [0, n), modulo n: a division would take longer."""
    moved = place + below(bits, n)
    return moved if moved < n else moved - n


@compiled
def draw_batch(sampling: Sampling, worker: Integer, step: Integer, out: NDArray[np.uint32]) -> None:
    """Write the samples of a worker's step into `out`, uint32[b].

    Sample i of step k is draw n = k b + i of the worker's stream. With replacement it is reduced to
    the size of the worker's part; reshuffled, it is the place n mod size of the epoch n div size.
    """
    key = stream_key(sampling.seed, SAMPLES, worker)
    first, size = np.uint64(0), np.uint64(sampling.samples)
    is_divided = sampling.members.size > 0
    if is_divided:
        first = sampling.starts[worker]
        size = sampling.starts[worker + 1] - first
    n = np.uint64(step) * np.uint64(out.size)
    for i in range(out.size):
        place = shuffled(draw(key, n // size), n % size, size) if sampling.is_reshuffled else below(draw(key, n), size)
        out[i] = sampling.members[first + place] if is_divided else place
        n += _ONE


@compiled
def fill_batches(
    sampling: Sampling, workers: NDArray[np.int64], steps: NDArray[np.int64], out: NDArray[np.uint32]
) -> None:
    """Write the batch of ``workers[j]`` at ``steps[j]`` into the row j of `out`, uint32[m, b]."""
    for j in range(workers.size):
        draw_batch(sampling, workers[j], steps[j], out[j])


@compiled
def fill_keys(seed: Integer, workers: NDArray[np.int64], steps: NDArray[np.int64], out: NDArray[np.uint64]) -> None:
    """Write into ``out[j]`` what random layers draw from in ``steps[j]`` of ``workers[j]``."""
    for j in range(workers.size):
        out[j] = draw(stream_key(seed, LAYERS, workers[j]), steps[j])
