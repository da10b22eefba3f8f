"""A run: what an engine returns, and how it is kept on disk.

A saved run is a folder of four files. ``run.json`` says what was run, on which versions, how it
ended, and the digests of ``history.parquet``, ``trace.parquet`` and ``parameters.npy``; it is
sealed with its own. The folder appears complete or not at all, and what is loaded has the bits of
what was saved.
"""

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from distsgd import display
from distsgd.errors import ConfigError
from distsgd.files import content_of, damaged, digest, read, replacing, save_or_keep, sealed, unsealed, unwritable
from distsgd.status import Status
from distsgd.trace import ROW, Trace
from distsgd.version import VERSION

Settings: TypeAlias = dict[str, Any]
"""What identifies a run, as JSON: algorithm, problem, fleet, batch, seed, budget, evaluations."""

FORMAT = 3
"""Number of the layout of a saved run; a folder with another one is refused."""

HISTORY = {
    "update": pl.Int64,
    "gradients": pl.Int64,
    "epoch": pl.Float64,
    "seconds": pl.Float64,
    "wall_seconds": pl.Float64,
    "bytes": pl.Float64,
    "loss": pl.Float64,
    "test_loss": pl.Float64,
    "accuracy": pl.Float64,
}
"""Columns of a history and their types."""

LIVE = ("local", "ray", "shared_memory")
"""Kinds of fleets whose time is that of a real clock."""

_PACKAGES = ("numpy", "numba", "scikit-learn", "polars")


def versions() -> dict[str, str]:
    """Return the versions of distsgd, of Python and of the packages that a run's bits depend on."""
    return dict(_versions())


@cache  # looking them up takes longer than a short run
def _versions() -> Mapping[str, str]:
    known = {"distsgd": VERSION, "python": platform.python_version()}
    return known | {package: metadata.version(package) for package in _PACKAGES}


def is_live(settings: Settings) -> bool:
    """Return whether a run with these `settings` was live, so that its times are wall times."""
    return settings.get("fleet", {}).get("kind") in LIVE


def identify(settings: Settings, version: str = VERSION) -> str:
    """Return the SHA-256 that names a run: of its settings and distsgd's version, in hexadecimal.

    It is known before the run is computed, and equal for equal runs: the order of keys does not
    count.
    """
    content = {"distsgd": version, "settings": settings}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return digest(text.encode())


class Crossing(msgspec.Struct, frozen=True):
    """Where the training loss, evaluated after every update, first met a target.

    The first update at or below the target lies in ``(after, update]``.
    """

    target: float
    """Training loss."""
    update: int | None
    """The earliest update found after which the loss is at or below the target, None if none is."""
    after: int
    """The first crossing lies behind this update; 0 if the starting point meets the target. Where
    `update` is None, the run missed the target up to here: if this is its last update, for certain,
    otherwise it is not known whether it met the target behind."""


