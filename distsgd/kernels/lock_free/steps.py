"""Steps of workers that change shared columns themselves, without a server.

1. A sample that is a batch of its own is read and changed along its row, and nothing is copied:
   what was read for its margin is read again where a rule needs it. A larger batch has its
   gradient on its support first. The columns of either are distinct, so that a single worker finds
   the same numbers again, and takes no lock twice.
2. A racy change loads and stores a coordinate while others do so: what they store between is lost.
3. An atomic change of a single column is stored only if no other worker has changed it since its
   load, and begins again otherwise. Several columns of a coordinate change under its lock.
4. A worker that locks takes all locks of its support in ascending order of the coordinates. Two
   that wait for each other would need one that holds a higher coordinate and asks for a lower one.
5. A lock holds the number of its owner, plus 1, so that the locks of a process that has died can be
   given back.
6. Where workers take turns, the number of a step among all of them says whose turn it is. A turn
   is passed on when its change is in memory, so the next worker finds it.
7. What a worker has done is told behind a stretch of steps, and behind what they stored: the
   process that replaces it may take steps twice, and leaves none out.
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
from distsgd.kernels.fold.rules import Loop, Names, RuleSet, loops, received, stores, values
from distsgd.kernels.fold.sparse import Workspace, batch_message

Writes: TypeAlias = Literal["racy", "gathered", "atomic", "locked", "round_robin"]
"""How a worker changes what others change too."""
AHEAD = np.uint64(256)
"""Non-zeros between what is read and what is asked for: a few hundred nanoseconds, which is what
memory takes. Processors do so by themselves, but not across pages."""
VALUES_PER_LINE, COLUMNS_PER_LINE = np.uint64(8), np.uint64(16)
"""In 64 bytes."""


class SharedMemory(NamedTuple):
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
    space: Workspace


class EpochOrder(NamedTuple):
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


def epoch_order(seed: int, number: int, samples: int, block: int) -> EpochOrder:
    """Return the order of the epoch `number`, in blocks of `block` samples."""
    key = np.uint64(stream_key(seed, PASSES, number))
    cut = below(np.uint64(draw(key, 0)), samples)
    sizes = (np.uint64(size) for size in (samples, block, samples // block, cut))
    return EpochOrder(np.uint64(draw(key, 1)), *sizes)


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
    staleness = min(chunk.workers - 1, version)  # the first updates have fewer in front of them
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


def rows_source(names: Names) -> str:
    """Return the loops over a row, or over a support, of columns that others change meanwhile."""
    return margin_source(names) + "".join(
        changes_source(names, name, change) for name, change in (("racy", _racy(names)), ("atomic", _atomic(names)))
    )


def margin_source(names: Names) -> str:
    """Return the loop that reads along a row."""
    return f"""
def margin_row(h, S, columns, entries, first, end, at):
    margin = 0.0
    for entry in range(first, end):
        i = columns[entry]
        margin += entries[entry] * position(h, {received(names, "S.{}[i]")}, at)
    return margin
"""


def changes_source(names: Names, name: str, change: str) -> str:
    """Return the loops that change coordinates by the statements `change`, which know i and m."""
    read = received(names, "S.{}[i]")
    return f"""
def change_row_{name}(
    h, S, columns, entries, first, end, slope, shrink, at, sent, applied, locks, owner
):
    for entry in range(first, end):
        i = columns[entry]
        g = slope * entries[entry]
        if shrink.size > 0:
            g += shrink[i] * position(h, {read}, at)
        g = 0.0 + g  # as in a sum over samples, where -0.0 becomes 0.0
        w, m = send(h, step(h, {read}, g, at), sent){change}

def change_support_{name}(h, S, support, B, applied, locks, owner):
    for p in range(support.size):
        i = support[p]
        m = Message({values(names.message, "B.{}[0, p]")}){change}
