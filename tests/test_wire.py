import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd.errors import WireError
from distsgd.live.messages.wire import HEADER, Header, Kind, decode, encode

u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
counts = st.integers(0, 2**63 - 1)
times = st.floats(0.0, 1e9)
headers = st.builds(
    Header, st.sampled_from([int(kind) for kind in Kind]), u32, u32, u64, u64, u64, counts, counts, times, times
)


@given(header=headers, frames=st.lists(st.binary(max_size=20), max_size=3))
def test_messages_survive_the_wire(header: Header, frames: list[bytes]) -> None:
    """What is encoded is decoded again, field by field and frame by frame."""
    message = decode([encode(header), *frames])
    assert message.header == header
    assert message.frames == frames


@given(st.lists(st.binary(max_size=2 * HEADER.size), max_size=3))
def test_garbage_is_a_wire_error(frames: list[bytes]) -> None:
    """Random frames are refused, and nothing else is raised."""
    with pytest.raises(WireError, match="must begin with"):
        decode(frames)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"kind": 99}, "kind must be one of"),
        ({"step": -1}, "step and version must be >= 0"),
        ({"version": -1}, "step and version must be >= 0"),
        ({"sent": math.nan}, "times must be >= 0 s and finite"),
        ({"sent": -1.0}, "times must be >= 0 s and finite"),
        ({"resumed": math.inf}, "times must be >= 0 s and finite"),
    ],
)
def test_impossible_numbers_are_refused(wrong: dict[str, float], says: str) -> None:
    """A header of the right size with an impossible field says which one."""
    with pytest.raises(WireError, match=says):
        decode([encode(Header(Kind.PULL, 0)._replace(**wrong))])


def test_other_protocols_are_refused() -> None:
    """A header of another version of the protocol is not read."""
    header = bytearray(encode(Header(Kind.PULL, 0)))
    header[4] += 1
    with pytest.raises(WireError, match="must begin with"):
        decode([bytes(header)])
