"""Live runs on one machine, seen from the program that wants them.

1. All processes of the run are in a nursery; this one asks how it goes, and says when to stop.
2. The run is made of the servers' last checkpoint, however it has ended, and of what the evaluator
   has found. Its order is verified before it is returned.
"""

from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from distsgd.algorithm import Push, verb
from distsgd.errors import WorkerLost
from distsgd.fold.history import Point, history
from distsgd.fold.request import Hooks
from distsgd.live.local.forked import Job, supervise
from distsgd.live.local.roles import layout_of, stream_of
from distsgd.live.local.supervision import Outcome
from distsgd.live.machine.folder import run_folder
from distsgd.live.machine.forking import check_memory, nursery, receive
from distsgd.live.options import LiveRequest
from distsgd.live.server.checkpoint import load, load_model
from distsgd.run import Run
from distsgd.trace import Trace

ASK_S = 0.2
"""Time between two questions to the supervisor."""


def launch_local(case: LiveRequest, hooks: Hooks) -> Run:
    """Run a message-passing algorithm with a parameter server and worker processes.

    Parameters
    ----------
    case : LiveRequest
        What to run.
    hooks : Hooks
        What to ask and tell meanwhile.

    Returns
    -------
    Run
        Its trace is the order that reality has chosen.

    Raises
    ------
    ConfigError
        If there is too little memory, or arguments do not fit together.
    DistsgdError
        If a worker or a server has failed.
    WorkerLost
        If workers or servers are lost again and again.
    """
    verb(case.algorithm.cycle, Push).quorum_of(case.fleet.workers)
    stream_of(case)
    if case.fleet.address is None:
        what = f"a run of {case.fleet.workers} workers on {case.problem.dimension} parameters"
        check_memory(layout_of(case).shared_bytes, what, "use fewer workers")
    with run_folder() as folder:
        with nursery(supervise, Job(case, folder)) as pipe:
            outcome = _watched(pipe, hooks)
        return run_of(case, outcome, folder)


def _watched(pipe: Connection, hooks: Hooks) -> Outcome:
    """Ask how the run goes until it is over."""
    while True:
        pipe.send(bool(hooks.stop()))
        answer = receive(pipe)
        if isinstance(answer, Outcome):
            return answer
        if hooks.watch is not None:
            hooks.watch(answer)
        if pipe.poll(ASK_S):  # nothing else comes unasked
            outcome: Outcome = receive(pipe)
            return outcome


def run_of(case: LiveRequest, outcome: Outcome, folder: Path) -> Run:
    """Return the run of the servers' last checkpoint.

    Where an evaluation has ended the run, it is cut there: target and divergence act at evaluations
    only, in every engine.

    Parameters
    ----------
    case : LiveRequest
        What was run.
    outcome : Outcome
        What else is known of it.
    folder : Path
        Where the checkpoints are.

    Returns
    -------
    Run
        With a trace that has been verified.

    Raises
    ------
    WorkerLost
        If there is no checkpoint.
    """
    checkpoint = load(folder)
    if checkpoint is None:
        msg = "the servers have ended without a checkpoint; see whether the disk is full"
        raise WorkerLost(msg)
    found = {one.update: one for one in outcome.judged}
    versions = {version for version, *_ in checkpoint.description.evaluations}
    judged = [found[version] for version in sorted(versions)]
    ends = [number for number, one in enumerate(judged, start=1) if one.last is not None]
    judged = judged[: min(ends, default=len(judged))]
    x, trace = load_model(folder, checkpoint), Trace(checkpoint.rows, case.fleet.workers)
    last = judged[-1]
    if last.last is not None:
        x, trace = np.frombuffer(last.last).copy(), trace.head(last.update)
    trace.verify()
    status, known = checkpoint.description.status, case.settings
    points = [Point(one.update, *one.evaluation) for one in judged]
    return Run(
        x=x,
        history=history(case.algorithm, case.problem, trace, points, known),
        trace=trace,
        status=status,
        diverged_at=last.update if status == "diverged" else None,
        settings=known,
        counts=outcome.counts,
    )
