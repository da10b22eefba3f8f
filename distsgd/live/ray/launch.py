"""Live runs on a Ray cluster, seen from the program that wants them.

1. Ray places the processes, says when one of them ends, and starts another. They are the loops of
   a run on one machine, and the numbers travel over ZeroMQ.
2. All is encrypted with CURVE, under keys of this run alone, which go to the actors as Ray's other
   messages do. Where all nodes are one machine, shards listen on loopback and nothing is encrypted.
3. The bits of a replay are those of the run if all nodes have the driver's packages, which is
   checked, and processors for which its linear algebra computes alike, which is not.
"""

import math
import secrets
import time
from contextlib import closing

from distsgd.algorithm import Push, verb
from distsgd.fold.request import Hooks
from distsgd.live.local.launch import run_of
from distsgd.live.local.roles import stream_of
from distsgd.live.local.supervision import LiveOutcome, Supervision
from distsgd.live.machine.forking import ASK_S
from distsgd.live.options import LiveRequest
from distsgd.live.ray.nodes import kept, reserved
from distsgd.live.ray.processes import Actors
from distsgd.live.ray.session import connected
from distsgd.run import Run


def launch_ray(request: LiveRequest, hooks: Hooks) -> Run:
    """Run a message-passing algorithm with the processes of a Ray cluster.

    The fleet's address is the cluster's; the run's trace is the order that reality has chosen. A
    cluster that cannot be joined or has no room, or a node that cannot take part, is a
    `ConfigError`; a worker or a server that has failed is a `DistsgdError`, one that is lost again
    and again or finds no room again a `WorkerLost`.
    """
    verb(request.algorithm.cycle, Push).quorum_of(request.fleet.workers)
    stream_of(request)
    run = f"distsgd-{secrets.token_hex(3)}"
    n_cpus = math.ceil(request.fleet.ray.total(request.fleet.shards, request.fleet.workers).get("CPU", 1.0))
    with (
        connected(request.fleet.address, processes=n_cpus) as session,
        reserved(session, request, run) as group,
        kept(session, request, run) as folder,
    ):
        with closing(Actors(session, group, request, folder, run)) as actors:
            outcome = _watched(Supervision(request, actors), actors, hooks)
        return run_of(request, outcome, folder)


def _watched(supervision: Supervision, actors: Actors, hooks: Hooks) -> LiveOutcome:
    """Supervise the run until it is over."""
    supervision.start()
    due_at = 0.0
    while not supervision.is_over:
        supervision.heed(actors.wait())
        if time.monotonic() >= due_at:
            due_at = time.monotonic() + ASK_S
            if hooks.stop():
                supervision.stop()
            if hooks.watch is not None:
                hooks.watch(supervision.progress())
    return supervision.outcome()
