"""A PyTorch network of one's own, on images, by eight workers.

Usage: python scripts/examples/torch_cnn.py
"""

import torch
from torch import nn

import distsgd as ds

digits = ds.data.digits()
images = digits.x.reshape(-1, 1, 8, 8), digits.y, digits.test_x.reshape(-1, 1, 8, 8), digits.test_y
torch.manual_seed(0)
network = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(8, 16, 3),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(64, 10),
)
problem = ds.problems.from_torch(network, images, "cross_entropy")
fleet = ds.Fleet(workers=8, compute=ds.lognormal(1.0, 0.3))
algorithms = {"synchronous": ds.algorithms.synchronous(0.5), "downpour": ds.algorithms.downpour(0.05)}
for name, algorithm in algorithms.items():
    run = ds.simulate(algorithm, problem, fleet, epochs=10, evaluations=10)
    accuracy, seconds = (run.history[column][-1] for column in ("accuracy", "seconds"))
    print(f"{name}: {accuracy:.0%} of the test digits after {seconds:.0f} s")