@dataclass(frozen=True, eq=False)
class Run:
    """The result of an engine: where the parameters went, how, in which order, and from what.

    Parameters
    ----------
    x : float64[d] or float32[d]
        The server's parameters at the end, of the problem's type. They may be NaN when the run has
        diverged.
    history : polars.DataFrame
        A row per evaluation: update, gradients, epoch, seconds (virtual) [s], wall_seconds (of a
        live run, or its replay) [s], bytes (of all messages served), loss, test_loss, accuracy. NaN
        where a column does not apply.
    trace : Trace
        The order in which the server served its workers.
    status : {"done", "target", "diverged", "stopped"}
        How the run ended.
    diverged_at : int or None
        Server update at which the numbers were first seen not to be finite.
    settings : dict
        What was run, as JSON.
    versions : dict
        Package name to version.
    counts : dict
        What the engine counted on the way; after interleaved reads ``writes`` of coordinates and
        those of them that were ``lost``.
    source : dict
        The tables of an experiment, as JSON, from which algorithm and problem can be made again:
        ``algorithm``, ``problem``, and the ``folder`` where relative paths start. It is empty where
        they were made by a program, and does not identify the run.
    crossings : tuple of Crossing
        Where targets were first met, if that was looked for (`distsgd.fold.crossing`); it does not
        identify the run.
    difference : float or None
        Of a replay, how far a parameter is from the recorded one at most, relative to the largest;
        0 if all have the same bits. None of other runs; it is not saved.
    """

    x: npt.NDArray[Any]
    history: pl.DataFrame
    trace: Trace
    status: Status
    diverged_at: int | None
    settings: Settings
    versions: dict[str, str] = field(default_factory=versions)
    counts: dict[str, int] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    crossings: tuple[Crossing, ...] = ()
    difference: float | None = None

    def __repr__(self) -> str:
        name = " on ".join(self.settings[key]["name"] for key in ("algorithm", "problem") if key in self.settings)
        last = self.history["update", "loss"].tail(1).iter_rows()
        reached = "".join(f", {update:,} updates, loss {loss:.4g}" for update, loss in last)
        return f"Run({name}: {self.status}{reached}, mean staleness {self.trace.mean_staleness:.3g})"

    def _repr_html_(self) -> str:
        return display.load().run_html(self)

    def plot(self, picture: str = "loss", *, view: str | None = None) -> Any:  # noqa: ANN401 # a chart of Altair
        """Return a picture of the run: one of the report, as an Altair chart.

        A notebook shows it; ``save("loss.png")`` writes it, also as SVG, PDF or HTML.

        Parameters
        ----------
        picture : str, default "loss"
            Its name: ``"loss"``, ``"staleness"`` or ``"timeline"``, where the run has what that
            shows.
        view : str, optional
            What a reader of the report can choose above the picture, for example ``"updates"``; by
            default its first view.

        Returns
        -------
        altair.LayerChart
            The picture with its data, a title and a legend.

        Raises
        ------
        ConfigError
            If the run has no such picture, or the picture no such view; it names the nearest.
        """
        return display.load().run_chart(self, picture, view)

    @cached_property
    def hash(self) -> str:
        """The SHA-256 of settings and distsgd's version: equal for equal runs."""
        return identify(self.settings, self.versions["distsgd"])

    def crossing(self, target: float) -> Crossing:
        """Return where the training loss first met `target`: as looked for, or by the history.

        The history knows nothing of the updates between its points, where the loss may dip.
        """
        known = next((one for one in self.crossings if one.target == target), None)
        return known or self._crossing_of_history(target)

    def _crossing_of_history(self, target: float) -> Crossing:
        updates = self.history["update"].to_list()
        met = np.flatnonzero(self.history["loss"].to_numpy() <= target)
        if not met.size:
            return Crossing(target, None, updates[-1])
        return Crossing(target, updates[met[0]], updates[max(met[0] - 1, 0)])

    def seconds_at(self, update: int) -> float:
        """Return when `update` was applied [s], in virtual time or in the wall time of a live run.

        A lock-free run has no order: between the points of its history time is interpolated.
        """
        if self.trace.n_updates:
            return float(np.append(0.0, self.trace.seconds)[update])
        seconds = self.history["wall_seconds" if is_live(self.settings) else "seconds"]
        return float(np.interp(update, self.history["update"], seconds))

    def save(self, folder: str | Path) -> Path:
        """Write the run into `folder`, completely or not at all.

        A run that is saved there already is replaced; any other content is left alone. A live run
        is no other time the same: where `folder` cannot be written, it is kept in the folder for
        temporary files, the user's own or the current one, and the error says where.

        Parameters
        ----------
        folder : str or Path
            Folder of this run. It and its parents are made.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        ConfigError
            If the folder holds something else than a run, or cannot be written.
        """
        target = Path(folder)
        save_or_keep(self.write, target, is_unique=is_live(self.settings))
        return target

    def write(self, folder: Path) -> None:
        """Write the run as `save` does, and nowhere else if that fails."""
        check_replaceable(folder)
        with replacing(folder) as fresh:
            files = {name: content_of(partial(write_into, self)) for name, write_into in _FILES.items()}
            for name, content in files.items():
                (fresh / name).write_bytes(content)
            (fresh / "run.json").write_bytes(sealed(self._record(files)))

    def _record(self, files: Mapping[str, bytes]) -> "_Record":
        digests = {name: digest(content) for name, content in files.items()}
        own = {name: getattr(self, name) for name in _KEPT}
        return _Record(format=FORMAT, hash=self.hash, workers=self.trace.workers, files=digests, **own)


