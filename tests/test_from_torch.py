import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise

import cloudpickle
import numpy as np
import pytest
from scipy.optimize import approx_fprime
from small_torch import BATCH, flowers, near, perceptron

import distsgd as ds
from distsgd.fold.problem_check import check_problem
from distsgd.problem import Problem

torch = pytest.importorskip("torch", reason="needs distsgd[torch]")
nn, functional = torch.nn, torch.nn.functional


class Words(nn.Module):
    """A recurrent network on tokens, whose embedding is its output layer as well."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.recurrent, self.output = (
            nn.Embedding(9, 5),
            nn.LSTM(5, 5, batch_first=True),
            nn.Linear(5, 9),
        )
        self.output.weight = self.embedding.weight
        self.register_buffer("mask", torch.tensor([0.0, -np.inf]))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return scores, float[n, words, t]."""
        return self.output(self.recurrent(self.embedding(tokens))[0]).transpose(1, 2)


def images() -> tuple[np.ndarray, ...]:
    """Return the digits as images, for training and for testing."""
    data = ds.data.digits()
    return *(data.x.reshape(-1, 1, 8, 8), data.y), *(data.test_x.reshape(-1, 1, 8, 8), data.test_y)


def tokens() -> tuple[np.ndarray, np.ndarray]:
    """Return sentences of six words, and the words that follow."""
    words = np.random.default_rng(0).integers(0, 9, (40, 7))
    return words[:, :-1].copy(), words[:, 1:].copy()


def convolutional() -> nn.Module:
    """Return a small convolutional network."""
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def words() -> nn.Module:
    """Return a small recurrent network."""
    torch.manual_seed(3)
    return Words()


MAKERS: dict[str, Callable[[], Problem]] = {
    "perceptron": lambda: ds.problems.from_torch(perceptron(6, 5, 3), flowers(), "cross_entropy"),
    "float64": lambda: ds.problems.from_torch(perceptron(6, 5, 3).double(), flowers(), "cross_entropy"),
    "large": lambda: ds.problems.from_torch(perceptron(64, 1500, 12), ds.data.digits(), "cross_entropy"),
    "large, not aligned": lambda: ds.problems.from_torch(perceptron(64, 1501, 11), ds.data.digits(), "cross_entropy"),
    "images": lambda: ds.problems.from_torch(convolutional(), images(), "cross_entropy"),
    "tokens": lambda: ds.problems.from_torch(words(), tokens(), "cross_entropy"),
}


def reference(module: nn.Module, data: tuple[np.ndarray, ...], batch: np.ndarray) -> np.ndarray:
    """Return the gradient as one would take it in PyTorch."""
    own = copy.deepcopy(module)
    kind = next(own.parameters()).dtype
    x, y = (torch.tensor(table[batch]) for table in data[:2])
    functional.cross_entropy(own(x.to(kind) if x.is_floating_point() else x), y).backward()
    return torch.cat([one.grad.reshape(-1) for one in own.parameters()]).numpy()


@pytest.mark.parametrize("name", MAKERS)
def test_a_module_is_a_problem(name: str) -> None:
    """Every module keeps the contract of a problem, on tables, images and tokens."""
    problem = MAKERS[name]()
    assert check_problem(problem) == ()
    assert problem.dtype == ("float64" if name == "float64" else "float32")
    assert problem.exactness == "bits"


@pytest.mark.parametrize(
    ("name", "module", "data"),
    [
        ("perceptron", lambda: perceptron(6, 5, 3), flowers),
        ("float64", lambda: perceptron(6, 5, 3).double(), flowers),
        ("images", convolutional, images),
        ("tokens", words, tokens),
    ],
)
def test_a_gradient_is_the_module_s_own(name: str, module: Callable[[], nn.Module], data: Callable[[], tuple]) -> None:
    """At the start, a gradient has the bits of `backward` in the module itself."""
    problem = MAKERS[name]()
    assert problem.gradient(problem.start(0), BATCH).tobytes() == reference(module(), data(), BATCH).tobytes()


def in_our_order(problem: Problem, units: tuple[int, ...]) -> np.ndarray:
    """Return where the numbers of our network stand in a perceptron's, which transposes them."""
    places = iter(problem.layers)
    parts = []
    for inputs, outputs in pairwise(units):
        weights, biases = next(places), next(places)
        parts += [np.arange(weights.first, biases.first).reshape(outputs, inputs).T.reshape(-1)]
        parts += [np.arange(biases.place.start, biases.place.stop)]
    return np.concatenate(parts)


