import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import cloudpickle
import numpy as np
import pytest
from small_torch import flowers, perceptron

import distsgd as ds
from distsgd.data import sparse
from distsgd.errors import ConfigError
from distsgd.fold.problem_check import check_problem

torch = pytest.importorskip("torch", reason="needs distsgd[torch]")
nn, functional = torch.nn, torch.nn.functional


class Branching(nn.Module):
    """A module that looks at its numbers, which vmap cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return scores."""
        scores = self.linear(x)
        return scores if scores.sum().item() > 0.0 else -scores


class Ragged(nn.Module):
    """A module that fails in a line of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Fail."""
        return self.linear(x)["scores"]


def of_loss(loss: object) -> dict[str, Any]:
    """Return what a loss replaces."""
    return {"loss": loss}


MODULES: dict[str, tuple[Callable[[], Any], str]] = {
    "no module": (lambda: 3, r"module must be a value such as torch.nn.Linear\(64, 10\), not 3"),
    "not made": (lambda: nn.Linear, r"Linear was not called; write Linear\(in_features, out_features\)"),
    "no parameters": (nn.Flatten, "module must have parameters that are trained, but it has none"),
    "all frozen": (lambda: nn.Linear(6, 3).requires_grad_(False), "but all 2 are frozen; let some have requires_grad"),
    "no shapes": (lambda: nn.LazyLinear(3), "module must know its shapes, but weight does not yet"),
    "no numbers": (lambda: nn.Linear(6, 3, device="meta"), "but weight is without numbers"),
    "half": (
        lambda: nn.Linear(6, 3).half(),
        r"dense float32 or float64, but weight is strided float16; use module.float",
    ),
    "complex": (lambda: nn.Linear(6, 3, dtype=torch.complex64), "but weight is strided complex64"),
    "mixed": (
        lambda: nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3).double()),
        "0.bias is float32 and 1.bias is float64",
    ),
    "other inputs": (
        lambda: nn.Linear(7, 3),
        r"module must take samples float32\[5, 6\], but raised .* \(5x6 and 7x3\)",
    ),
    "other classes": (
        lambda: nn.Linear(6, 2),
        r"outputs float32\[5, 2\] and targets int64\[5\], but raised IndexError",
    ),
    "its own error": (Ragged, r"but raised .* \(.*test_from_torch_checks.py:\d+, in forward\)"),
    "time first": (
        lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.LSTM(3, 3)),
        "is the first axis the batch everywhere",
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_cannot_be_trained_is_a_sentence(name: str) -> None:
    """What a module lacks is named, with what to do about it."""
    make, message = MODULES[name]
    loss = (lambda outputs, _: outputs[0].square().mean()) if name == "time first" else "cross_entropy"
    with pytest.raises(ConfigError, match=message):
        ds.problems.from_torch(make(), flowers(), loss)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt": (of_loss("cross_entropi"), "unknown loss 'cross_entropi'; did you mean 'cross_entropy'?"),
    "no loss": (of_loss(3), "loss must be a value such as 'cross_entropy', not 3"),
    "loss not made": (of_loss(nn.CrossEntropyLoss), r"CrossEntropyLoss was not called; write CrossEntropyLoss\(\)"),
    "no scalar": (of_loss(nn.CrossEntropyLoss(reduction="none")), r"but returned float32\[5\]; use reduction='mean'"),
    "a sum": (
        of_loss(nn.CrossEntropyLoss(reduction="sum")),
        "repeated twice, the same batch has .*; use reduction='mean'",
    ),
    "no tensor": (of_loss(lambda *_: 3.0), "loss must be one number, the mean over the batch, but returned 3.0"),
    "no slope": (of_loss(lambda outputs, _: outputs.detach().mean()), "loss must be differentiable, but raised"),
    "no such device": ({"device": "gpu"}, "device must be one that is there, such as 'cpu', not 'gpu'"),
    "no metric": ({"metric": "accuracy"}, "metric must be a value such as .*, not 'accuracy'"),
    "no number": ({"metric": lambda *_: "good"}, "metric must return one number, but raised ValueError"),
    "sparse": ({"data": sparse(20, 6, 2)}, r"from_torch needs dense samples, .*; give x.dense\(\)"),
    "vmap and dropout": (
        {"module": nn.Sequential(nn.Linear(6, 3), nn.Dropout()), "vmap": True},
        "vmap=True must not draw",
    ),
    "vmap and branches": (
        {"module": Branching(), "vmap": True},
        "vmap=True needs a module that torch.func.vmap can take",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_does_not_fit_is_a_sentence(name: str) -> None:
    """A loss, a metric, data, a device or vmap that cannot be used is named, with what to do."""
    given, message = OTHERS[name]
    with pytest.raises(ConfigError, match=message):
        ds.problems.from_torch(**({"module": perceptron(6, 5, 3), "data": flowers(), "loss": "cross_entropy"} | given))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_a_sentence() -> None:
    """A GPU must be there."""
    with pytest.raises(ConfigError, match="device must be one that is there, such as 'cpu', not 'cuda'"):
        ds.problems.from_torch(perceptron(6, 5, 3), flowers(), "cross_entropy", device="cuda")


def test_a_start_that_is_not_finite_is_a_sentence() -> None:
    """NaN in the first gradient is named before a run begins."""
    module = perceptron(6, 5, 3)
    with torch.no_grad():
        module[2].bias[0] = torch.nan
    problem = ds.problems.from_torch(module, flowers(), "cross_entropy")
    with pytest.raises(ConfigError, match=r"start returned|gradient returned nan at \[\d+\], at the start of a run"):
        check_problem(problem)


@pytest.mark.parametrize("loss", ["cross_entropy", functional.cross_entropy, nn.CrossEntropyLoss()])
def test_a_loss_is_a_name_a_function_or_a_module(loss: object) -> None:
    """The same loss given in each way has the same bits."""
    problem = ds.problems.from_torch(perceptron(6, 5, 3), flowers(), loss)
    named = ds.problems.from_torch(perceptron(6, 5, 3), flowers(), "cross_entropy")
    x = problem.start(0)
    assert problem.gradient(x, [1, 2]).tobytes() == named.gradient(x, [1, 2]).tobytes()


class Scaled(nn.Module):
    """A module with a number that is no parameter."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.scale = nn.Linear(6, 3), scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return scores."""
        return self.linear(x) * self.scale


def squared(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return a loss of one's own."""
    return (outputs - torch.eye(3)[targets]).square().mean()


def cubed(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return another one."""
    return (outputs - torch.eye(3)[targets]).abs().pow(3).mean()


def changed_start() -> nn.Module:
    """Return a module that starts elsewhere."""
    module = Scaled(1.0)
    with torch.no_grad():
        module.linear.bias += 1.0
    return module


def test_another_problem_has_another_identity() -> None:
    """Module, start, samples, loss, metric, policy and vmap are all told apart."""
    x, y = flowers()
    own: dict[str, Any] = {"module": Scaled(1.0), "data": (x, y), "loss": squared}
    others: list[dict[str, Any]] = [
        {},
        {"module": Scaled(2.0)},
        {"module": nn.Sequential(Scaled(1.0))},
        {"module": changed_start()},
        {"data": (x + 1.0, y)},
        {"loss": cubed},
        {"metric": squared},
        {"vmap": True},
        {"buffers": "frozen"},
    ]
    known = [str(ds.problems.from_torch(**(own | other)).settings) for other in others]
    assert len(set(known)) == len(others)
    assert str(ds.problems.from_torch(**(own | {"module": Scaled(1.0)})).settings) == known[0]
    assert "unidentified" not in known[0]


AGAIN = """
import pickle, sys
import distsgd as ds
problem, arguments = pickle.load(sys.stdin.buffer)
pickle.dump((problem.settings, ds.problems.from_torch(*arguments).settings), sys.stdout.buffer)
"""


@pytest.mark.parametrize(
    "module", [lambda: Scaled(1.0), lambda: perceptron(6, 5, 3), lambda: nn.Sequential(Scaled(2.0))]
)
def test_an_identity_is_the_same_in_another_process(module: Callable[[], nn.Module]) -> None:
    """A problem has the same settings where it was sent, and where it is made again."""
    arguments = module(), flowers(), squared
    problem = ds.problems.from_torch(*arguments)
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    sent = cloudpickle.dumps((problem, arguments))
    done = subprocess.run([sys.executable, "-c", AGAIN], input=sent, capture_output=True, check=True, env=paths)
    assert pickle.loads(done.stdout) == (problem.settings, problem.settings)


def test_without_pytorch_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PyTorch is missing, an error says how to get it."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"pip install 'distsgd\[torch\]'"):
        ds.problems.from_torch(np.array, flowers(), "cross_entropy")
