import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from small_setup import DOWNPOUR, QUADRATIC, SERIAL, TOML, setup

import distsgd as ds
from distsgd import ConfigError, DistsgdWarning
from distsgd.errors import check_seed
from distsgd.experiment.file import parse
from distsgd.report.numbers.summary import summarise
from distsgd.report.warnings import warnings

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 3)), np.arange(60) % 2
SMALL = ds.problems.logistic(ds.data.from_arrays(X, Y, test=0))
UNEQUAL = ds.problems.logistic(ds.data.from_arrays(X * [1, 1000, 1], Y, test=0))
SLOW_LINK = ds.Fleet(2, latency=200.0)
DOUBTS = {
    "batch": ({"problem": SMALL, "batch": 61}, "batch 61 is larger than the 60 samples of logis"),
    "workers": (
        {"fleets": {"big": ds.Fleet(64)}, "budget": {"gradients": 10}},
        "fleet 'big': a budget of 10 gradients is less than one for each of 64 workers",
    ),
    "epochs": (
        {"problem": SMALL, "fleets": {"big": ds.Fleet(64)}, "budget": {"epochs": 0.5}},
        "a budget of 1 gradients is less than one for each of 64 workers",
    ),
    "updates": ({"budget": {"updates": 1}}, "a budget of 1 gradients is less than one for each"),
    "parts": (
        {"problem": SMALL, "fleets": {"f": ds.Fleet(4)}, "partition": ds.Partition("sharded")},
        "sharded parts of 4 workers have about 15 samples each, fewer than a batch of 32",
    ),
    "latency": ({"fleets": {"far": SLOW_LINK}}, "latency 200 s is 200 times the mean time of a st"),
    "service": ({"fleets": {"busy": ds.Fleet(2, service=200.0)}}, "service 200 s is 200 times the"),
    "bandwidth": ({"fleets": {"thin": ds.Fleet(2, bandwidth=0.01)}}, "message of 16 bytes takes 1.6e\\+03 s"),
    "target": ({"target": 2.0}, "target loss 2 is met before the first update: quadratic starts"),
    "scales": ({"problem": UNEQUAL}, 'by a factor of .* \\(feature 1 against .* scale="standard"'),
}


@pytest.mark.parametrize(("changes", "says"), DOUBTS.values(), ids=DOUBTS)
def test_what_is_hardly_meant_is_a_warning(changes: dict[str, object], says: str) -> None:
    """A setting that is possible and hardly meant is a sentence in settings and report."""
    found = setup(**changes)
    assert [bool(re.search(says, text)) for text in found.warnings] == [True]
    assert found.settings["warnings"] == found.warnings
    summary = summarise([], found.settings, is_complete=True)
    assert warnings(summary) == [f"Warning: {found.warnings[0]}."]


def test_what_is_meant_is_no_warning() -> None:
    """Usual settings, and rounds of all workers with few updates, are not doubted."""
    rounds = {"rounds": ds.algorithms.synchronous(0.1)}
    for changes in (
        {},
        {"algorithms": rounds, "budget": {"updates": 1}},
        {"budget": {"seconds": 1.0}},
        {"algorithms": {"one": SERIAL}, "fleets": {"f": ds.Fleet(64)}},
        {"target": 0.1},
        {"problem": SMALL},
        {"fleets": {"old": ds.stale_reads(ds.exponential(4.0))}},
        {"fleets": {"instant": ds.Fleet(2, ds.constant(0.0), latency=9.0)}},
    ):
        assert setup(**changes).warnings == []
        assert "warnings" not in setup(**changes).settings


