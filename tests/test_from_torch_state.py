from collections.abc import Callable

import numpy as np
import pytest
from small_torch import BATCH, flowers, near, perceptron, with_batch_norm

import distsgd as ds
from distsgd.errors import ConfigError
from distsgd.fold.problem_check import check_problem

torch = pytest.importorskip("torch", reason="needs distsgd[torch]")
nn, functional = torch.nn, torch.nn.functional


def with_dropout(rate: float = 0.5) -> nn.Module:
    """Return a perceptron that drops hidden units."""
    hidden, relu, output = perceptron(6, 5, 3)
    return nn.Sequential(hidden, relu, nn.Dropout(rate), output)


def problem_of(module: nn.Module, **policy: str) -> ds.Problem:
    """Return the problem of a module."""
    return ds.problems.from_torch(module, flowers(), "cross_entropy", **policy)


def test_random_layers_draw_from_the_key_alone() -> None:
    """A gradient repeats by its key, whatever was drawn before, and another key draws otherwise."""
    problem = problem_of(with_dropout())
    x = near(problem)[0]
    assert problem.is_random
    assert check_problem(problem) == ()
    first, other = (problem.gradient(x, BATCH, key) for key in (7, 2**63 + 8))
    torch.rand(3)
    assert problem.gradient(x, BATCH, 7).tobytes() == first.tobytes()
    assert np.abs(other - first).max() > 1e-3


def test_the_key_is_pytorch_s_seed() -> None:
    """With a key, a gradient has the bits of `backward` after `torch.manual_seed` of it."""
    module = with_dropout()
    problem = problem_of(module)
    x, y = map(torch.tensor, flowers())
    torch.manual_seed(7)
    functional.cross_entropy(module(x[BATCH].float()), y[BATCH]).backward()
    expected = torch.cat([one.grad.reshape(-1) for one in module.parameters()]).numpy()
    assert problem.gradient(problem.start(0), BATCH, 7).tobytes() == expected.tobytes()


def test_the_caller_s_generator_is_left_alone() -> None:
    """Neither making a problem nor a gradient moves PyTorch's own generator on."""
    state = torch.random.get_rng_state()
    module = with_dropout()
    torch.random.set_rng_state(state)
    problem = problem_of(module)
    problem.gradient(problem.start(0), BATCH, 7)
    problem.evaluate(problem.start(0))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_evaluation_drops_nothing() -> None:
    """The loss of a module with dropout is that without, and the same each time."""
    one, other = problem_of(with_dropout()), problem_of(perceptron(6, 5, 3))
    assert one.loss(one.start(0)) == one.loss(one.start(0)) == other.loss(other.start(0))


def test_dropout_of_nothing_is_not_random() -> None:
    """A module is random if it draws, not by the names of its layers."""
    assert not problem_of(with_dropout(0.0)).is_random


def test_a_simulated_run_with_dropout_repeats() -> None:
    """A run with random layers has the same bits again, and others than one without."""
    problem, whole = problem_of(with_dropout()), problem_of(perceptron(6, 5, 3))
    fleet, algorithm = ds.Fleet(workers=3, compute=ds.exponential(1.0)), ds.algorithms.downpour(0.1)
    first, again, other = (
        ds.simulate(algorithm, one, fleet, updates=20, batch=8).x.tobytes() for one in (problem, problem, whole)
    )
    assert first == again != other


def test_changing_buffers_need_a_policy() -> None:
    """A module whose buffers change in training is refused with the names of its layers."""
    named = r"module changes buffers in training.*: 1 \(BatchNorm1d\); say buffers='frozen'"
    with pytest.raises(ConfigError, match=named):
        problem_of(with_batch_norm())
    deep = nn.Sequential(*(layer for _ in range(5) for layer in (nn.Linear(6, 6), nn.BatchNorm1d(6))))
    with pytest.raises(ConfigError, match=r"5 \(BatchNorm1d\) and 2 more"):
        problem_of(deep)


