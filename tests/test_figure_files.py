from pathlib import Path

import polars as pl
import pytest
from small_comparison import small, small_pictures

from distsgd.errors import ConfigError
from distsgd.report import figure_files
from distsgd.report.pictures.charts import Picture

BEGINNINGS = {"svg": b"<svg", "png": b"\x89PNG", "pdf": b"%PDF"}


@pytest.fixture(autouse=True)
def _all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the pictures of the small comparison once."""
    monkeypatch.setattr(figure_files, "pictures", lambda *_: small_pictures())


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> list[Picture]:
    """Return the only two pictures that are written: one has lines, the other a lane per algorithm.

    All of them take a minute.
    """
    kept = [one for one in small_pictures() if one.name in {"speed-up", "ratios"}][:2]
    monkeypatch.setattr(figure_files, "pictures", lambda *_: kept)
    return kept


def test_a_file_per_view(tmp_path: Path) -> None:
    """Every view of every picture has a file of its own, named after what it shows."""
    written = figure_files.write(*small(), tmp_path / "new" / "folder", "csv")
    assert len(set(written)) == sum(len(one.views) for one in small_pictures())
    assert sorted(written) == sorted((tmp_path / "new" / "folder").iterdir())
    names = {path.name for path in written}
    assert {"loss-2-machines-seconds.csv", "timeline-6-machines-together.csv"} <= names


@pytest.mark.parametrize("kind", BEGINNINGS)
def test_a_picture_is_written_as_what_it_is_called(
    two: list[Picture], tmp_path: Path, kind: figure_files.Format
) -> None:
    """A file has the format that its name promises, and pictures are not empty."""
    written = figure_files.write(*small(), tmp_path, kind)
    assert len(written) == sum(len(one.views) for one in two)
    for path in written:
        assert path.read_bytes().startswith(BEGINNINGS[kind])
        assert path.stat().st_size > 2000


def test_a_picture_on_paper_names_its_algorithms(two: list[Picture], tmp_path: Path) -> None:
    """A picture without the page around it has a title, and names every algorithm that it shows."""
    for path in figure_files.write(*small(), tmp_path, "svg"):
        text = path.read_text()
        shown = two[0] if path.stem.startswith(two[0].name) else two[1]
        assert shown.title in text
        # A vertical axis that names the algorithms is their legend.
        assert ("role-legend" in text) == (shown.name == "speed-up")
        (table,) = [view.tables for view in shown.views.values()][:1]
        names = {row["algorithm"] for row in next(iter(table.values()))}
        assert all(name.replace("&", "&amp;").split("<")[0] in text for name in names)


def test_tables_hold_what_is_drawn(tmp_path: Path) -> None:
    """CSV and Parquet hold the same rows and columns as the picture."""
    for kind, read in (("csv", pl.read_csv), ("parquet", pl.read_parquet)):
        figure_files.write(*small(), tmp_path, kind)  # type: ignore[arg-type] # a key of FORMATS
        (loss,) = (one for one in small_pictures() if one.case and one.name == "loss" and "2" in one.case[1])
        found = read(tmp_path / f"loss-2-machines-epochs.{kind}")
        assert found.to_dicts() == loss.views["epochs"].tables["bands"]


def test_names_that_look_alike_stay_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fleets whose names differ in punctuation only do not share a file."""
    alike = [one._replace(case=("", fleet)) for one in small_pictures() for fleet in ("a!", "a?")]
    monkeypatch.setattr(figure_files, "pictures", lambda *_: alike)
    written = figure_files.write(*small(), tmp_path, "csv")
    assert len(set(written)) == len(written)


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    """A kind that cannot be written is answered with those that can."""
    with pytest.raises(ConfigError, match="did you mean 'svg'"):
        figure_files.write(*small(), tmp_path, "svgz")  # type: ignore[arg-type] # the mistake itself
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write"):
        figure_files.write(*small(), tmp_path / "file", "csv")
