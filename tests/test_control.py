import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from small_server import SmallServer

from distsgd import algorithms
from distsgd.live.messages.wire import Kind, State
from distsgd.live.server import control as module
from distsgd.live.server.control import Control, Instruction
from distsgd.live.server.serve import serve
from distsgd.order.budget import Limits

STATUS, STOP = Instruction(Kind.STATUS), Instruction(Kind.STOP)
RUNNING = State("running")


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> Control:
    """Return a control that may ask at any time."""
    monkeypatch.setattr(module, "ASK_S", 0.0)
    return Control()


def told(lead: Connection) -> list[Instruction]:
    """Return what a lead has been told and has not answered."""
    found = []
    while lead.poll():
        found.append(lead.recv())
    return found


def test_one_question_is_open_at_a_time(control: Control) -> None:
    """A lead that is slow to answer is asked once; the answer to something else is none to that."""
    lead = control.renew()
    for _ in range(3):
        control.ask()
    control.send(STOP)
    assert told(lead) == [STATUS, STOP]
    lead.send((STOP, RUNNING))
    assert control.answers() == [(STOP, RUNNING)]
    control.ask()
    assert told(lead) == []
    lead.send((STATUS, RUNNING))
    assert control.answers() == [(STATUS, RUNNING)]
    control.ask()
    assert told(lead) == [STATUS]


def test_another_lead_is_asked_anew(control: Control) -> None:
    """What a lead has left unsaid is never heard; the next one owes no answer to its question."""
    first = control.renew()
    control.ask()
    first.send((STATUS, RUNNING))
    second = control.renew()
    assert control.answers() == []
    control.ask()
    assert told(second) == [STATUS]


def test_a_dead_lead_is_silent(control: Control) -> None:
    """What is told to a lead that has ended, or to none, is lost without an error."""
    control.send(STOP)
    assert control.answers() == []
    control.renew().close()
    control.send(STOP)
    assert control.answers() == []


def test_questions_have_their_time() -> None:
    """Between two questions lies the time that is named, however often one is wanted."""
    control = Control()
    lead = control.renew()
    assert control.ask() == module.ASK_S
    assert 0.0 < control.ask() <= module.ASK_S
    assert told(lead) == [STATUS]


class Piped(SmallServer):
    """A small server whose lead has a pipe to the test."""

    control: Control

    def thread(self, do: Callable[..., None], *arguments: object, **options: object) -> None:
        """Do something in a thread that ends with the run."""
        options |= {"control": self.control.renew()} if do is serve else {}
        super().thread(do, *arguments, **options)


def test_the_lead_obeys_its_pipe(tmp_path: Path, control: Control) -> None:
    """A lead acts on each instruction, and answers it with the state that it has led to."""

    def told(instruction: Instruction) -> State:
        control.send(instruction)
        while not (answers := control.answers()):
            time.sleep(0.001)
        ((echo, state),) = answers
        assert echo == instruction
        return state

    server = Piped(algorithms.downpour(0.1), tmp_path, limits=Limits(seconds=1e6))
    server.control = control
    with server:
        server.work()
        session = server.sessions[1]
        assert told(Instruction(Kind.GONE, 1, session + 1)).lost == []
        assert told(Instruction(Kind.GONE, 1, session)).lost == [1]
        assert told(Instruction(Kind.ADMIT, 1, session + 1)).lost == []
        assert told(STOP).phase != "running"
        while told(STATUS).phase != "over":
            pass
