"""From a cycle of verbs and a fleet to the order of service: no gradient is needed for it.

1. The kernel checks nothing. What could lead it to a wrong index is refused here before; what it
   meets on its way (no worker can go on, a bad duration) is a status, of which an error is made.
2. Virtual time goes on and stays finite; otherwise there would be no end, or no order.
3. `StaleReads` has no machines: update u applies a gradient that was read its lag of versions ago.
"""

from math import inf

import numpy as np

from distsgd.algorithm import Cycle, Pull, Push, Start, Step, check_cycle, verb
from distsgd.errors import ConfigError, check_number, check_room, check_seed, wrong_kind
from distsgd.kernels.draws.random import READS
from distsgd.kernels.order import machines as kernel
from distsgd.kernels.order.heap import ENTRY
from distsgd.kernels.order.machines import Constants, FleetState
from distsgd.kernels.order.reads import fill_reads
from distsgd.kernels.order.schedule import run
from distsgd.order.budget import Budget, Limits
from distsgd.order.fleet import Fleet, StaleReads
from distsgd.order.laws import table
from distsgd.rules.cycle import SyncProtocol
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

    Exactly one of `updates`, `gradients` and `seconds` is given: it ends with this update of the
    server; with the push that brings the gradient steps served to this number; or before the first
    message that would be served later than this [s]. Step k of worker w takes the same time in
    every schedule of a fleet and a seed, whatever the cycle. A pull's reply and a push have their
    sizes in bytes.

    It is a `ConfigError` if the budget is not one, a size is negative, the cycle does not suit the
    fleet, a duration cannot be computed, or no worker can ever go on.
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
    if seconds is not None and any(law.is_zero for law in fleet.laws):  # rule 2
        raise ConfigError("seconds needs compute times > 0: with constant(0) time may stand still")
    const = _constants(cycle, fleet, limits, pull_bytes, push_bytes)
    check_room("the messages of the budget", _least_rows(const, fleet), ROW.itemsize)
    return _serve(const, fleet, seed)


def _least_rows(const: Constants, fleet: Fleet) -> float:
    """Return about how many rows the trace has at least, were every worker as slow as any."""
    if const.seconds == inf:
        return min(float(const.updates) * const.sync.quorum, const.gradients / const.sync.push_every)
    slowest_s = max(law.mean for law in fleet.laws) / min(fleet.speeds or [1.0])
    messages_s = fleet.workers * (const.service_s + const.push_s + const.pull_s)
    repairs_s = const.repair_s * slowest_s / const.mean_time_s
    cycle_s = const.sync.push_every * (slowest_s + repairs_s) + 4 * const.latency_s + 2 * messages_s
    return fleet.workers * const.seconds / max(cycle_s, _LEAST_S)


def _constants(cycle: Cycle, fleet: Fleet, limits: Limits, pull_bytes: float, push_bytes: float) -> Constants:
    """Return what the kernel goes by."""
    sync = SyncProtocol.of(cycle, fleet.workers)
    bandwidth = fleet.shards * fleet.bandwidth
    failures = fleet.failures
    return Constants(
        sync=sync,
        latency_s=float(fleet.latency),
        push_s=push_bytes / bandwidth,
        pull_s=pull_bytes / bandwidth,
        service_s=float(fleet.service),
        updates=int(min(limits.updates, UNLIMITED)),
        gradients=int(min(limits.gradients, UNLIMITED)),
        seconds=float(limits.seconds),
        mean_time_s=float(failures.mean_time) if failures else inf,
        repair_s=float(failures.repair) if failures else 0.0,
        rows_per_event=2 + (fleet.workers if sync.has_bound or sync.quorum > 1 else 0),
    )


def _serve(const: Constants, fleet: Fleet, seed: int) -> Trace:
    """Run the event heap, and turn its status into a trace or an error."""
    state = _state(const, fleet, seed)
    try:
        rows = run(const, state, np.empty(_capacity(const, fleet), kernel.ROWS))
    except MemoryError:  # the array of rows is doubled where it is too small
        raise ConfigError("the messages of the budget find no room in memory; give a smaller budget") from None
    status = state.server.status  # rule 1
    if status == kernel.ENOUGH:
        # rule 2: times never fall, so that the last row tells of all
        if len(rows) and not (rows["time"][-1] < inf and rows["done"].max() < inf):
            msg = "compute, latency, service and bandwidth must leave the virtual time finite; it became"
            raise ConfigError(f"{msg} infinite at row {int((rows['done'] == inf).argmax())}")
        return Trace(rows.view(ROW), int(fleet.workers))
    if status == kernel.STUCK:
        raise ConfigError(_stuck(const, fleet, state.server.version))
    worker = int(np.isnan(state.workers["time"]).argmax())
    law = fleet.laws[min(worker, len(fleet.laws) - 1)]
    if status == kernel.BAD_DURATION:
        msg = f"compute must give durations > 0 s and finite, but {law} gave worker {worker} another"
        raise ConfigError(f"{msg}; choose a narrower law, or constant(0) on purpose")
    msg = f"failures.mean_time must be longer, not {const.mean_time_s} s: with {law} worker {worker}"
    raise ConfigError(f"{msg} failed {kernel.MOST_FAILURES} times in one step")


def _stuck(const: Constants, fleet: Fleet, version: int) -> str:
    started = fleet.workers if version >= const.sync.others_after else 1
    bound = f", Pull.bound {const.sync.bound:.0f}" if const.sync.has_bound else ""
    return (
        f"no worker can go on after update {version}: {started} of {fleet.workers} have started, "
        f"and each waits for another one (quorum {const.sync.quorum}{bound}, Start.others_after "
        f"{const.sync.others_after:g}); lower the quorum or Start.others_after"
    )


def _capacity(const: Constants, fleet: Fleet) -> int:
    """Return how many rows are likely; the kernel doubles them when they are not enough."""
    rounds = min(const.updates, 1_000_000) * const.sync.quorum
    return int(2 * const.rows_per_event + fleet.workers + 2 * min(rounds, 10_000_000))


def _state(const: Constants, fleet: Fleet, seed: int) -> FleetState:
    """Return the fleet as it is at time 0."""
    n = int(fleet.workers)
    laws, samples = table(fleet.laws)
    workers = np.zeros(n, kernel.WORKER)
    workers["speed"] = 1.0 if fleet.speeds is None else fleet.speeds
    workers["law"] = np.arange(n) if len(laws) > 1 else 0
    server = np.zeros(1, kernel.SERVER)
    server["n_slowest"] = n
    state = FleetState(
        workers=workers,
        held=np.zeros(n, kernel.HELD),
        members=np.zeros(const.sync.quorum, np.int64),
        failures=np.zeros(n, kernel.FAILURES),
        server=server[0],
        laws=laws,
        samples=samples,
        heap=np.zeros(n, ENTRY),
    )
    kernel.fill_keys(state, seed, const.mean_time_s)
    return state


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
    alone = float(verb(cycle, Start).others_after)
    # rule 3; while the first worker is alone its gradients are fresh, later ones are read behind
    lags = np.floor(order.law.sample(order.seed, READS, 0, n))
    update = np.arange(n)
    read = np.where(update < alone, update, np.maximum(min(alone, n), update - lags))
    rows = np.empty(2 * n, kernel.ROWS)
    workers = fill_reads(read.astype(np.int64), rows)
    return Trace(rows.view(ROW), max(1, workers))
