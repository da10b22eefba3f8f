"""From a cycle of verbs and a fleet to the order of service: no gradient is needed for it."""

from math import inf

import numpy as np

from distsgd.algorithm import Cycle, Pull, Push, Start, Step, before_step, check_cycle, verb
from distsgd.errors import ConfigError, check_number, check_room, check_seed, wrong_kind
from distsgd.kernels.draws.random import READS
from distsgd.kernels.order import machines as kernel
from distsgd.kernels.order.heap import ENTRY
from distsgd.kernels.order.machines import Machines, Plan
from distsgd.kernels.order.reads import fill_reads
from distsgd.kernels.order.schedule import run
from distsgd.order.budget import Budget, Limits
from distsgd.order.fleet import Fleet, StaleReads
from distsgd.order.laws import table
from distsgd.trace import ROW, Trace

_LEAST_S = 1e-300
"""No cycle is shorter [s], so that their number is one."""
UNLIMITED = int(np.iinfo(np.int64).max)


def schedule(
    cycle: Cycle,
    fleet: Fleet | StaleReads,
    *,
    seed: int = 0,
    updates: int | None = None,
    gradients: int | None = None,
    seconds: float | None = None,
    pull_bytes: float = 0.0,
    push_bytes: float = 0.0,
) -> Trace:
    """Return the order in which the server of `fleet` serves workers that repeat `cycle`.

    Exactly one of `updates`, `gradients` and `seconds` is given.

    Parameters
    ----------
    cycle : tuple of verbs
        What each worker repeats, see `distsgd.algorithm`.
    fleet : Fleet or StaleReads
        The machines; or an order that is given without them.
    seed : int, default 0
        Of the machines' times, >= 0. Step k of worker w takes the same time in every schedule of a
        fleet and a seed, whatever the cycle.
    updates : int, optional
        End with this update of the server.
    gradients : int, optional
        End with the push that brings the gradient steps served to this number.
    seconds : float, optional
        End before the first message that would be served later than this [s].
    pull_bytes, push_bytes : float, default 0.0
        Size of a pull's reply and of a push [bytes].

    Returns
    -------
    Trace
        It ends with a push, unless time ended it.

    Raises
    ------
    ConfigError
        If the budget is not one, a size is negative, the cycle does not suit the fleet, a duration
        cannot be computed, or no worker can ever go on.
    """
    check_cycle(cycle)
    check_seed(seed)
    limits = Budget.of({"updates": updates, "gradients": gradients, "seconds": seconds}).limits
    if isinstance(fleet, StaleReads):
        return _read_stale(cycle, fleet, limits)
    if not isinstance(fleet, Fleet):
        raise wrong_kind("fleet", "distsgd.Fleet(workers=8)", fleet)
    pull_bytes = check_number("pull_bytes", pull_bytes, at_least=0, unit=" bytes")
    push_bytes = check_number("push_bytes", push_bytes, at_least=0, unit=" bytes")
    if seconds is not None and any(law.is_zero for law in fleet.laws):
        msg = "seconds needs compute times > 0: with constant(0) time may stand still"
        raise ConfigError(msg)
    plan = _plan(cycle, fleet, limits, pull_bytes, push_bytes)
    check_room("the messages of the budget", _least_rows(plan, fleet), ROW.itemsize)
    return _serve(plan, fleet, seed)


def _least_rows(plan: Plan, fleet: Fleet) -> float:
    """Return about how many rows the trace has at least, were every worker as slow as any."""
    if plan.seconds == inf:
        return min(float(plan.updates) * plan.quorum, plan.gradients / plan.push_every)
    slowest_s = max(law.mean for law in fleet.laws) / min(fleet.speeds or [1.0])
    messages_s = fleet.workers * (plan.service_s + plan.push_s + plan.pull_s)
    repairs_s = plan.repair_s * slowest_s / plan.mean_time_s
    cycle_s = plan.push_every * (slowest_s + repairs_s) + 4 * plan.latency_s + 2 * messages_s
    return fleet.workers * plan.seconds / max(cycle_s, _LEAST_S)


def _plan(cycle: Cycle, fleet: Fleet, limits: Limits, pull_bytes: float, push_bytes: float) -> Plan:
    """Return the numbers that the kernel needs, which stay as they are."""
    pull, push, start = verb(cycle, Pull), verb(cycle, Push), verb(cycle, Start)
    quorum = push.quorum_of(fleet.workers)
    has_bound = pull.bound is not None
    bandwidth = fleet.shards * fleet.bandwidth
    failures = fleet.failures
    return Plan(
        pull_every=int(pull.every),
        push_every=int(push.every),
        pulls_at_0=before_step(cycle, Pull),
        pushes_at_0=before_step(cycle, Push),
        pushes_first=_pushes_first(cycle),
        quorum=quorum,
        drops_late=push.quorum is None and push.backup > 0,
        has_bound=has_bound,
        bound=pull.bound if has_bound else 0,
        others_after=_others_after(start),
        latency_s=float(fleet.latency),
        push_s=push_bytes / bandwidth,
        pull_s=pull_bytes / bandwidth,
        service_s=float(fleet.service),
        updates=int(min(limits.updates, UNLIMITED)),
        gradients=int(min(limits.gradients, UNLIMITED)),
        seconds=float(limits.seconds),
        mean_time_s=float(failures.mean_time) if failures else inf,
        repair_s=float(failures.repair) if failures else 0.0,
        rows_per_event=2 + (fleet.workers if has_bound or quorum > 1 else 0),
    )


