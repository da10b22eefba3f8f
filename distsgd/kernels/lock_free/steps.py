"""Steps of workers that change shared columns themselves, without a server.

A sample that is a batch of its own is read and changed along its row, and nothing is copied. A
larger batch has its gradient on its support first.
"""

import functools
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distsgd.algorithm import At
from distsgd.kernels import compiled, specialised
from distsgd.kernels.atomic import hold, prefetch, release, stored, wait_for
from distsgd.kernels.draws.random import PASSES, below, draw, stream_key
from distsgd.kernels.draws.stream import shuffled
from distsgd.kernels.fold.rules import Halves, Loop, loops
from distsgd.kernels.fold.sparse import Room, find_support, support_gradient

Writes: TypeAlias = Literal["racy", "gathered", "atomic", "locked", "round_robin"]
"""How a worker changes what others change too."""
AHEAD = np.uint64(256)
"""Non-zeros between what is read and what is asked for: a few hundred nanoseconds, which is what
memory takes. Processors do so by themselves, but not across pages."""
VALUES_PER_LINE, COLUMNS_PER_LINE = np.uint64(8), np.uint64(16)
"""In 64 bytes."""


class Memory(NamedTuple):
    """What all workers see."""

    server: Any
    """float64[d] per column."""
    locks: NDArray[np.int64]
    """Number of the worker that holds each coordinate, plus 1; 0 if none does; int64[d]."""
    turn: NDArray[np.int64]
    """Steps of all workers that have been taken in turn, int64[1]."""
    taken: NDArray[np.int64]
    """Steps that each worker has taken in this epoch, int64[workers]."""


class Own(NamedTuple):
    """What one worker has for itself."""

    h: Any
    read: Any
    """What it has read for a batch: float64[most] per column."""
    messages: Any
    """Its message: float64[1, most] per column."""
    point: NDArray[np.float64]
    """float64[most]"""
    gradient: NDArray[np.float64]
    """float64[most]"""
    room: Room


class Order(NamedTuple):
    """The order of the samples in a pass over all of them.

    The samples stand on a ring, which is cut at a random place into blocks of equal length and a
    rest. The blocks are permuted; within them samples keep the order of storage. The rest is last.
    """

    key: np.uint64
    samples: np.uint64
    block: np.uint64
    """Samples of a block."""
    n_blocks: np.uint64
    """Whole blocks."""
    cut: np.uint64
    """Where the ring is cut."""


class Chunk(NamedTuple):
    """What is known of one worker's steps in an epoch."""

    worker: int
    workers: int
    first: int
    """Place of its first batch in the epoch."""
    version: int
    """Updates of all workers before the epoch."""
    step: int
    """Its own steps before the epoch."""
    factor: float
    """The schedule's factor in this epoch."""
    batch: int


