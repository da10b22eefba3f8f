"""Layers: factors of their own on the learning rate, and norms of their gradients."""

import numpy as np
import pytest
from algorithm_table import TABLE

import distsgd as ds
from distsgd.algorithm import Algorithm
from distsgd.errors import ConfigError
from distsgd.fold.layers import gradient_norms, layer_factors
from distsgd.problem import Problem
from distsgd.run import Run

pytestmark = pytest.mark.long

NETWORK = ds.problems.network(ds.data.digits(), hidden=(5,))
ELASTIC = ["elastic_averaging", "elastic_averaging, momentum"]
FLEET = ds.Fleet(workers=4, compute=ds.exponential(1.0))


def run(algorithm: Algorithm, problem: Problem = NETWORK, **given: object) -> Run:
    """Return a short run."""
    return ds.simulate(algorithm, problem, FLEET, **{"updates": 12, "batch": 8, "seed": 3} | given)


def test_the_layers_of_a_network_are_its_weights_and_biases() -> None:
    """Layers stand one behind the other and fill the vector, with the shapes of their arrays."""
    assert [(layer.name, layer.shape) for layer in NETWORK.layers] == [
        ("W_0", (64, 5)),
        ("b_0", (5,)),
        ("W_1", (5, 10)),
        ("b_1", (10,)),
    ]
    assert [layer.place.start for layer in NETWORK.layers] == [0, 320, 325, 375]
    assert NETWORK.layers[-1].place.stop == NETWORK.dimension


@pytest.mark.parametrize("name", ["synchronous, backup", "downpour, periods", "adaptive_revision", *ELASTIC])
def test_layer_rates_have_the_same_bits_in_both_drivers(name: str) -> None:
    """A factor per coordinate is told to every rule by both drivers, and changes the run."""
    rates = {"W_1": 3.0, "b_0": 0.5}
    runs = [run(TABLE[name], layer_rates=rates, driver=driver) for driver in ("interpreted", "compiled")]
    assert runs[0].x.tobytes() == runs[1].x.tobytes()
    assert not np.array_equal(runs[0].x, run(TABLE[name]).x)


@pytest.mark.parametrize("name", ["serial", "synchronous", "downpour", "adaptive_revision"])
def test_a_factor_that_all_layers_have_is_one_of_the_learning_rate(name: str) -> None:
    """Twice the rate in every layer is twice the learning rate, to the bit: 2 is a power of two."""
    make = getattr(ds.algorithms, name)
    common = dict.fromkeys(("W_0", "b_0", "W_1", "b_1"), 2.0)
    assert run(make(0.25), layer_rates=common).x.tobytes() == run(make(0.5)).x.tobytes()


@pytest.mark.parametrize("name", ["synchronous", "downpour", "elastic_averaging"])
def test_a_layer_whose_rate_is_0_stays(name: str) -> None:
    """A layer with the factor 0 keeps its starting point, and no other layer does."""
    x, start = run(TABLE[name], layer_rates={"W_0": 0.0}).x, NETWORK.start(3)
    stays = [np.array_equal(x[layer.place], start[layer.place]) for layer in NETWORK.layers]
    assert stays == [True, False, False, False]


def test_sparse_problems_have_rates_too() -> None:
    """Loops over a support take the factor of the only layer as one of the schedule."""
    problem = ds.problems.logistic(ds.data.sparse(40, 20, 4))
    for reads in ("consistent", "interleaved"):
        doubled = run(ds.algorithms.hogwild(0.25), problem, layer_rates={"x": 2.0}, reads=reads)
        assert doubled.x.tobytes() == run(ds.algorithms.hogwild(0.5), problem, reads=reads).x.tobytes()


class Nested(ds.Problem):
    """A problem whose layers have names with parts."""

    dimension, samples = 4, 10
    layers = ds.problem.layers_of({"head.w": (2,), "head.b": (1,), "header": (1,)})

    def loss(self, x: np.ndarray) -> float:
        """Return half of the square."""
        return float(x @ x / 2)

    def gradient(self, x: np.ndarray, batch: np.ndarray) -> np.ndarray:  # noqa: ARG002 # all alike
        """Return the point itself."""
        return x + 0.0


