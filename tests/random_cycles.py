"""Cycles of verbs as Hypothesis draws them: any order, periods, quorum, bound and start."""

from typing import Any

from hypothesis import strategies as st

from distsgd.algorithm import Cycle, Pull, Push, Start, Step

_periods = st.integers(1, 3)
_orders = st.permutations([0, 1, 2])


@st.composite
def cycles(draw: Any, workers: int, *starts: float) -> Cycle:  # noqa: ANN401 # hypothesis does not name this type
    """Draw a cycle for some workers, of which the others start after one of `starts` updates."""
    quorum = draw(st.none() | st.integers(1, workers) | st.just(1))
    backup = draw(st.integers(0, workers - 1)) if quorum is None else 0
    verbs = (Pull(draw(_periods), draw(st.none() | st.integers(0, 3))), Step(), Push(draw(_periods), quorum, backup))
    return (Start(draw(st.sampled_from(starts))), *(verbs[place] for place in draw(_orders)))
