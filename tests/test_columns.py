import mmap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd.errors import WireError
from distsgd.live.messages.columns import FrameVectors, Layout, SharedVectors, Vectors

layouts = st.builds(
    Layout,
    st.integers(5, 40),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 2),
    st.sampled_from([np.dtype(np.float64), np.dtype(np.float32)]),
)


def vectors_of(layout: Layout, *, shared: bool) -> Vectors:
    """Return columns in shared memory or in frames."""
    if shared:
        return SharedVectors(layout, memoryview(mmap.mmap(-1, layout.shared_bytes)))
    return FrameVectors(layout)


def drawn(random: np.random.Generator, layout: Layout) -> np.ndarray:
    """Return a column of the layout's type."""
    return random.normal(size=layout.dimension).astype(layout.dtype)


@given(layout=layouts)
def test_shards_cover_every_coordinate_once(layout: Layout) -> None:
    """The slices of the shards follow one another, and differ by at most one coordinate."""
    slices = [layout.slice(shard) for shard in range(layout.shards)]
    covered = [i for own in slices for i in range(own.start, own.stop)]
    assert covered == list(range(layout.dimension))
    sizes = [own.stop - own.start for own in slices]
    assert max(sizes) - min(sizes) <= 1


@given(layout=layouts, shared=st.booleans(), seed=st.integers(0, 99))
def test_columns_arrive_as_they_were_sent(layout: Layout, *, shared: bool, seed: int) -> None:
    """A push arrives in slices, a pull and a snapshot whole, bit for bit, for every worker."""
    vectors, random = vectors_of(layout, shared=shared), np.random.default_rng(seed)
    slices = [layout.slice(shard) for shard in range(layout.shards)]
    for worker in range(layout.workers):
        sent = [[drawn(random, layout) for _ in range(layout.n_message)] for _ in range(2)]
        posted = [vectors.post(worker, push, sent[push]) for push in (0, 1)]
        for push, (shard, own) in ((push, one) for push in (0, 1) for one in enumerate(slices)):
            found = vectors.message(shard, worker, push, posted[push][shard])
            for column, expected in zip(found, sent[push], strict=True):
                assert column.tobytes() == expected[own].tobytes()
        for who, n_columns in ((worker, layout.n_reads), (None, 1)):
            whole = [drawn(random, layout) for _ in range(n_columns)]
            replies = [
                vectors.answer(shard, who, [column[own] for column in whole]) for shard, own in enumerate(slices)
            ]
            fetched = vectors.fetch(who, replies)
            assert np.array(fetched).tobytes() == np.array(whole).tobytes()


def test_frames_of_another_size_are_refused() -> None:
    """A column too few, a byte too much, or frames beside shared memory are wire errors."""
    layout = Layout(10, 1, 2, 1, 2)
    frames = FrameVectors(layout)
    for wrong in ([], [bytes(40)], [bytes(40), bytes(41)], [bytes(40)] * 3):
        with pytest.raises(WireError, match="shard 1: expected 2 frames of 40 bytes"):
            frames.message(1, 0, 0, wrong)
    with pytest.raises(WireError, match="must have no frames, not 1"):
        vectors_of(layout, shared=True).message(0, 0, 0, [b"x"])


def test_a_type_of_half_the_size_halves_blocks_and_frames() -> None:
    """A float32 column takes 4 bytes per coordinate, in shared memory and in a frame."""
    wide = Layout(10, 3, 2, 2, 1)
    narrow = wide._replace(dtype=np.dtype(np.float32))
    assert narrow.shared_bytes * 2 == wide.shared_bytes == 8 * 10 * (3 * (2 + 2) + 1)
    frames = FrameVectors(narrow).post(0, 0, [np.ones(10, np.float32)])
    assert [[len(frame) for frame in own] for own in frames] == [[20], [20]]
    with pytest.raises(WireError, match=r"expected 1 frames of 20 bytes, not \[40\]"):
        FrameVectors(narrow).message(0, 0, 0, [bytes(40)])
