"""The evaluator: a process that judges consistent snapshots of the model, while others train.

1. It asks the servers for the model at the next point of the history and waits. They answer between
   two updates, so that a snapshot is one version, also of several shards.
2. A point that passes while another one is evaluated is skipped, and counted. Training never waits.
3. The last model is always judged: the servers end when it has been.
"""

import contextlib
import math
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

import msgspec
import zmq

from distsgd.fold.request import EVALUATIONS
from distsgd.live.messages.columns import Vectors
from distsgd.live.messages.link import Ended, Link, Peer
from distsgd.live.messages.wire import LOSSES, Kind, State
from distsgd.live.options import LiveRequest
from distsgd.problem import Evaluation, Vector
from distsgd.status import status_after


class Judged(NamedTuple):
    """A snapshot, and what has been found."""

    update: int
    evaluation: Evaluation
    cost_s: float
    """What it took, the wait for the snapshot excluded."""
    n_skipped: int
    """Points that have passed since the snapshot before."""
    last: bytes | None
    """The model, if the run ends with it: its target is met, or it has diverged."""
    norms: Sequence[float] = ()
    """Of each layer's gradient, if they are asked for."""


class Points:
    """When to evaluate: every so many updates, gradients or seconds."""

    def __init__(self, request: LiveRequest) -> None:
        unit, amount = request.budget
        self.unit: str = unit
        if request.config.evaluate_every is not None:
            self.unit, self._every = "updates", float(request.config.evaluate_every)
        else:
            self._every = amount / (request.config.evaluations or EVALUATIONS)
        self._number = 1

    @property
    def next(self) -> float:
        """The next point, in its unit; one that is a whole number of them."""
        point = self._number * self._every
        return point if self.unit == "seconds" else math.ceil(point)

    def pass_by(self, reached: float) -> int:
        """Leave out all points up to what has been reached, and return how many they are."""
        number = self._number
        while self.next <= reached:
            self._number += 1
        return self._number - number


def evaluate(request: LiveRequest, vectors: Vectors, peer: Peer, pipe: Connection, *, is_again: bool = False) -> None:
    """Judge models until the run is over; `is_again` says that it goes on from a checkpoint.

    The pipe takes a `Judged` for each model. Anything that comes back interrupts a rest.
    """
    with contextlib.suppress(Ended), zmq.Context() as context, contextlib.closing(Link(peer, context)) as link:
        _Evaluator(request, vectors, link, peer, pipe).run(is_again=is_again)


class _Evaluator:
    """The loop of the evaluator."""

    def __init__(self, request: LiveRequest, vectors: Vectors, link: Link, peer: Peer, pipe: Connection) -> None:
        self._request, self._vectors, self._link = request, vectors, link
        self._peer, self._pipe, self._points = peer, pipe, Points(request)
        self._n_skipped, self._version, self._losses = 0, -1, b""

    def run(self, *, is_again: bool) -> None:
        """Judge the first model, and then one at each point, until the run is over."""
        if is_again:
            version, x = self._shown()
            self._n_skipped = 0  # the points up to here have had their evaluator
            state = self._judge(version, x)
        else:
            state = self._judge(0, self._request.problem.start(self._request.seed))
        while state.phase != "over":
            self._n_skipped += self._points.pass_by(self._reached(state.updates, state.gradients))
            state = self._judge(*self._snapshot())

    def _reached(self, updates: int, gradients: int) -> float:
        """Return how far the run is, in the points' unit."""
        now = self._peer.now()
        return {"updates": updates, "gradients": gradients, "seconds": now}[self._points.unit]

    def _snapshot(self) -> tuple[int, Vector]:
        """Wait for the next point, and return the version there and its model."""
        point, unit = self._points.next, self._points.unit
        if unit == "seconds":
            self._pipe.poll(max(0.0, point - self._peer.now()))
            return self._shown()
        return self._shown(version=int(point)) if unit == "updates" else self._shown(step=int(point))

    def _shown(self, *, version: int = 0, step: int = 0) -> tuple[int, Vector]:
        replies = self._link.wait(self._link.ask(Kind.SNAPSHOT, version=version, step=step))
        header = replies[0].header
        n_passed = self._points.pass_by(self._reached(header.version, header.step))
        self._n_skipped += max(0, n_passed - 1)  # one of them is this one
        (x,) = self._vectors.fetch(None, [reply.frames for reply in replies])
        return header.version, x

    def _judge(self, version: int, x: Vector) -> State:
        """Evaluate a model, tell launcher and servers, and return how the run is going."""
        if version != self._version:  # before the first update several points may show the same
            self._version = version
            self._losses = self._evaluate(version, x)
        frames = [(self._losses,)] * len(self._peer.doors)
        replies = self._link.wait(self._link.ask(Kind.EVALUATED, version=version, frames=frames))
        state: State = msgspec.json.decode(replies[0].frames[0], type=State)
        return state

    def _evaluate(self, version: int, x: Vector) -> bytes:
        """Evaluate a model, tell the launcher, and return what to tell the servers."""
        start = time.perf_counter()
        evaluation = self._request.problem.evaluate(x)
        status = status_after(x, evaluation.loss, self._request.config.target)
        norms = self._request.norms(x)
        cost_s = time.perf_counter() - start
        last = None if status == "done" else x.tobytes()
        self._pipe.send(Judged(version, evaluation, cost_s, self._n_skipped, last, norms))
        self._n_skipped = 0
        loss = math.nan if status == "diverged" else evaluation.loss
        return LOSSES.pack(loss, *evaluation[1:])
