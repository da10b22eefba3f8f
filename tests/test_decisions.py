import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsgd.errors import WireError
from distsgd.live.server.decisions import Action, Decision, decode_decisions, encode_decisions

count = st.integers(0, 2**63 - 1)
decisions = st.builds(
    Decision,
    st.sampled_from(Action),
    st.integers(0, 2**32 - 1),
    count,
    count,
    count,
    count,
    count,
    st.floats(allow_nan=False),
    st.floats(allow_nan=False),
    count,
    count,
)


@given(decisions=st.lists(decisions, max_size=5))
@settings(max_examples=20)
def test_decisions_survive_the_wire(decisions: list[Decision]) -> None:
    """What one shard decides is what another reads, and anything else is refused."""
    frame = encode_decisions(decisions)
    assert decode_decisions(frame) == decisions
    with pytest.raises(WireError, match="multiple of"):
        decode_decisions(frame + b"x")
    with pytest.raises(WireError, match="action must be one of"):
        decode_decisions(encode_decisions([Decision(99)]))
