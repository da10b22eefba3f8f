import copy
import runpy
from pathlib import Path

import numpy as np
import pytest
from small_torch import RATE, flowers, perceptron

import distsgd as ds
from distsgd.data.stream import Stream

torch = pytest.importorskip("torch", reason="needs distsgd[torch]")
nn, functional = torch.nn, torch.nn.functional

EXAMPLE = Path(__file__).parent.parent / "scripts" / "examples" / "torch_cnn.py"
ASYNCHRONOUS = ds.algorithms.downpour(RATE)
FLEET = ds.Fleet(workers=4, compute=ds.exponential(1.0))


def plain_loop(module: nn.Module, batches: np.ndarray) -> np.ndarray:
    """Return the parameters after a loop as one would write it in PyTorch."""
    own = copy.deepcopy(module)
    optimiser = torch.optim.SGD(own.parameters(), lr=RATE)
    x, y = flowers()
    for batch in batches:
        optimiser.zero_grad()
        functional.cross_entropy(
            own(torch.tensor(x[batch], dtype=next(own.parameters()).dtype)), torch.tensor(y[batch])
        ).backward()
        optimiser.step()
    return torch.cat([one.detach().reshape(-1) for one in own.parameters()]).numpy()


@pytest.mark.parametrize("kind", ["float", "double"])
@pytest.mark.parametrize("batch", [1, 32])
def test_one_worker_is_the_plain_loop(kind: str, batch: int) -> None:
    """One worker has the bits of a plain PyTorch loop, at a rate that is a power of two."""
    # layers of whole cache lines, where a vector of parameters leaves each where PyTorch would
    module = getattr(perceptron(6, 8, 4), kind)()
    problem = ds.problems.from_torch(module, flowers(), "cross_entropy")
    run = ds.simulate(ds.algorithms.serial(RATE), problem, ds.Fleet(workers=1), updates=60, batch=batch, seed=4)
    batches = Stream(50, batch, 4).batches(np.zeros(60), np.arange(60))
    assert run.x.tobytes() == plain_loop(module, batches).tobytes()


@pytest.mark.parametrize("driver", ["interpreted", "compiled"])
def test_a_replay_is_the_simulated_run(driver: str) -> None:
    """The order of a simulated run gives its bits again, whichever code calls the rules."""
    problem = ds.problems.from_torch(perceptron(6, 5, 3), flowers(), "cross_entropy")
    run = ds.simulate(ASYNCHRONOUS, problem, FLEET, updates=60, batch=8)
    again = ds.replay(run, ASYNCHRONOUS, problem, driver=driver)
    assert run.x.dtype == np.float32
    assert again.x.tobytes() == run.x.tobytes()
    assert again.history.equals(run.history, null_equal=True)


def test_vmapped_gradients_train_as_well() -> None:
    """A run with gradients that are vmapped is close to that with one at a time."""
    one, many = (
        ds.simulate(
            ASYNCHRONOUS,
            ds.problems.from_torch(perceptron(6, 5, 3), flowers(), "cross_entropy", vmap=vmap),
            ds.Fleet(workers=16, compute=ds.constant(1.0)),
            updates=160,
            batch=8,
        )
        for vmap in (False, True)
    )
    # the rounding of float32 grows along the run
    assert many.x == pytest.approx(one.x, rel=0, abs=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_live_run_is_its_replay(dropout: float) -> None:
    """Forked workers have the bits of a replay in this process, with random layers and without."""
    module = nn.Sequential(perceptron(6, 5, 3), nn.Dropout(dropout)) if dropout else perceptron(6, 5, 3)
    problem = ds.problems.from_torch(module, flowers(), "cross_entropy")
    assert problem.is_random == bool(dropout)
    run = ds.launch(ASYNCHRONOUS, problem, workers=2, updates=30, batch=8, evaluate_every=10)
    again = ds.replay(run, ASYNCHRONOUS, problem)
    assert (run.status, run.x.dtype) == ("done", np.float32)
    assert again.x.tobytes() == run.x.tobytes()
    assert again.history.equals(run.history, null_equal=True)


def test_the_example_trains_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    """The example prints a line per algorithm, and both have learned something."""
    runpy.run_path(str(EXAMPLE))
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["synchronous", "downpour"]
    assert all(int(line.split()[1].rstrip("%")) > 75 for line in lines)