def order_of(seed: int, number: int, samples: int, block: int) -> Order:
    """Return the order of the epoch `number`, in blocks of `block` samples."""
    key = np.uint64(stream_key(seed, PASSES, number))
    cut = below(np.uint64(draw(key, 0)), samples)
    sizes = (np.uint64(size) for size in (samples, block, samples // block, cut))
    return Order(np.uint64(draw(key, 1)), *sizes)


@compiled
def stretch(order, place, most):
    """Return the sample at `place` of an epoch, and how many places follow on in storage."""
    number, within = place // order.block, place % order.block
    if number < order.n_blocks:
        number = shuffled(order.key, number, order.n_blocks)
    sample = number * order.block + within + order.cut
    if sample >= order.samples:
        sample -= order.samples
    return sample, min(most, order.block - within, order.samples - sample)


@compiled
def fill_order(order, first, out):
    """Write the samples at the places from `first` on into `out`, uint32[k]."""
    n = np.uint64(0)
    while n < out.size:
        sample, count = stretch(order, np.uint64(first) + n, np.uint64(out.size) - n)
        for i in range(count):
            out[n + i] = sample + i
        n += count


@specialised
def number_of(chunk, taken):
    """Return the number of a step among all workers' steps in the epoch, if they take turns."""
    return chunk.workers * taken + chunk.worker


@specialised
def known(chunk, taken):
    """Return what a worker's rules are told at a step: when it reads, sends, and is applied.

    There is no server that counts versions: the rules are told the version that there would be if
    the workers took turns.
    """
    version = chunk.version + number_of(chunk, taken)
    staleness = min(chunk.workers - 1, version)
    step, factor = chunk.step + taken, chunk.factor
    at = At(version - staleness, 0, chunk.workers, step, factor)
    sent = At(version - staleness, 0, chunk.workers, step + 1, factor)
    return at, sent, At(version, staleness, chunk.workers, step + 1, factor)


@specialised
def prefetch_row(entries, columns, first, end):
    """Ask for the lines of memory that hold some non-zeros of the rows to come."""
    for entry in range(first, end, VALUES_PER_LINE):
        prefetch(entries, entry)
    for entry in range(first, end, COLUMNS_PER_LINE):
        prefetch(columns, entry)


@functools.cache
def stepping(halves: Halves, writes: Writes) -> Loop:
    """Return the kernel that takes some steps of a worker, each on one sample."""
    loop = loops(halves).by_name
    margin_row = loop["margin_row"]
    change_row = loop["change_row_atomic" if writes == "atomic" else "change_row_racy"]
    is_locked, is_in_turn = writes == "locked", writes == "round_robin"

    def steps(memory, own, support, order, chunk, start, stop):
        S, locks, turn, counts = memory
        h = own.h
        data, labels, shrink, slope = support
        entries, columns, starts = data.values, data.columns, data.starts
        owner, taken = chunk.worker + 1, start
        while taken < stop:
            place = np.uint64(chunk.first + taken)
            sample, count = stretch(order, place, np.uint64(stop - taken))
            for _ in range(count):
                first, end = starts[sample], starts[sample + np.uint64(1)]
                at, sent, applied = known(chunk, taken)
                prefetch_row(entries, columns, first + AHEAD, end + AHEAD)
                margin = margin_row(h, S, columns, entries, first, end, at)
                change = slope(margin, labels[sample])
                if is_in_turn:
                    wait_for(turn, 0, number_of(chunk, taken))
                if is_locked:
                    for entry in range(first, end):
                        hold(locks, columns[entry], owner)
                change_row(h, S, columns, entries, first, end, change, shrink, at, sent, applied, locks, owner)
                if is_locked:
                    for entry in range(first, end):
                        release(locks, columns[entry])
                if is_in_turn:
                    stored(turn, 0, number_of(chunk, taken) + 1)
                sample += np.uint64(1)
                taken += 1
            stored(counts, chunk.worker, taken)

    return specialised(steps)


@functools.cache
def batch_stepping(halves: Halves, writes: Writes) -> Loop:
    """Return the kernel that takes some steps of a worker, each on a batch of samples."""
    loop = loops(halves).by_name
    point, message = loop["point_support"], loop["message_support"]
    change_support = loop["change_support_atomic" if writes == "atomic" else "change_support_racy"]
    is_locked, is_in_turn = writes == "locked", writes == "round_robin"

    def steps(memory, own, support, order, chunk, start, stop):
        S, locks, turn, counts = memory
        h, R, B, all_points, all_gradients, room = own
        owner = chunk.worker + 1
        for taken in range(start, stop):
            place = (chunk.first + taken) * chunk.batch
            batch = room.batch[0, : min(chunk.batch, np.int64(order.samples) - place)]
            fill_order(order, place, batch)
            n = find_support(support.rows, batch, room.columns[0], room.place, room.position)
            here, x, g = room.columns[0, :n], all_points[:n], all_gradients[:n]
            at, sent, applied = known(chunk, taken)
            point(h, S, here, at, R, x)
            support_gradient(support, batch, room.place, x, g)
            message(h, R, at, sent, g, B, 0)
            if is_in_turn:
                wait_for(turn, 0, number_of(chunk, taken))
            if is_locked:
                for i in np.sort(here):
                    hold(locks, i, owner)
            change_support(h, S, here, B, applied, locks, owner)
            if is_locked:
                for i in here:
                    release(locks, i)
            if is_in_turn:
                stored(turn, 0, number_of(chunk, taken) + 1)
            stored(counts, chunk.worker, taken + 1)

    return specialised(steps)


@specialised
def pass_turn(turn: NDArray[np.int64], number: int) -> None:
    """Wait for the turn `number`, and leave it to the next worker."""
    wait_for(turn, 0, number)
    stored(turn, 0, number + 1)