@pytest.mark.parametrize(("kind", "tolerance"), [("float", 1e-6), ("double", 1e-14)])
def test_a_perceptron_is_our_network(kind: str, tolerance: float) -> None:
    """Loss, gradient and accuracy are our network's, but for the rounding of sums of 64 numbers."""
    units, data = (64, 16, 10), ds.data.digits()
    own = ds.problems.network(data, 16)
    theirs = ds.problems.from_torch(getattr(perceptron(*units), kind)(), data, "cross_entropy")
    order, x = in_our_order(theirs, units), near(theirs)[0]
    ours = x[order].astype(np.float64)
    gradient = theirs.gradient(x, BATCH)[order]
    assert gradient == pytest.approx(own.gradient(ours, BATCH), rel=0, abs=10 * tolerance)
    assert list(theirs.evaluate(x)) == pytest.approx(list(own.evaluate(ours)), rel=tolerance)


SMOOTH = lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))  # noqa: E731 # a row of a table


@pytest.mark.parametrize("module", [lambda: perceptron(6, 5, 3), SMOOTH])
def test_a_gradient_is_the_slope_of_the_loss(module: Callable[[], nn.Module]) -> None:
    """The gradient of every sample once agrees with finite differences of the loss, in float64."""
    problem = ds.problems.from_torch(module().double(), flowers(), "cross_entropy")
    x = near(problem)[0]
    slope = approx_fprime(x, problem.loss, 1e-7)
    # differences of this step are known to the root of the rounding
    assert problem.gradient(x, np.arange(50)) == pytest.approx(slope, rel=0, abs=1e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_a_gradient_repeats_in_any_order(name: str) -> None:
    """A gradient has the same bits when others were taken, or a loss, before it."""
    problem = MAKERS[name]()
    xs, batches = near(problem, 3), [BATCH, BATCH[:1], BATCH[::-1].copy()]
    first = [problem.gradient(x, batch) for x, batch in zip(xs, batches, strict=True)]
    problem.evaluate(xs[1])
    for n in (2, 0, 1):
        assert problem.gradient(xs[n], batches[n]).tobytes() == first[n].tobytes()


@pytest.mark.parametrize("name", MAKERS)
def test_a_gradient_does_not_depend_on_where_its_vectors_stand(name: str) -> None:
    """Wherever a point and its gradient stand, read-only or not, the bits are the same."""
    problem = MAKERS[name]()
    x = near(problem)[0]
    # of one sample, whose products are those of a matrix and a vector, which MKL does in place
    expected = problem.gradient(x, BATCH[:1]).tobytes()
    for offset in range(9):
        rooms = [np.zeros(x.size + 9, x.dtype)[offset : offset + x.size] for _ in range(2)]
        rooms[0][...] = x
        rooms[0].flags.writeable = offset % 2 == 0
        problem.gradient_into(*rooms[:1], BATCH[:1], rooms[1])
        assert rooms[1].tobytes() == expected


def test_a_gradient_has_the_same_bits_on_any_number_of_threads() -> None:
    """A gradient does not depend on the number of PyTorch's threads, and leaves it alone."""
    problem = MAKERS["images"]()  # whose sums over samples PyTorch would divide among threads
    known, threads = problem.gradient(problem.start(0), BATCH), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        again = problem.gradient(problem.start(0), BATCH)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert again.tobytes() == known.tobytes()


ELSEWHERE = """
import pickle, sys
problem, x, batch = pickle.load(sys.stdin.buffer)
pickle.dump((problem.gradient(x, batch), problem.evaluate(x)), sys.stdout.buffer)
"""


@pytest.mark.parametrize("name", ["perceptron", "large", "tokens"])
def test_another_process_has_the_same_bits(name: str) -> None:
    """A problem that was sent to another process has the same gradient and evaluation there."""
    problem = MAKERS[name]()
    x = near(problem)[0]
    known = problem.gradient(x, BATCH), problem.evaluate(x)
    sent, paths = cloudpickle.dumps((problem, x, BATCH)), os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], input=sent, capture_output=True, check=True, env=paths)
    gradient, evaluation = pickle.loads(done.stdout)
    assert gradient.tobytes() == known[0].tobytes()
    # a metric of data without tests is NaN, which is not equal to itself
    assert str(evaluation) == str(known[1])