"""


def _racy(names: Names) -> str:
    """Return the statements of rule 2."""
    return f"""
        s = apply(h, State({values(names.state, "S.{}[i]")}), m, applied)
        {stores(names.state, "S.{0}[i] = s.{0}")}"""


def _atomic(names: Names) -> str:
    """Return the statements of rule 3: no word of memory is wide enough for two columns."""
    if len(names.state) > 1:
        return f"""
        hold(locks, i, owner){_racy(names)}
        release(locks, i)"""
    return """
        while True:
            old = loaded(S.x, i)
            s = apply(h, State(old), m, applied)
            if exchanged(S.x, i, old, s.x):
                break"""


@functools.cache
def _guarding(writes: Writes) -> tuple[Loop, Loop]:
    """Return what a worker does in front of its change of some coordinates, and behind it.

    Both take an array and a range in it: a slice of each row would take longer than a small change.
    """
    is_locked, is_in_turn = writes == "locked", writes == "round_robin"

    def enter(memory, ascending, first, end, number, owner):
        if is_in_turn:
            wait_for(memory.turn, 0, number)
        if is_locked:
            for entry in range(first, end):  # rule 4
                hold(memory.locks, ascending[entry], owner)

    def leave(memory, coordinates, first, end, number):
        if is_locked:
            for entry in range(first, end):
                release(memory.locks, coordinates[entry])
        if is_in_turn:
            stored(memory.turn, 0, number + 1)  # rule 6: behind the change

    return specialised(enter), specialised(leave)


@functools.cache
def row_kernel(rules: RuleSet, writes: Writes) -> Loop:
    """Return the kernel that takes some steps of a worker, each on one sample."""
    loop = loops(rules, rows_source)
    margin_row = loop["margin_row"]
    change_row = loop["change_row_atomic" if writes == "atomic" else "change_row_racy"]
    enter, leave = _guarding(writes)

    def steps(memory, own, support, order, chunk, start, stop):
        S, locks, _, counts = memory
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
                change, number = slope(margin, labels[sample]), number_of(chunk, taken)
                enter(memory, columns, first, end, number, owner)
                change_row(h, S, columns, entries, first, end, change, shrink, at, sent, applied, locks, owner)
                leave(memory, columns, first, end, number)
                sample += np.uint64(1)
                taken += 1
            stored(counts, chunk.worker, taken)  # rule 7

    return specialised(steps)


@functools.cache
def batch_kernel(rules: RuleSet, writes: Writes) -> Loop:
    """Return the kernel that takes some steps of a worker, each on a batch of samples."""
    evaluate, loop = batch_message(rules), loops(rules, rows_source)
    change_support = loop["change_support_atomic" if writes == "atomic" else "change_support_racy"]
    (enter, leave), is_locked = _guarding(writes), writes == "locked"

    def steps(memory, own, support, order, chunk, start, stop):
        space, owner = own.space, chunk.worker + 1
        columns = space.columns[0]
        for taken in range(start, stop):
            place = (chunk.first + taken) * chunk.batch
            batch = space.batch[0, : min(chunk.batch, np.int64(order.samples) - place)]
            fill_order(order, place, batch)
            at, sent, applied = known(chunk, taken)
            n = evaluate(own, memory.server, support, batch, columns, space, at, sent, 0)
            here, number = columns[:n], number_of(chunk, taken)
            # Rule 4: a support is in the order of its samples.
            enter(memory, np.sort(here) if is_locked else here, 0, n, number, owner)
            change_support(own.h, memory.server, here, own.messages, applied, memory.locks, owner)
            leave(memory, here, 0, n, number)
            stored(memory.taken, chunk.worker, taken + 1)

    return specialised(steps)


@specialised
def pass_turn(turn: NDArray[np.int64], number: int) -> None:
    """Wait for the turn `number`, and leave it to the next worker: who skips it stops them all."""
    wait_for(turn, 0, number)
    stored(turn, 0, number + 1)