@pytest.mark.parametrize("engine", ["simulate", "compare"])
def test_each_doubt_is_shown_once(engine: str) -> None:
    """A simulation warns, and a comparison warns once for all of its runs."""
    runs: dict[str, Callable[[], object]] = {
        "simulate": lambda: ds.simulate(DOWNPOUR, SMALL, ds.Fleet(2), updates=9, batch=99),
        "compare": lambda: ds.compare(DOWNPOUR, SMALL, ds.Fleet(2), updates=9, batch=99),
    }
    with pytest.warns(DistsgdWarning) as caught:
        runs[engine]()
    assert [one.filename for one in caught] == [__file__]


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "algorithm not called": (
        lambda: setup(algorithms={"a": ds.algorithms.downpour}),
        r"algorithms\['a'\] must .* downpour was not called; write downpour\(learning_rate\)",
    ),
    "alone": (
        lambda: ds.simulate(ds.algorithms.serial, QUADRATIC, ds.Fleet(1), updates=1),
        "algorithm must .* serial was not called",
    ),
    "law not called": (lambda: ds.Fleet(2, ds.exponential), r"exponential was not called; write exponential\(me"),
    "data not called": (lambda: ds.problems.softmax(ds.data.digits), "digits was not called"),
    "fleet not called": (lambda: setup(fleets={"a": ds.Fleet}), r"write Fleet\(workers\)"),
    "text as fleet": (lambda: setup(fleets="8"), r"distsgd.Fleet\(workers=8\), not '8'"),
    "a list of algorithms": (
        lambda: ds.compare([SERIAL, DOWNPOUR], QUADRATIC, ds.Fleet(2), updates=9),
        r'algorithms must be a mapping, not a list; write {"serial": ..., "downpour": ...}',
    ),
    "a list of fleets": (lambda: setup(fleets=[ds.Fleet(2)]), r'write {"fleet 1": ...}'),
    "a list of problems": (lambda: setup(problem=[QUADRATIC]), r'write {"quadratic": ...}'),
    "case": (lambda: setup(algorithms={"a": SERIAL, "A ": SERIAL}), "'a' and 'A ' differ in nothing but"),
    "no text": (lambda: setup(algorithms={1: SERIAL}), "labels of algorithms must be text, not 1"),
    "empty": (lambda: setup(fleets={" ": ds.Fleet(1)}), "labels of fleets must be text"),
    "pair as range": (
        lambda: ds.Tunable(ds.algorithms.serial, {"learning_rate": (0.01, 1)}),
        r"range of learning_rate must be a value such as distsgd.Range\(0.01, 1\), not \(0.01, 1\)",
    ),
    "unknown range": (
        lambda: ds.Tunable(ds.algorithms.serial, {"learning_rat": ds.Range(0.01, 1)}),
        "unknown tuned parameter 'learning_rat'; did you mean 'learning_rate'",
    ),
    "made already": (lambda: ds.Tunable(SERIAL, {"learning_rate": ds.Range(0.01, 1)}), "make must be .* functi"),
    "no ranges": (lambda: ds.Tunable(ds.algorithms.serial, ds.Range(0.1, 1)), "ranges must be"),
    "swapped": (lambda: ds.Tuning(low=1.0, high=0.1), r"tuning.high must be > low \(1\), not 0.1"),
    "seeds twice": (lambda: setup(seeds=[3, 0, 3]), "seeds must differ, but 3 is given twice"),
    "tuning twice": (lambda: ds.Tuning(seeds=[9, 9]), "tuning.seeds must differ, but 9 is given"),
    "both": (lambda: ds.Fleet(2, speeds=[1, 2], slowdown=[1, 2]), "speeds.*slowdown.*not both"),
    "slowdown": (lambda: ds.Fleet(2, slowdown=[1, 0]), r"slowdown\[1\] must be > 0"),
    "half a worker": (lambda: ds.Fleet(8.5), "workers must be a whole number >= 1, not 8.5"),
}


@pytest.mark.parametrize(("make", "says"), REFUSED.values(), ids=REFUSED)
def test_a_value_of_a_wrong_kind_is_a_sentence(make: Callable[[], object], says: str) -> None:
    """What cannot be meant is refused in a sentence that says what to write."""
    with pytest.raises(ConfigError, match=says):
        make()


def test_single_objects_get_their_names() -> None:
    """A bare algorithm, tunable or problem is called by its name, a bare fleet "fleet"."""
    ranges = {"learning_rate": ds.Range(0.1, 0.4)}
    for algorithm in (SERIAL, ds.Tunable(ds.algorithms.serial, ranges)):
        found = setup(algorithms=algorithm, fleets=ds.Fleet(2))
        assert found.places == [("quadratic", "fleet", "serial")]


def test_whole_floats_are_counts_everywhere() -> None:
    """8.0 is 8 in Python and in TOML: settings and hashes are those of the whole number."""
    runs = [
        ds.simulate(
            ds.algorithms.downpour(0.1, n_push=number(1)),
            SMALL,
            ds.Fleet(number(2)),
            updates=number(8),
            batch=number(4),
            seed=number(1),
            evaluations=number(2),
        )
        for number in (int, float)
    ]
    assert runs[0].hash == runs[1].hash
    whole = setup(seeds=2, batch=4, evaluations=2)
    for seeds in (2.0, np.int64(2), np.arange(2), [0.0, 1.0]):
        given = setup(seeds=seeds, batch=4.0, evaluations=2.0, budget={"updates": 20.0})
        assert repr(given.settings) == repr(whole.settings)
    assert ds.Live(workers=2.0, shards=1.0, staleness=3.0) == ds.Live(2, 1, 3)
    assert repr(ds.Tuning(trials=7.0)) == repr(ds.Tuning())


