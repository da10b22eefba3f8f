from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_cycles import cycles

from distsgd.algorithm import Cycle, Pull, Push, Step
from distsgd.kernels.order.machines import STEP, next_verb, pulls_at, pushes_at
from distsgd.order.budget import Limits
from distsgd.order.fleet import Fleet
from distsgd.order.schedule import _constants
from distsgd.rules.cycle import SyncProtocol
from distsgd.trace import PULL, PUSH


@pytest.mark.jit_off
@settings(deadline=None)  # the kernel is compiled in the first example
@given(cycle=cycles(3, 0, 2, inf), step=st.integers(0, 40))
def test_the_kernel_has_the_cycle_of_the_rules(cycle: Cycle, step: int) -> None:
    """What compiled code does in front of a step, and what first, is what the protocol says."""
    const = _constants(cycle, Fleet(3), Limits(updates=1), 0.0, 0.0)
    due = const.sync.due(step, is_first=step == 0)
    assert (pulls_at(const, step), pushes_at(const, step)) == (Pull in due, Push in due)
    assert next_verb(const, step) == {(): STEP, (Pull,): PULL, (Push,): PUSH}[due[:1]]


@given(cycle=cycles(3, 0, 2, inf), step=st.integers(0, 40))
def test_verbs_behind_a_step_come_before_those_in_front_of_the_next(cycle: Cycle, step: int) -> None:
    """A protocol has the verbs that a cycle says, in its order, and none before they are due."""
    place = [type(one) for one in cycle].index(Step)
    between = (*cycle[place + 1 :], *cycle[:place])
    sync = SyncProtocol.of(cycle, 3)
    for is_first, verbs in ((False, between), (True, cycle[:place])):
        expected = [one for one in verbs if isinstance(one, Pull | Push) and step % one.every == 0]
        assert sync.due(step, is_first=is_first) == tuple(map(type, expected))
    later = sync.next_due(step)
    assert sync.due(later, is_first=False)
    assert not any(sync.due(between_them, is_first=False) for between_them in range(step + 1, later))
