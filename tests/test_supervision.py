from collections.abc import Callable
from types import SimpleNamespace

import pytest

from distsgd.errors import ConfigError, DistsgdError, WireError, WorkerLost
from distsgd.live.local.supervision import MOST_LOSSES, Events, Role, Supervision
from distsgd.live.machine.failure import Failure
from distsgd.live.machine.forking import End
from distsgd.live.messages.wire import Kind, State
from distsgd.live.server.control import Instruction

KILLED, STATUS = End(-9), Instruction(Kind.STATUS)
W1, LEAD = Role("worker", 1), Role("server", 0)


class Script:
    """Processes that write down what they are asked for."""

    seconds = 0.0

    def __init__(self) -> None:
        self.done: list[tuple[object, ...]] = []
        self.sessions = dict.fromkeys(range(3), 1)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.done.append((name, *arguments))

    def renew(self, worker: int) -> int:
        """Give a worker another session."""
        self.sessions[worker] += 1
        return self.sessions[worker]


def started(on_loss: str = "replace", workers: int = 3) -> tuple[Supervision, Script]:
    """Return the supervision of a run that has begun, and its processes."""
    processes = Script()
    case = SimpleNamespace(fleet=SimpleNamespace(workers=workers, shards=2, on_loss=on_loss))
    supervision = Supervision(case, processes)
    supervision.start()
    processes.done.clear()
    return supervision, processes


def ended(role: Role, end: End = KILLED) -> Events:
    """Return the end of a process."""
    return Events([], [], {role: end})


def told(instruction: Instruction = STATUS, **state: object) -> Events:
    """Return what the lead has answered to an instruction."""
    return Events([], [(instruction, State(**({"phase": "running"} | state)))], {})


def test_a_worker_is_replaced_when_it_has_been_admitted() -> None:
    """A lost worker's successor is started once, when the lead knows its session."""
    supervision, processes = started()
    supervision.heed(ended(W1))
    admit = Instruction(Kind.ADMIT, 1, 2)
    assert processes.done == [("kill", {W1}), ("tell", admit)]
    supervision.heed(told(lost=[1]))  # the lead has said so before it heard of the other one
    supervision.heed(told(admit))
    assert processes.done[2:] == [("start_worker", 1)]
    assert supervision.progress().lost == 1


def test_a_worker_that_hangs_is_lost_once() -> None:
    """However often the lead says that a worker is lost, it is killed and replaced once."""
    supervision, processes = started()
    for _ in range(3):
        supervision.heed(told(lost=[1]))
    assert processes.done == [("kill", {W1}), ("tell", Instruction(Kind.ADMIT, 1, 2))]


def test_the_lead_is_told_who_is_gone() -> None:
    """Where workers may shrink, the lead is told of a loss, and no worker is started."""
    supervision, processes = started("shrink")
    supervision.heed(ended(W1))
    supervision.heed(told(Instruction(Kind.GONE, 1, 1), lost=[1]))
    assert processes.done == [("kill", {W1}), ("tell", Instruction(Kind.GONE, 1, 1))]


@pytest.mark.parametrize(("on_loss", "kind"), [("replace", Kind.ADMIT), ("shrink", Kind.GONE)])
def test_new_servers_are_told_what_the_old_ones_were(on_loss: str, kind: Kind) -> None:
    """Servers of another life are told who is lost by now, and that the run is to stop."""
    supervision, processes = started(on_loss)
    supervision.heed(ended(W1))
    supervision.stop()
    processes.done.clear()
    supervision.heed(ended(LEAD))
    killed, *then = processes.done
    assert killed[1] == {LEAD, Role("server", 1), Role("evaluator")}
    assert then == [
        ("start_servers", 1),
        ("tell", Instruction(kind, 1, processes.sessions[1])),
        ("tell", Instruction(Kind.STOP)),
    ]


def failed(role: Role, error: Exception) -> Events:
    """Return the end of a process by an exception."""
    return ended(role, End(1, Failure.of(error)))


def test_a_server_that_cannot_follow_is_started_again() -> None:
    """A server that has lost the others asks to begin again; any other failure ends the run."""
    supervision, processes = started()
    supervision.heed(failed(LEAD, WorkerLost("a push has come to the lead alone")))
    assert ("start_servers", 1) in processes.done
    with pytest.raises(DistsgdError, match="server 0 failed: KeyError: 3"):
        supervision.heed(failed(LEAD, KeyError(3)))
    with pytest.raises(ConfigError, match=r"^the port is in use"):
        supervision.heed(failed(LEAD, ConfigError("the port is in use")))


@pytest.mark.parametrize("kind", [ConfigError, WireError, WorkerLost])
def test_a_failure_keeps_its_kind(kind: type[DistsgdError]) -> None:
    """What a process raises on purpose is raised here as the same error, with its traceback."""
    supervision, _ = started()
    with pytest.raises(kind, match="no version is -1") as caught:
        supervision.heed(failed(W1, kind("no version is -1")))
    assert f"In worker 1:\ndistsgd.errors.{kind.__name__}" in caught.value.__notes__[0]


def test_a_process_that_ends_at_the_end_is_not_missed() -> None:
    """Workers that leave, or are killed when the run is ending, are not replaced."""
    supervision, processes = started()
    supervision.heed(ended(W1, End(0)))
    supervision.heed(told(phase="ending"))
    supervision.heed(ended(W1))
    assert processes.done == [("wake",)]


@pytest.mark.parametrize("role", [W1, LEAD], ids=str)
def test_losses_are_limited(role: Role) -> None:
    """After some replacements the run ends with an error that says what to do."""
    supervision, _ = started()
    for _ in range(MOST_LOSSES):
        supervision.heed(ended(role))
        supervision.heed(told(Instruction(Kind.ADMIT, 1)))
    with pytest.raises(WorkerLost, match=f"was lost {MOST_LOSSES + 1} times.*SIGKILL; see whether"):
        supervision.heed(ended(role))


def test_failed_checkpoints_are_counted_over_restarts() -> None:
    """What could not be written by the servers of a life stays counted in the next one."""
    supervision, _ = started()
    supervision.heed(told(unsaved=2, saved=7))
    assert (supervision.progress().unsaved, supervision.progress().saved) == (2, 7)
    supervision.heed(ended(LEAD))
    supervision.heed(told(unsaved=1))
    assert supervision.progress().unsaved == 3
    assert supervision.outcome().counts["failed_checkpoints"] == 3
