"""How a live run lies on a Ray cluster: what its processes need, and where state is kept."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distsgd.errors import ConfigError, check_number


def _one_cpu() -> dict[str, float]:
    return {"CPU": 1.0}


@dataclass(frozen=True)
class RayOptions:
    """What a run on a Ray cluster asks of it.

    Parameters
    ----------
    worker, server, evaluator : mapping of str to float, optional
        Resources that a worker, a shard and the evaluator reserve, under the names that the cluster
        gives them: ``{"CPU": 2, "fast_disk": 1}``. One CPU by default.
    storage : str or Path, optional
        Where checkpoints are kept while the run goes on: a folder that all nodes share, or the URI
        of one, such as ``s3://bucket/folder`` (fsspec or pyarrow opens it). By default a folder for
        temporary files if all nodes are on this machine, else one in the user's home.
    patience : float, default 60.0
        How long nodes that are busy or lost may keep the run from going on [s], > 0.

    Raises
    ------
    ConfigError
        If a resource has no name or no amount, or a value is out of bounds.
    """

    worker: Mapping[str, float] = field(default_factory=_one_cpu)
    server: Mapping[str, float] = field(default_factory=_one_cpu)
    evaluator: Mapping[str, float] = field(default_factory=_one_cpu)
    storage: str | Path | None = None
    patience: float = 60.0

    def __post_init__(self) -> None:
        for name in ("worker", "server", "evaluator"):
            object.__setattr__(self, name, _checked(name, getattr(self, name)))
        check_number("patience", self.patience, above=0, unit=" s")

    def bundles(self, shards: int, workers: int) -> list[dict[str, float]]:
        """Return what each process of a run reserves: shards, workers, then the evaluator."""
        several = [self.server] * shards + [self.worker] * workers + [self.evaluator]
        return [dict(one) for one in several]

    def total(self, shards: int, workers: int) -> dict[str, float]:
        """Return what all processes of a run reserve together."""
        bundles = self.bundles(shards, workers)
        names = sorted({name for bundle in bundles for name in bundle})
        return {name: math.fsum(bundle.get(name, 0.0) for bundle in bundles) for name in names}


def _checked(role: str, resources: Any) -> dict[str, float]:  # noqa: ANN401 # what a caller gives
    if not isinstance(resources, Mapping) or not resources:
        raise ConfigError(f"{role} must be resources such as {{'CPU': 1}}, not {resources!r}")
    for name in resources:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{role} must have names of resources such as 'CPU', not {name!r}")
    return {name: check_number(f"{role}[{name!r}]", amount, above=0) for name, amount in resources.items()}