def test_whole_floats_are_counts_in_toml() -> None:
    """Any whole number of a file may be written with a point; half a number may not."""
    points = re.sub(r"(\d+)(?=[\],\n])", r"\1.0", TOML).replace("0.1.0", "0.1")
    assert "workers = 2.0" in points
    assert repr(parse(points, "x").build().settings) == repr(parse(TOML, "x").build().settings)
    with pytest.raises(ConfigError, match=r"(?i)expected int.*workers"):
        parse(TOML.replace("workers = 2", "workers = 2.5"), "x").build()


@pytest.mark.parametrize("factor", [0.25, 1.0, 4.0])
def test_slowdown_is_the_inverse_of_speeds(factor: float) -> None:
    """A fleet with slowdowns is the fleet whose speeds are their inverses, in files as well."""
    slow = ds.Fleet(2, slowdown=[1.0, factor])
    assert slow == ds.Fleet(2, speeds=[1.0, 1 / factor])
    text = TOML.replace("workers = 2", f"workers = 2\nslowdown = [1, {factor}]")
    assert parse(text, "x").build().fleets["m"] == slow
    alone = ds.Fleet(1, slowdown=[factor])
    assert ds.simulate(SERIAL, QUADRATIC, alone, updates=3).trace.seconds[-1] == 3 * factor


def test_standard_scale_of_dense_data() -> None:
    """Scaled training columns have mean 0 and deviation 1, and test rows follow them."""
    table = X * [1, 1000, 0] + [0, 5, 3]
    plain, even = (ds.data.from_arrays(table, Y, scale=scale) for scale in (None, "standard"))
    np.testing.assert_allclose(even.x.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(even.x.std(axis=0), [1, 1, 0])
    moved = (plain.test_x - plain.x.mean(axis=0))[:, :2] / plain.x.std(axis=0)[:2]
    np.testing.assert_allclose(even.test_x[:, :2], moved)
    assert even.digest != plain.digest
    assert (plain.scales.ratio > 100, even.scales.ratio < 2) == (True, True)


def test_standard_scale_of_sparse_data(tmp_path: Path) -> None:
    """Scaled sparse columns reach 1 in training, and what is 0 stays 0; files have it too."""
    table = scipy.sparse.csr_matrix(np.where(X > 0, X * [1, 1000, 1], 0.0))
    for data in (
        ds.data.from_arrays(table, Y, scale="standard"),
        ds.data.svmlight(_written(tmp_path, table), scale="standard"),
    ):
        assert isinstance(data.x, ds.data.Sparse)
        np.testing.assert_array_equal(data.x.dense().max(axis=0), 1.0)
    with pytest.raises(ConfigError, match="unknown scale 'standart'; did you mean 'standard'"):
        ds.data.from_arrays(table, Y, scale="standart")


def _written(folder: Path, table: scipy.sparse.csr_matrix) -> Path:
    rows = zip(table.toarray(), Y, strict=True)
    lines = (f"{label} " + " ".join(f"{c + 1}:{v!r}" for c, v in enumerate(row.tolist()) if v) for row, label in rows)
    path = folder / "rows.svm"
    path.write_text("\n".join(lines))
    return path


def test_labels_of_text_are_classes() -> None:
    """Text labels are numbered by the alphabet, those of the test set as well, and keep names."""
    names = np.array(["no", "yes"])[Y]
    data = ds.data.from_arrays(X, names, test_x=X[:5], test_y=names[:5].tolist())
    assert data.classes == ("no", "yes")
    assert data.y.tolist() == Y.tolist()
    assert data.test_y.tolist() == Y[:5].tolist()
    assert ds.data.from_arrays(X, names).classes == data.classes
    assert ds.problems.softmax(data).dimension == 8
    with pytest.raises(ConfigError, match="unknown class in test_y: 'yse'; did you mean 'yes'"):
        ds.data.from_arrays(X, names, test_x=X[:1], test_y=["yse"])


def test_a_column_of_labels_will_do() -> None:
    """Labels of the shape (n, 1) are n labels."""
    column = ds.data.from_arrays(X, Y[:, None])
    assert column.digest == ds.data.from_arrays(X, Y).digest


def test_a_column_of_text_is_named() -> None:
    """A table with text is refused with the column, by its name if it has one."""

    class Frame(list):
        columns = ("size", "colour")

    rows = [[1.0, "red"], [2.0, "blue"]]
    with pytest.raises(ConfigError, match="column 1 has values such as 'red'; encode it, for ex"):
        ds.data.from_arrays(rows, [0, 1])
    with pytest.raises(ConfigError, match="column 'colour' has values such as 'red'"):
        ds.data.from_arrays(Frame(rows), [0, 1])


def test_the_largest_seed_is_a_seed() -> None:
    """A whole number below 2**63 is a seed, though as a float it is that bound."""
    assert check_seed(2**63 - 1) == 2**63 - 1
    with pytest.raises(ConfigError, match=r"seed must be < 2\*\*63"):
        check_seed(2**63)
