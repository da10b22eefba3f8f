import gzip
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from small_setup import TOML

import distsgd as ds
from distsgd import ConfigError
from distsgd.data import csv, frame, npy, npz, parquet
from distsgd.experiment.file import read

ROOT = Path(__file__).parent.parent
LETTERS = ["a", "b", "c"]


def table(n_rows: int = 60) -> pl.DataFrame:
    """Return numbers that need all their digits, truth values and labels of text."""
    rng = np.random.default_rng(3)
    columns = {"width": rng.normal(size=n_rows), "count": rng.integers(-5, 5, n_rows), "ok": rng.random(n_rows) < 0.5}
    return pl.DataFrame(columns | {"kind": np.array(LETTERS)[rng.integers(0, 3, n_rows)]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the same samples in files of each kind."""
    known = table()
    known.write_csv(tmp_path / "rows.csv")
    known.write_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress((tmp_path / "rows.csv").read_bytes()))
    x, y = known.drop("kind").cast(pl.Float64).to_numpy(), known["kind"].to_numpy().astype(str)
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    return tmp_path


@pytest.mark.parametrize("scale", [None, "standard"])
def test_every_reader_gives_the_same_data(folder: Path, scale: str | None) -> None:
    """The same samples in CSV, Parquet, NPZ, NPY and frames are the same data, bit for bit."""
    keys = {"scale": scale, "test": 0.25, "seed": 7}
    known = [
        csv(folder / "rows.csv", "kind", **keys),
        csv(str(folder / "rows.csv.gz"), label="kind", **keys),
        parquet(folder / "rows.parquet", "kind", **keys),
        frame(table(), "kind", **keys),
        npz(folder / "rows.npz", **keys),
        npy(folder / "x.npy", folder / "y.npy", **keys),
    ]
    assert len({one.digest for one in known}) == 1
    assert {one.classes for one in known} == {tuple(LETTERS)}
    assert (known[0].features, known[0].samples, len(known[0].test_y)) == (3, 45, 15)
    assert np.allclose(known[0].x.std(axis=0), 1.0, rtol=1e-12) == (scale == "standard")


def test_a_table_of_pandas_is_a_table() -> None:
    """A table of pandas, with columns of each of its kinds, is that of Polars, bit for bit."""
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    plain = pandas.DataFrame(table().to_dict(as_series=False))
    kinds = plain.astype({"kind": "category", "count": "Int64", "ok": "boolean", "width": object})
    expected = frame(table(), "kind").digest
    assert {frame(one, "kind").digest for one in (plain, kinds)} == {expected}
    numbered = plain.rename(columns={"kind": 4})
    assert frame(numbered, "4").digest == expected
    with pytest.raises(ConfigError, match=r"table must have columns of different names, not \['width', 'width'\]"):
        frame(plain[["width", "width"]], "width")
    with pytest.raises(ConfigError, match=r"row 0 \(counted from 0\), column 'count' is empty or NaN"):
        frame(kinds.assign(count=pandas.array([None] * 60, dtype="Int64")), "kind")


def test_features_have_the_order_that_is_given(folder: Path) -> None:
    """Features are the columns that are named, in that order; labels may be any numbers."""
    data = csv(folder / "rows.csv", "width", features=["ok", "count"], test=0.0)
    known = table()
    assert np.array_equal(data.x, known.select("ok", "count").cast(pl.Float64).to_numpy())
    assert np.array_equal(data.y, known["width"].to_numpy())


def test_test_samples_have_files_of_their_own(folder: Path) -> None:
    """Test samples come from their own file or arrays, with the classes of the training samples."""
    known = table()
    (known.head(10).select("kind", "ok", "width", "count")).write_csv(folder / "aside.csv")
    x, y = np.load(folder / "x.npy"), np.load(folder / "y.npy")
    np.savez(folder / "both.npz", a=x, b=y, test_x=x[:10], test_y=y[:10])
    np.savez(folder / "named.npz", x=x, y=y, c=x[:10], d=y[:10])
    np.save(folder / "x10.npy", x[:10])
    np.save(folder / "y10.npy", y[:10])
    aside = {"test_path": folder / "x10.npy", "test_label_path": folder / "y10.npy"}
    every = [
        csv(folder / "rows.csv", "kind", test_path=folder / "aside.csv"),
        frame(known, "kind", test_table=known.head(10)),
        npz(folder / "both.npz", x="a", y="b"),
        npz(folder / "named.npz", test_x="c", test_y="d"),
        npy(folder / "x.npy", folder / "y.npy", **aside),
    ]
    assert len({one.digest for one in every}) == 1
    assert (every[0].samples, len(every[0].test_y)) == (60, 10)


def test_an_experiment_names_a_table(folder: Path) -> None:
    """A file beside an experiment is its data, with the keys that the reader has in Python."""
    text = 'name = "softmax"\ndata = {name = "csv", path = "rows.csv", label = "kind", scale = "standard", test = 0.5}'
    path = folder / "mine.toml"
    path.write_text(TOML.replace('name = "quadratic"\ncurvature = [1, 2]', text))
    expected = csv(folder / "rows.csv", "kind", scale="standard", test=0.5)
    assert read(path).build(folder).problem.data.digest == expected.digest
    path.write_text(path.read_text().replace("label =", "labels ="))
    with pytest.raises(ConfigError, match=r"unknown key in \[problem.data\]: 'labels'; did you mean 'label'"):
        read(path).build(folder)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b,y\n1,2,p\n3,four,q\n", "line 3, column 'b' must be a finite number like the others, not 'four'"),
        ("a,b,y\n1,2,p\n3,inf,q\n", "line 3, column 'b' must be a finite number like the others, not 'inf'"),
        ("a,b,y\n1,2,p\n\n\n3,,q\n", "line 5, column 'b' is empty or NaN; fill it in"),
        ("a,b,y\n1,2,p\n3,nan,q\n", "line 3, column 'b' is empty or NaN"),
        ("a,b,y\n1,2,p\n3, ,q\n", "line 3, column 'b' is empty or NaN"),
        ("a,b,y\n1,2,p\n3\n", "line 3, column 'b' is empty or NaN"),
        ("a,b,y\n1,2,p\n3,4,\n", "line 3, column 'y' is empty or NaN"),
        ("a,b,y\n1,2,1\n3,4,2\n5,6,x\n", "line 4, column 'y' must be a finite number like the others, not 'x'"),
        ('a,b,y\n"1",2,"p\nq"\n3,?,q\n', "line 4, column 'b' must be a finite number like the others, not '?'"),
        ("a,b,y\n1,Rome,p\n3,Bonn,q\n", "line 2, column 'b' is text, 'Rome', like the whole column; make numbers"),
        ("a,b,y\n1,2,p\n1,2,3,p\n", "line 3 has 4 cells, and line 1 3 names"),
        ("a,b,z\n1,2,p\n", "unknown column of {path}: 'y'; known: a, b, z"),
        ("a,b,Y\n1,2,p\n", "unknown column of {path}: 'y'; "),
        ("a;b;y\n1;2;p\n", "unknown column of {path}: 'y'; known: a;b;y"),
        ("a,b,y\n", "{path} must have at least one sample, but has none"),
        ("y\n1\n", "features must be one or more columns of {path} besides the label 'y', not []"),
        ("", "{path} must be a file that can be read: empty CSV"),
        ("a,a ,y\n1,2,p\n", "{path} must be a file that can be read: "),
    ],
)
def test_a_cell_that_is_wrong_is_named(text: str, says: str, tmp_path: Path) -> None:
    """What is wrong in a CSV file is told with its line and column, and what to do."""
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(says.format(path=path))):
        csv(path, "y")


def test_numbers_are_read_as_people_write_them(tmp_path: Path) -> None:
    """Spaces around cells, another separator, blank lines and truth values are no mistakes."""
    (tmp_path / "rows.csv").write_text('a; b ;ok ;y\n 1 ;"2";TRUE; p\n\n3;4e0;false;q \n')
    data = csv(tmp_path / "rows.csv", "y", separator=";", test=0.0)
    assert (data.x.tolist(), data.y.tolist(), data.classes) == ([[1, 2, 1], [3, 4, 0]], [0, 1], ("p", "q"))
    with pytest.raises(ConfigError, match="separator must be a single byte such as ';', not '--'"):
        csv(tmp_path / "rows.csv", "y", separator="--")


Wrong = Callable[[Path], object]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda folder: csv(folder / "no.csv", "kind"), r"no.csv must be a file that can be read, but there is none"),
        (lambda folder: parquet(folder, "kind"), "must be a file that can be read, but there is none"),
        (lambda folder: parquet(folder / "rows.csv", "kind"), r"rows.csv must be a file that can be read: "),
        (lambda folder: parquet(folder / "rows.parquet", "kimd"), "unknown column of .*: 'kimd'; did you mean 'kind'"),
        (lambda folder: csv(folder / "rows.csv", "kind", features=["with"]), "'with'; did you mean 'width'"),
        (lambda folder: csv(folder / "rows.csv", "kind", features=["kind"]), r"besides the label 'kind', not \['kind'"),
        (lambda folder: csv(folder / "rows.csv", "kind", test=1.0), "test must be >= 0 and < 1"),
        (lambda folder: frame([[1.0]], "kind"), "table must be a value such as a DataFrame of pandas or Polars, not"),
        (
            lambda folder: frame(table().with_columns(width=pl.date(2026, 1, 1)), "kind"),
            "column 'width' holds Date; ma",
        ),
        (lambda folder: npz(folder / "no.npz"), "no.npz must be a file of numbers or text .*: No such file"),
        (lambda folder: npz(folder / "rows.npz", y="labels"), "unknown array of .*rows.npz: 'labels'; known: x, y"),
        (lambda folder: npz(folder / "rows.npz", test_x="x_test"), "unknown array of .*: 'x_test'"),
        (lambda folder: npz(folder / "x.npy"), "x.npy must be read by npy if it holds one array"),
        (
            lambda folder: npy(folder / "rows.npz", folder / "y.npy"),
            "must be read by npy if .* by npz if it holds several",
        ),
        (lambda folder: npy(folder / "rows.csv", folder / "y.npy"), "rows.csv must be a file of numbers or text"),
        (lambda folder: npy(folder / "y.npy", folder / "x.npy"), "y.npy: x must be rows of numbers"),
    ],
)
def test_a_file_that_does_not_fit_is_told(wrong: Wrong, says: str, folder: Path) -> None:
    """A file that is missing or of another kind, and a name that it lacks, are told."""
    with pytest.raises(ConfigError, match=says):
        wrong(folder)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    """Arrays of objects are refused: they would run code."""
    np.save(tmp_path / "x.npy", np.array([[1, "a"]], dtype=object))
    np.savez(tmp_path / "x.npz", x=np.array([[1, "a"]], dtype=object), y=[1])
    for read_one in (lambda: npy(tmp_path / "x.npy", tmp_path / "x.npy"), lambda: npz(tmp_path / "x.npz")):
        with pytest.raises(ConfigError, match="Object arrays cannot be loaded"):
            read_one()


def test_files_that_are_cut_off_are_told(folder: Path) -> None:
    """A file of which a part is missing is no data."""
    for name, one in {"x.npy": npz, "rows.npz": npz, "rows.parquet": lambda path: parquet(path, "kind")}.items():
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ConfigError, match=re.escape(name)):
            one(folder / name)


def test_test_samples_of_an_unknown_class_are_told() -> None:
    """A class that no training sample has is named, with the nearest."""
    aside = table().head(3).with_columns(kind=pl.lit("d"))
    with pytest.raises(ConfigError, match="unknown class in test_y: 'd'; known: a, b, c"):
        frame(table(), "kind", test_table=aside)


def test_readers_are_cheap_to_import() -> None:
    """Whoever reads no table imports no Polars: it starts threads, and workers fork."""
    code = "import distsgd.data, sys; print('polars' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_example_runs() -> None:
    """The example of a table of pandas prints its classes, and what was learnt."""
    pytest.importorskip("pandas", reason="needs pandas")
    done = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "scripts" / "examples" / "pandas_table.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert re.search(
        r"16 features, grower 0, grower 1, grower 2\ntraining loss 0\.\d+, accuracy (1.00|0.9\d)", done.stdout
    )
    assert ds.data.frame is frame
