"""Models in JAX: 64 workers against the loop that one would write, one thread, the same batches."""

import importlib.util
import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from bench_fold import RATE, interleaved
from table import Line

import distsgd as ds
from distsgd.data.stream import Stream
from distsgd.problems.from_jax import JaxProblem

WORKERS, UPDATES = 64, 6_400
DATA = ds.data.digits()
REACH = {False: "1.0", True: "1.2"}
"""By whether gradients are vmapped."""


def rows(*, quick: bool = False) -> list[Line]:
    """Return the rows of the table of `scripts/bench`; `quick` runs are too short to quote."""
    if importlib.util.find_spec("jax") is None:
        return [Line("simulate, JAX", "not measured", "needs distsgd[jax]", "", "")]
    # a process of its own: how many threads JAX has is settled when it is imported
    with multiprocessing.get_context("spawn").Pool(1, on_one_core) as pool:
        return pool.apply(lines, (UPDATES // 10 if quick else UPDATES,))


def on_one_core() -> None:
    """Have this process use one core, and JAX one thread."""
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def lines(n_updates: int) -> list[Line]:
    """Return a line for gradients one at a time, and one for gradients by vmap."""
    problems = {vmap: perceptron(vmap=vmap) for vmap in REACH}
    *ours, peer = interleaved(
        *(lambda problem=problem: simulated(problem, n_updates) for problem in problems.values()), plain(n_updates)
    )
    return [
        Line(
            f"simulate, JAX, {problems[vmap].dimension:,} parameters, {WORKERS} workers{', vmap' if vmap else ''}",
            f"{n_updates / seconds:,.0f} updates/s",
            f"{n_updates / peer:,.0f} of a jitted loop",
            f"{peer / seconds:.2f} times as fast",
            f"{reach} times",
        )
        for (vmap, reach), seconds in zip(REACH.items(), ours, strict=True)
    ]


def simulated(problem: JaxProblem, n_updates: int) -> ds.Run:
    """Run 64 asynchronous workers, as a long run does: compiled."""
    fleet, rule = ds.Fleet(WORKERS, ds.exponential(1.0)), ds.algorithms.downpour(RATE)
    return ds.simulate(rule, problem, fleet, updates=n_updates, evaluations=2, driver="compiled")


def plain(n_updates: int) -> Callable[[], object]:
    """Return serial SGD as one would write it in JAX: one compiled step after the other."""
    import jax  # noqa: PLC0415 # after its threads are settled

    x, y = jax.numpy.asarray(DATA.x, "float32"), jax.numpy.asarray(DATA.y)
    numbers = np.arange(n_updates)
    batches = Stream(DATA.samples, 32).batches(numbers % WORKERS, numbers // WORKERS)

    @jax.jit
    def step(parameters: Any, batch: Any) -> Any:  # noqa: ANN401 # a tree of JAX
        gradient = jax.grad(loss)(parameters, x[batch], y[batch])
        return jax.tree.map(lambda p, g: p - RATE * g, parameters, gradient)

    def loop() -> object:
        parameters = start()
        for batch in batches:
            parameters = step(parameters, batch)
        return jax.block_until_ready(parameters)

    return loop


def perceptron(*, vmap: bool) -> JaxProblem:
    """Return the model of 4,810 parameters as a problem."""
    return ds.problems.from_jax(loss, start(), DATA, vmap=vmap)


def start() -> dict[str, np.ndarray]:
    """Return 64 hidden units and 10 outputs."""
    shapes, rng = {"w": (64, 64), "b": (64,), "v": (64, 10), "c": (10,)}, np.random.default_rng(0)
    return {name: 0.1 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def loss(parameters: Any, x: Any, y: Any) -> Any:  # noqa: ANN401 # arrays of JAX
    """Return the mean cross-entropy."""
    import jax  # noqa: PLC0415 # as above

    hidden = jax.nn.relu(x @ parameters["w"] + parameters["b"])
    logs = jax.nn.log_softmax(hidden @ parameters["v"] + parameters["c"])
    return -jax.numpy.take_along_axis(logs, y[:, None], axis=1).mean()
