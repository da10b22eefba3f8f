"""Live runs on one machine, seen from the program that wants them.

1. The launcher (`distsgd.live.machine.forking`) forks all processes of the run and supervises it;
   this one asks how it goes, and says when to stop.
2. The run is made of the servers' last checkpoint, however it has ended, and of what the evaluator
   has found. Its order is verified before it is returned.
"""

from pathlib import Path

import numpy as np

from distsgd.algorithm import Push, verb
from distsgd.errors import WorkerLost
from distsgd.fold.history import Point, history
from distsgd.fold.request import Hooks
from distsgd.live.local.processes import LocalJob, supervise
from distsgd.live.local.roles import layout_of, stream_of
from distsgd.live.local.supervision import LiveOutcome
from distsgd.live.machine.folder import run_folder
from distsgd.live.machine.forking import check_memory, follow, launcher
from distsgd.live.options import LiveRequest
from distsgd.live.server.checkpoint import load, load_model
from distsgd.run import Run
from distsgd.trace import Trace


def launch_local(request: LiveRequest, hooks: Hooks) -> Run:
    """Run a message-passing algorithm with a parameter server and worker processes.

    The run's trace is the order that reality has chosen. Too little memory, or arguments that do
    not fit together, are a `ConfigError`; a worker or a server that has failed is a `DistsgdError`,
    one that is lost again and again a `WorkerLost`.
    """
    verb(request.algorithm.cycle, Push).quorum_of(request.fleet.workers)
    stream_of(request)
    if request.fleet.address is None:
        what = f"a run of {request.fleet.workers} workers on {request.problem.dimension} parameters"
        check_memory(layout_of(request).shared_bytes, what, "use fewer workers")
    with run_folder() as folder:
        with launcher(supervise, LocalJob(request, request.problem.start(request.seed), folder)) as pipe:
            outcome: LiveOutcome = follow(pipe, hooks.stop, hooks.watch)
        return run_of(request, outcome, folder)


def run_of(request: LiveRequest, outcome: LiveOutcome, folder: Path) -> Run:
    """Return the run of the servers' last checkpoint.

    Where an evaluation has ended the run, it is cut there: target and divergence act at evaluations
    only, in every engine. No checkpoint is a `WorkerLost`.
    """
    checkpoint = load(folder)
    if checkpoint is None:
        raise WorkerLost("the servers have ended without a checkpoint; see whether the disk is full")
    found = {one.update: one for one in outcome.judged}
    versions = {version for version, *_ in checkpoint.description.evaluations}
    judged = [found[version] for version in sorted(versions)]
    ends = [number for number, one in enumerate(judged, start=1) if one.last is not None]
    judged = judged[: min(ends, default=len(judged))]
    x, trace = load_model(folder, checkpoint), Trace(checkpoint.rows, request.fleet.workers)
    last = judged[-1]
    if last.last is not None:
        x, trace = np.frombuffer(last.last, x.dtype).copy(), trace.head(last.update)
    trace.verify()
    status, known = checkpoint.description.status, request.settings
    points = [Point(one.update, *one.evaluation, one.norms) for one in judged]
    return Run(
        x=x,
        history=history(request.algorithm, request.problem, trace, points, known),
        trace=trace,
        status=status,
        diverged_at=last.update if status == "diverged" else None,
        settings=known,
        counts=outcome.counts,
    )