def _pushes_first(cycle: Cycle) -> bool:
    """Return whether, of a push and a pull due between the same two steps, the push comes first."""
    kinds = [type(one) for one in cycle]
    is_push_behind, is_pull_behind = not before_step(cycle, Push), not before_step(cycle, Pull)
    if is_push_behind != is_pull_behind:
        return is_push_behind
    return kinds.index(Push) < kinds.index(Pull)


def _others_after(start: Start) -> float:
    return check_number("Start.others_after", start.others_after, at_least=0, finite=False)


def _serve(plan: Plan, fleet: Fleet, seed: int) -> Trace:
    """Run the event heap, and turn its status into a trace or an error."""
    machines = _machines(plan, fleet, seed)
    rows = run(plan, machines, np.empty(_capacity(plan, fleet), kernel.ROWS))
    status = machines.server.status
    if status == kernel.ENOUGH:
        _check_times(rows)
        return Trace(rows.view(ROW), int(fleet.workers))
    if status == kernel.STUCK:
        raise ConfigError(_stuck(plan, fleet, machines.server.version))
    worker = int(np.isnan(machines.workers["time"]).argmax())
    law = fleet.laws[min(worker, len(fleet.laws) - 1)]
    if status == kernel.BAD_DURATION:
        msg = f"compute must give durations > 0 s and finite, but {law} gave worker {worker} another"
        raise ConfigError(f"{msg}; choose a narrower law, or constant(0) on purpose")
    msg = f"failures.mean_time must be longer, not {plan.mean_time_s} s: with {law} worker {worker}"
    raise ConfigError(f"{msg} failed {kernel.MOST_FAILURES} times in one step")


def _check_times(rows: np.ndarray) -> None:
    if len(rows) and not (rows["time"][-1] < inf and rows["done"].max() < inf):
        msg = "compute, latency, service and bandwidth must leave the virtual time finite; it became"
        raise ConfigError(f"{msg} infinite at row {int((rows['done'] == inf).argmax())}")


def _stuck(plan: Plan, fleet: Fleet, version: int) -> str:
    started = fleet.workers if version >= plan.others_after else 1
    bound = f", Pull.bound {plan.bound}" if plan.has_bound else ""
    return (
        f"no worker can go on after update {version}: {started} of {fleet.workers} have started, "
        f"and each waits for another one (quorum {plan.quorum}{bound}, Start.others_after "
        f"{plan.others_after:g}); lower the quorum or Start.others_after"
    )


def _capacity(plan: Plan, fleet: Fleet) -> int:
    """Return how many rows are likely; the kernel doubles them when they are not enough."""
    rounds = min(plan.updates, 1_000_000) * plan.quorum
    return int(2 * plan.rows_per_event + fleet.workers + 2 * min(rounds, 10_000_000))


def _machines(plan: Plan, fleet: Fleet, seed: int) -> Machines:
    """Return the machines as they stand at time 0."""
    n = int(fleet.workers)
    laws, samples = table(fleet.laws)
    workers = np.zeros(n, kernel.WORKER)
    workers["speed"] = 1.0 if fleet.speeds is None else fleet.speeds
    workers["law"] = np.arange(n) if len(laws) > 1 else 0
    server = np.zeros(1, kernel.SERVER)
    server["n_slowest"] = n
    machines = Machines(
        workers=workers,
        held=np.zeros(n, kernel.HELD),
        members=np.zeros(plan.quorum, np.int64),
        failures=np.zeros(n, kernel.FAILURES),
        server=server[0],
        laws=laws,
        samples=samples,
        heap=np.zeros(n, ENTRY),
    )
    kernel.fill_keys(machines, seed, plan.mean_time_s)
    return machines


def _read_stale(cycle: Cycle, order: StaleReads, limits: Limits) -> Trace:
    """Return the order in which each update applies a gradient read its lag of versions ago."""
    kinds = [type(one) for one in cycle if not isinstance(one, Start)]
    pull, push = verb(cycle, Pull), verb(cycle, Push)
    plain = kinds == [Pull, Step, Push] and pull == Pull() and push == Push()
    if not plain:
        msg = "stale_reads needs the cycle (Pull(), Step(), Push()), without periods, bound or quorum"
        raise ConfigError(f"{msg}; use fixed_staleness(tau), or a Fleet")
    n = int(min(limits))
    check_room("the updates of the budget", n, 3 * ROW.itemsize)
    alone = _others_after(verb(cycle, Start))
    lags = np.floor(order.law.sample(order.seed, READS, 0, n))
    update = np.arange(n)
    # While the first worker is alone its gradients are fresh; later ones were read after that.
    read = np.where(update < alone, update, np.maximum(min(alone, n), update - lags))
    rows = np.empty(2 * n, kernel.ROWS)
    workers = fill_reads(read.astype(np.int64), rows)
    return Trace(rows.view(ROW), max(1, workers))
