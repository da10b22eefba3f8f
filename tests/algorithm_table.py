"""One algorithm of each kind, as folds are tested with."""

from distsgd import algorithms

TABLE = {
    "serial": algorithms.serial(0.2),
    "synchronous": algorithms.synchronous(0.2),
    "synchronous, backup": algorithms.synchronous(0.2, backup=2),
    "hogwild": algorithms.hogwild(0.2)._replace(schedule=lambda epoch: 1 / (1 + 5 * epoch)),
    "downpour": algorithms.downpour(0.2),
    "downpour, periods": algorithms.downpour(0.1, n_fetch=3, n_push=2, warm_start=10),
    "downpour, adagrad": algorithms.downpour(0.05, server="adagrad"),
    "adaptive_revision": algorithms.adaptive_revision(0.2),
    "elastic_averaging": algorithms.elastic_averaging(0.1, period=3),
    "elastic_averaging, momentum": algorithms.elastic_averaging(0.05, 0.2, 2, momentum=0.9),
    "stale_synchronous": algorithms.stale_synchronous(0.1, 1),
}
