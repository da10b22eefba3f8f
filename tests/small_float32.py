"""Small problems of float32 columns, one of which is random."""

import numpy as np

import distsgd as ds


class SmallFloat32(ds.Problem):
    """Least squares on a few samples; whatever it returns has been rounded to float32."""

    dtype, samples = np.dtype(np.float32), 60

    def __init__(self, dimension: int = 7) -> None:
        self.dimension = dimension
        random = np.random.default_rng(1)
        self.rows = random.normal(size=(self.samples, dimension)).astype(np.float32)
        self.targets = random.normal(size=self.samples).astype(np.float32)

    def start(self, seed: int) -> np.ndarray:
        """Return another point for another seed."""
        return np.random.default_rng(seed).normal(size=self.dimension).astype(np.float32)

    def loss(self, x: np.ndarray) -> float:
        """Return half of the mean square."""
        return float(np.mean((self.rows @ x - self.targets) ** 2, dtype=np.float64) / 2)

    def gradient(self, x: np.ndarray, batch: np.ndarray) -> np.ndarray:
        """Return the mean gradient of a batch."""
        rows = self.rows[batch]
        return rows.T @ (rows @ x - self.targets[batch]) / np.float32(len(batch))


class SmallDropout(SmallFloat32):
    """The same, where each gradient leaves out features that its key chooses."""

    is_random = True

    def gradient(self, x: np.ndarray, batch: np.ndarray, key: int) -> np.ndarray:
        """Return the mean gradient of a batch, without some features."""
        kept = np.random.default_rng(int(key)).random(self.dimension) < 0.8
        return kept * super().gradient(x * kept, batch)
