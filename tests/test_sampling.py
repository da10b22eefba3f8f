import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distsgd.kernels.draws.sampling import find_leaf, set_weight


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=8, max_size=8).filter(any), st.floats(0, 1))
@example([1, 2, 0, 0, 0, 0, 0, 0], 1.0)
def test_a_leaf_without_weight_is_never_drawn(weights: list[int], share: float) -> None:
    """The drawn leaf has a weight, and the weights up to it reach the share, 0 and 1 included."""
    tree = np.zeros(16)
    for leaf, weight in enumerate(weights):
        set_weight(tree, leaf, float(weight))
    drawn = find_leaf(tree, share)
    assert weights[drawn] > 0
    assert sum(weights[:drawn]) <= share * sum(weights) <= sum(weights[: drawn + 1])