@pytest.mark.parametrize(("kind", "tolerance"), [("float", 1e-6), ("double", 1e-14)])
def test_vmapped_gradients_are_those_of_one_at_a_time(kind: str, tolerance: float) -> None:
    """Gradients that are vmapped differ from single ones by the rounding of their sums."""
    module = getattr(perceptron(6, 5, 3), kind)()
    one, many = (ds.problems.from_torch(module, flowers(), "cross_entropy", vmap=vmap) for vmap in (False, True))
    assert (one.at_once, many.at_once, one.exactness, many.exactness) == (1, 64, "bits", "close")
    assert check_problem(many) == ()
    xs = near(one, 70)  # more than are vmapped together
    batches = np.random.default_rng(0).integers(0, 50, (70, 8))
    assert many.gradients(xs, batches) == pytest.approx(one.gradients(xs, batches), rel=0, abs=tolerance)
    assert many.settings != one.settings


def test_large_gradients_are_not_vmapped() -> None:
    """With 100,000 parameters or more, gradients are evaluated one at a time, vmap or not."""
    problem = ds.problems.from_torch(perceptron(64, 1500, 12), ds.data.digits(), "cross_entropy", vmap=True)
    xs, batches = near(problem, 4), np.tile(BATCH, (4, 1))
    assert problem.at_once == 1
    assert problem.gradients(xs, batches)[2].tobytes() == problem.gradient(xs[2], BATCH).tobytes()


def test_an_evaluation_is_the_mean_over_all_samples() -> None:
    """Losses and accuracy are means over all samples, though they are evaluated in chunks."""
    module, data = perceptron(64, 16, 10), ds.data.digits()
    problem = ds.problems.from_torch(module, data, "cross_entropy")
    found = problem.evaluate(problem.start(0))
    with torch.no_grad():
        outputs = [module(torch.tensor(x, dtype=torch.float32)) for x in (data.x, data.test_x)]
    losses = [float(functional.cross_entropy(outputs[n], torch.tensor(y))) for n, y in enumerate((data.y, data.test_y))]
    assert [found.loss, found.test_loss] == pytest.approx(losses, rel=1e-6)
    assert found.accuracy == np.mean(outputs[1].argmax(1).numpy() == data.test_y)


def test_a_metric_of_one_s_own_is_reported() -> None:
    """The metric is the mean of what the caller's function returns on test samples."""
    data = (*flowers(), *flowers(7))
    problem = ds.problems.from_torch(
        perceptron(6, 5, 3), data, "cross_entropy", metric=lambda outputs, targets: targets.float().mean()
    )
    assert problem.evaluate(problem.start(0)).accuracy == pytest.approx(np.mean(flowers(7)[1]), rel=1e-6)


def test_a_dataset_is_read() -> None:
    """A map-style dataset gives the problem of its arrays."""
    x, y = flowers()
    dataset = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))
    one, other = (ds.problems.from_torch(perceptron(6, 5, 3), data, "cross_entropy") for data in (dataset, (x, y)))
    assert one.settings == other.settings


def test_layers_have_the_module_s_names() -> None:
    """Layers are the module's parameters in its order, those that are tied once."""
    assert [layer.name for layer in MAKERS["tokens"]().layers] == [
        "embedding.weight",
        *(f"recurrent.{one}_l0" for one in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")),
        "output.bias",
    ]
    assert MAKERS["images"]().layers[2] == ("3.weight", (10, 144), 40)


def test_frozen_parameters_are_constants() -> None:
    """A parameter without requires_grad is in no vector, and keeps its numbers."""
    module = perceptron(6, 5, 3)
    module[0].weight.requires_grad_(False)
    problem = ds.problems.from_torch(module, flowers(), "cross_entropy")
    assert [layer.name for layer in problem.layers] == ["0.bias", "2.weight", "2.bias"]
    whole = MAKERS["perceptron"]()
    x = whole.start(0)
    assert problem.gradient(x[30:], BATCH).tobytes() == whole.gradient(x, BATCH)[30:].tobytes()


def test_the_caller_s_module_stays_as_it_is() -> None:
    """A problem does not change the module that was given, nor does that change the problem."""
    module = perceptron(6, 5, 3).eval()
    before = copy.deepcopy(module.state_dict())
    problem = ds.problems.from_torch(module, flowers(), "cross_entropy")
    start = problem.start(0)
    problem.gradient(near(problem)[0], BATCH)
    assert not module.training
    assert all(torch.equal(one, before[name]) for name, one in module.state_dict().items())
    assert all(one.grad is None for one in module.parameters())
    with torch.no_grad():
        module[0].weight.zero_()
    assert problem.start(0).tobytes() == problem.start(1).tobytes() == start.tobytes()