@pytest.mark.parametrize("buffers", ["frozen", "batch"])
def test_a_policy_keeps_gradients_apart(buffers: str) -> None:
    """With a policy, no gradient or evaluation leaves a trace in the next one."""
    problem = problem_of(with_batch_norm(), buffers=buffers)
    assert check_problem(problem) == ()
    x, other = near(problem, 2)
    gradient, evaluation = problem.gradient(x, BATCH), problem.evaluate(x)
    problem.gradient(other, BATCH[:5])
    problem.evaluate(other)
    assert problem.gradient(x, BATCH).tobytes() == gradient.tobytes()
    assert problem.evaluate(x).loss == evaluation.loss


def test_frozen_statistics_are_those_given() -> None:
    """Frozen, a batch normalisation is what the module does in evaluation mode, in training too."""
    module = with_batch_norm()
    x, y = flowers()
    module(torch.tensor(x * 3.0 + 1.0, dtype=torch.float32))
    module.eval()
    problem = problem_of(module, buffers="frozen")
    value = functional.cross_entropy(module(torch.tensor(x, dtype=torch.float32)), torch.tensor(y))
    value.backward()
    expected = torch.cat([one.grad.reshape(-1) for one in module.parameters()]).numpy()
    start = problem.start(0)
    assert problem.gradient(start, np.arange(50)).tobytes() == expected.tobytes()
    assert problem.loss(start) == pytest.approx(float(value.detach()), rel=1e-6)


def test_batch_statistics_are_pytorch_s() -> None:
    """By the batch, gradients are those of training mode, and losses those after `update_bn`."""
    module = with_batch_norm()
    problem = problem_of(module, buffers="batch")
    x, y = torch.tensor(flowers()[0], dtype=torch.float32), torch.tensor(flowers()[1])
    functional.cross_entropy(module(x[BATCH]), y[BATCH]).backward()
    expected = torch.cat([one.grad.reshape(-1) for one in module.parameters()]).numpy()
    assert problem.gradient(problem.start(0), BATCH).tobytes() == expected.tobytes()
    torch.optim.swa_utils.update_bn([x], module)
    with torch.no_grad():
        value = functional.cross_entropy(module.eval()(x), y)
    assert problem.loss(problem.start(0)) == pytest.approx(float(value), rel=1e-6)


def test_batch_statistics_vmap() -> None:
    """Gradients with batch statistics can be vmapped, and are close to single ones."""
    one, many = (
        ds.problems.from_torch(with_batch_norm().double(), flowers(), "cross_entropy", buffers="batch", vmap=vmap)
        for vmap in (False, True)
    )
    xs, batches = near(one, 6), np.tile(BATCH, (6, 1))
    assert many.gradients(xs, batches) == pytest.approx(one.gradients(xs, batches), rel=0, abs=1e-13)


class Counting(nn.Module):
    """A module that counts its calls, whatever its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return scores."""
        self.calls += 1
        return self.linear(x)


@pytest.mark.parametrize(
    ("module", "policy", "message"),
    [
        (Counting, "frozen", r"buffers='frozen' must keep buffers as they are, but a step changes those of itself"),
        (Counting, "batch", r"buffers='batch' is for batch normalisation, not for itself \(Counting\); use 'frozen'"),
        (with_batch_norm, "mean", "unknown policy for buffers 'mean'"),
    ],
)
def test_a_policy_that_does_not_help_is_refused(module: Callable[[], nn.Module], policy: str, message: str) -> None:
    """A policy must be one that is known, and keep the buffers of this module from changing."""
    with pytest.raises(ConfigError, match=message):
        problem_of(module(), buffers=policy)


def test_constant_buffers_need_no_policy() -> None:
    """A buffer that training does not change, such as a mask, is a constant."""
    module = perceptron(6, 5, 3)
    module.register_buffer("mask", torch.tensor([0.0, -np.inf, np.nan]))
    assert check_problem(problem_of(module)) == ()