def test_a_name_stands_for_the_layers_that_begin_with_it() -> None:
    """``head`` is ``head.w`` and ``head.b``, not ``header``; the longest name counts."""
    factors = layer_factors(Nested(), {"head": 10.0, "head.b": 3.0})
    assert factors.tolist() == [10.0, 10.0, 3.0, 1.0]
    assert layer_factors(Nested(), {"head": 1.0}) is None


@pytest.mark.parametrize(
    ("rates", "says"),
    [
        ({"heat": 2.0}, "unknown layer in layer_rates: 'heat'.*head"),
        ({"head": -1.0}, r"layer_rates\['head'\] must be >= 0"),
        ({"head": "fast"}, r"layer_rates\['head'\] must be a number"),
        (3.0, "layer_rates must be factors by the names of layers"),
    ],
)
def test_a_rate_that_means_nothing_is_named(rates: object, says: str) -> None:
    """Unknown layers and impossible factors are sentences, before anything runs."""
    with pytest.raises(ConfigError, match=says):
        run(ds.algorithms.serial(0.1), Nested(), layer_rates=rates)


def test_the_hash_knows_the_rates() -> None:
    """Runs with other rates are other runs; no rates are what was there before."""
    plain, rated = run(TABLE["downpour"]), run(TABLE["downpour"], layer_rates={"W_0": 2.0})
    assert plain.hash != rated.hash
    assert "layer_rates" not in plain.settings
    assert ds.replay(rated, TABLE["downpour"], NETWORK).x.tobytes() == rated.x.tobytes()


def test_the_history_has_the_norm_of_each_layer() -> None:
    """A norm is that of the mean gradient over all samples, at the point of the evaluation."""
    found = run(TABLE["downpour"], layer_norms=True)
    g = NETWORK.gradient(found.x, np.arange(NETWORK.samples))
    norms = [found.history[f"gradient_norm/{layer.name}"][-1] for layer in NETWORK.layers]
    assert np.allclose(norms, [np.linalg.norm(g[layer.place]) for layer in NETWORK.layers], rtol=1e-12)
    assert norms == gradient_norms(NETWORK, found.x)
    assert ds.replay(found, TABLE["downpour"], NETWORK).history.equals(found.history)


@pytest.mark.parametrize("name", ["downpour, periods", "adaptive_revision", "elastic_averaging"])
def test_live_runs_have_rates_and_norms_too(name: str) -> None:
    """A live run is told the factors of its layers on both sides, and its replay has its bits."""
    given = {"layer_rates": {"W_0": 2.0, "b_1": 0.0}, "layer_norms": True}
    live = ds.launch(TABLE[name], NETWORK, workers=2, shards=2, updates=20, batch=4, evaluations=2, **given)
    assert ds.replay(live, TABLE[name], NETWORK).x.tobytes() == live.x.tobytes()
    frozen = NETWORK.layers[-1].place
    assert np.array_equal(live.x[frozen], NETWORK.start(0)[frozen])
    assert live.history["gradient_norm/W_0"].is_finite().all()


def test_lock_free_runs_take_one_rate_for_all_layers() -> None:
    """Twice the rate of the only layer is twice the learning rate, without a server too."""
    problem = ds.problems.logistic(ds.data.sparse(60, 20, 4))
    doubled, plain = (
        ds.launch(
            ds.algorithms.hogwild(rate), problem, workers=1, batch=1, epochs=2, layer_norms=True, layer_rates=rates
        )
        for rate, rates in ((0.25, {"x": 2.0}), (0.5, None))
    )
    assert doubled.x.tobytes() == plain.x.tobytes()
    assert doubled.history["gradient_norm/x"].to_list() == plain.history["gradient_norm/x"].to_list()