class _Record(msgspec.Struct):
    format: int
    hash: str
    status: Status
    diverged_at: int | None
    settings: Settings
    versions: dict[str, str]
    workers: int
    files: dict[str, str]
    counts: dict[str, int] = {}
    source: dict[str, Any] = {}
    crossings: tuple[Crossing, ...] = ()


_KEPT = ("status", "diverged_at", "settings", "versions", "counts", "source", "crossings")
"""Fields of a run that are those of its record."""


def load(folder: str | Path) -> Run:
    """Return the run that was saved in `folder`, with the bits that it had.

    Parameters
    ----------
    folder : str or Path
        A folder that `Run.save` has written.

    Returns
    -------
    Run
        Equal to the saved one bit for bit.

    Raises
    ------
    ConfigError
        If the folder is missing, incomplete, damaged, or of another format.
    """
    source = Path(folder)
    record = _read_record(source)
    files = {name: _checked(source / name, record.files.get(name)) for name in _FILES}
    return Run(
        x=np.load(files["parameters.npy"], allow_pickle=False),
        history=pl.read_parquet(files["history.parquet"]),
        trace=Trace(_rows(pl.read_parquet(files["trace.parquet"])), record.workers),
        **{name: getattr(record, name) for name in _KEPT},
    )


def load_as(folder: Path, name: str) -> Run:
    """Return the run in `folder`, or raise a `ConfigError` if its hash is not `name`."""
    run = load(folder)
    if run.hash != name:
        raise damaged(folder, "it holds another run")
    return run


def _read_record(folder: Path) -> _Record:
    path = folder / "run.json"
    try:
        content = read(path)
    except OSError as error:
        msg = f"{folder} holds no saved run ({path.name}: {error.strerror}); give the folder of one"
        raise ConfigError(msg) from None
    record: _Record = unsealed(content, _Record, path, FORMAT)
    if record.hash != identify(record.settings, record.versions.get("distsgd", "")):
        raise damaged(path, "its hash does not fit its settings")
    return record


def _checked(path: Path, expected: str | None) -> BytesIO:
    """Return the content of a file if it has the digest that is expected."""
    try:
        content = read(path)
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; compute it again") from None
    except OSError as error:
        raise damaged(path, error.strerror) from None
    if digest(content) != expected:
        raise damaged(path, "its digest does not fit its content")
    return BytesIO(content)


def _rows(table: pl.DataFrame) -> npt.NDArray[np.void]:
    rows = np.empty(len(table), dtype=ROW)
    for name in ROW.names or ():
        rows[name] = table[name].to_numpy()
    return rows


def check_replaceable(folder: Path) -> None:
    """Raise a `ConfigError` if `folder` holds anything else than a run, whole or damaged."""
    try:
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
        is_run = names <= {*_FILES, "run.json"} or (folder / "run.json").is_file()
    except OSError as error:
        raise unwritable(folder, error) from None
    if not is_run:
        raise ConfigError(f"{folder} exists and is not a saved run; choose another folder")


_FILES: dict[str, Callable[[Run, BytesIO], object]] = {
    "history.parquet": lambda run, file: run.history.write_parquet(file),
    "trace.parquet": lambda run, file: pl.from_numpy(run.trace.rows).write_parquet(file),
    "parameters.npy": lambda run, file: np.save(file, run.x, allow_pickle=False),
}
"""What writes a run's files, beside its record."""
