"""What `tf.distribute` trains, side by side with the same algorithm here: losses update by update.

Usage: python scripts/tf_distribute.py [--quick]

One Keras model, the same start, and in each step of each worker the same samples. A
MirroredStrategy on two virtual processors averages two gradients per update, as a synchronous
server does that waits for two workers. A ParameterServerStrategy applies gradients as they come:
one step at a time makes a serial run; two workers at once make an asynchronous one, in an order
that nobody keeps, so that only how far both get can be compared.
"""

import os
import socket
import sys
from contextlib import ExitStack
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf

import distsgd as ds
from distsgd.algorithm import Algorithm
from distsgd.data.stream import Stream
from distsgd.problem import Problem
from distsgd.report.terminal import console, print_table

WORKERS, BATCH, RATE, SEED = 2, 32, 0.2, 0
CLOSE = 1e-5
"""Losses are float32, and TensorFlow averages gradients in float32, where we do in float64."""
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Pair(NamedTuple):
    """A strategy and what it is here, with their losses after each update."""

    strategy: str
    algorithm: str
    there: list[float]
    here: list[float]
    is_same: bool
    """Whether both apply the same gradients in the same order."""

    @property
    def difference(self) -> float:
        """The largest one of two losses after the same update."""
        return float(np.abs(np.subtract(self.there, self.here)).max())


class Trained:
    """A model's weights as variables of a strategy, which each step changes."""

    def __init__(self, model: keras.Model, problem: Problem, strategy: tf.distribute.Strategy) -> None:
        self._model, self._problem = model, problem
        self._stream = Stream(problem.samples, BATCH, SEED)
        with strategy.scope():
            total = tf.VariableAggregation.SUM  # a loss of Keras divides by the number of replicas
            self._weights = [tf.Variable(one.numpy(), aggregation=total) for one in model.trainable_variables]
        self.step = tf.function(self._step)

    def _step(self, x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            outputs, _ = self._model.stateless_call(self._weights, [], x, training=True)
            loss = LOSS(y, outputs)
        for weight, slope in zip(self._weights, tape.gradient(loss, self._weights), strict=True):
            weight.assign_sub(RATE * slope)

    def samples(self, worker: int, step: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Return images and labels that a worker draws in a step."""
        batch, data = self._stream.batch(worker, step), self._problem.data
        return tf.constant(data.x[batch], tf.float32), tf.constant(data.y[batch])

    def loss(self) -> float:
        """Return the loss of all training samples."""
        return self._problem.loss(np.concatenate([one.numpy().ravel() for one in self._weights]))


def mirrored(model: keras.Model, problem: Problem, updates: int) -> list[float]:
    """Return the losses of a MirroredStrategy on two virtual processors."""
    strategy = tf.distribute.MirroredStrategy([f"CPU:{worker}" for worker in range(WORKERS)])
    trained, losses = Trained(model, problem, strategy), []
    spread = strategy.experimental_distribute_values_from_function
    for step in range(updates):
        xs, ys = zip(*(trained.samples(worker, step) for worker in range(WORKERS)), strict=True)
        strategy.run(
            trained.step, args=[spread(lambda one, of=of: of[one.replica_id_in_sync_group]) for of in (xs, ys)]
        )
        losses.append(trained.loss())
    return losses


def cluster() -> tf.distribute.ParameterServerStrategy:
    """Return a strategy over a parameter server and workers in this process."""
    with ExitStack() as stack:  # all are open until each has its own port
        sockets = [stack.enter_context(socket.socket()) for _ in range(WORKERS + 1)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        first, *others = (f"127.0.0.1:{one.getsockname()[1]}" for one in sockets)
    spec = tf.train.ClusterSpec({"ps": [first], "worker": others})
    config = tf.compat.v1.ConfigProto(inter_op_parallelism_threads=WORKERS + 2)  # with fewer all wait for each other
    for job, tasks in spec.as_dict().items():
        for task in range(len(tasks)):
            tf.distribute.Server(spec, job_name=job, task_index=task, config=config)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(spec, rpc_layer="grpc")
    return tf.distribute.ParameterServerStrategy(resolver)


def in_turn(model: keras.Model, problem: Problem, strategy: Any, updates: int) -> list[float]:  # noqa: ANN401 # it has no types
    """Return the losses of a parameter server that serves one step before the next begins."""
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    trained, losses = Trained(model, problem, strategy), []
    for step in range(updates):
        coordinator.schedule(trained.step, args=trained.samples(0, step))
        coordinator.join()
        losses.append(trained.loss())
    return losses


def at_once(model: keras.Model, problem: Problem, strategy: Any, updates: int) -> float:  # noqa: ANN401 # as above
    """Return the last loss of a parameter server whose workers take steps at once."""
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    trained = Trained(model, problem, strategy)
    for step in range(updates):
        coordinator.schedule(trained.step, args=trained.samples(step % WORKERS, step // WORKERS))
    coordinator.join()
    return trained.loss()


def here(problem: Problem, algorithm: Algorithm, workers: int, updates: int) -> list[float]:
    """Return the losses after each update of a simulated run."""
    fleet, settings = ds.Fleet(workers), {"batch": BATCH, "seed": SEED, "evaluate_every": 1}
    run = ds.simulate(algorithm, problem, fleet, updates=updates, **settings)
    return run.history["loss"][1:].to_list()


def pairs(updates: int) -> list[Pair]:
    """Train by all strategies."""
    processor = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * WORKERS)
    strategy = cluster()  # variables that are made before are lost to it
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(10)])
    problem = ds.problems.from_keras(model, ds.data.digits(), LOSS)
    synchronous = here(problem, ds.algorithms.synchronous(RATE), WORKERS, updates)
    serial = here(problem, ds.algorithms.serial(RATE), 1, updates)
    downpour = here(problem, ds.algorithms.downpour(RATE), WORKERS, updates)
    both = mirrored(model, problem, updates)
    alone, racing = in_turn(model, problem, strategy, updates), at_once(model, problem, strategy, updates)
    return [
        Pair("mirrored", "synchronous", both, synchronous, is_same=True),
        Pair("parameter server, in turn", "serial", alone, serial, is_same=True),
        Pair("parameter server, at once", "downpour", [racing], downpour[-1:], is_same=False),
    ]


def main(*, quick: bool) -> None:
    """Print a table of losses; that of the same algorithm must be equal, up to rounding."""
    updates = 8 if quick else 60
    found = pairs(updates)
    columns = ["update", *(f"{name}" for one in found[:2] for name in (one.strategy, one.algorithm))]
    shown = [n for n in range(updates) if n < 4 or n + 1 == updates]
    losses = [(f"{n + 1}", *(f"{one[n]:.7f}" for pair in found[:2] for one in (pair.there, pair.here))) for n in shown]
    print_table("training loss", columns, losses, console())
    lines = [
        (one.strategy, one.algorithm, f"{one.there[-1]:.7f}", f"{one.here[-1]:.7f}", f"{one.difference:.1e}")
        for one in found
    ]
    columns = ["tf.distribute", "here", "loss there", "loss here", "largest difference"]
    print_table(f"after {updates} updates, batch {BATCH}, {WORKERS} workers", columns, lines, console())
    wrong = [one.strategy for one in found if one.is_same and one.difference > CLOSE]
    if wrong:
        raise SystemExit(f"the same algorithm must have the same losses, up to {CLOSE:g}: {', '.join(wrong)}")


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
