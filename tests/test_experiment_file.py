import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd import ConfigError, fixed_staleness
from distsgd.algorithms import registry
from distsgd.experiment.file import Experiment, builtin, parse, read
from distsgd.experiment.runs import NOWHERE, run_jobs
from distsgd.experiment.setup import Job
from distsgd.experiment.tables import construct
from distsgd.experiment.values import Range
from distsgd.order.fleet import Failures, Fleet, StaleReads
from distsgd.order.laws import exponential, lognormal

SMALL = """
updates = 3
seeds = [4, 7]

[problem]
name = "quadratic"
curvature = [1.0, 2.0]

[algorithms.mine]
algorithm = "downpour"
learning_rate = 0.1
n_push = 1
local_rate = 0.2

[fleets.machines]
workers = 2
compute = "lognormal(2.0, 0.5)"
latency = 0.1
failures = {mean_time = 100.0, repair = 5.0}

[fleets.exact]
staleness = 3

[fleets.sampled]
stale_reads = "exponential(4.0)"
seed = 9
"""


def test_a_file_builds_what_it_says() -> None:
    """Every table of a file becomes the object that the same arguments make in Python."""
    setup = parse(SMALL, "small.toml").build()
    machines = Fleet(2, lognormal(2.0, 0.5), latency=0.1, failures=Failures(100.0, 5.0))
    assert setup.fleets == {
        "machines": machines,
        "exact": fixed_staleness(3),
        "sampled": StaleReads(exponential(4.0), 9),
    }
    alone = registry["downpour"].constructor(0.1, local_rate=0.2)
    assert setup.algorithms["mine"].hyper == alone.hyper
    assert setup.problem.dimension == 2
    assert (setup.config.budget, setup.seeds) == (("updates", 3), (4, 7))


def test_a_law_per_worker() -> None:
    """A list of laws gives each worker its own."""
    text = SMALL.replace('"lognormal(2.0, 0.5)"', '["constant(1.0)", "exponential(2.0)"]')
    fleet = parse(text, "small.toml").build().fleets["machines"]
    assert [str(law) for law in fleet.laws] == ["constant(1.0)", "exponential(2.0)"]


def test_the_built_in_experiment_uses_every_algorithm() -> None:
    """The built-in comparison tunes every algorithm, on two problems, stalenesses 0, 4 and 16."""
    setup = builtin().build()
    assert {algorithm.lowest.name for algorithm in setup.tunables.values()} == set(registry)
    assert [fixed_staleness(tau) in setup.fleets.values() for tau in (0, 4, 16)] == [True] * 3
    assert [one.settings["name"] for one in setup.problems.values()] == ["softmax", "network"]
    assert len(setup.seeds) == 5


@pytest.mark.quick
@pytest.mark.parametrize(
    ("wrong", "right", "says"),
    [
        ("workerz = 2", "workers = 2", r"\[fleets.machines\].*'workerz'.*'workers'"),
        ("n_puch = 2", "n_push = 1", r"\[algorithms.mine\].*'n_puch'.*'n_push'"),
        ('"downpoor"', '"downpour"', "'downpoor'.*'downpour'"),
        ('"quadratik"', '"quadratic"', "'quadratik'.*'quadratic'"),
        ("curvatur =", "curvature =", r"\[problem\].*'curvatur'.*'curvature'"),
        ('"lognormol(', '"lognormal(', r"\[fleets.machines\].*'lognormol'.*'lognormal'"),
        ('"exponentail(', '"exponential(', "'exponentail'.*'exponential'"),
        ("updatez = 3", "updates = 3", "small.toml.*'updatez'.*'updates'"),
        ("repairs = 5.0", "repair = 5.0", "repairs"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_nearest(wrong: str, right: str, says: str) -> None:
    """A misspelt key or name is an error that says where it stands and what is nearest to it."""
    with pytest.raises(ConfigError, match=says):
        parse(SMALL.replace(right, wrong), "small.toml").build()


@pytest.mark.quick
@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        ("updates = 3", "", "exactly one of updates, gradients, epochs, seconds .* not none"),
        ("updates = 3", "updates = 3\nepochs = 1.0", "exactly one of .* not updates and epochs"),
        ("updates = 3", "updates = 0", "updates must be a whole number >= 1, not 0"),
        ("updates = 3", 'updates = "3"', "(?i)expected.*int.*str.*updates"),
        ("[4, 7]", "0", "seeds must be a whole number >= 1, not 0"),
        ("[4, 7]", "[]", "number of seeds"),
        ("[4, 7]", "[-1]", "seed must be a whole number >= 0"),
        ("rate = 0.1", "rate = -0.1", r"\[algorithms.mine\] learning_rate must be > 0.* not -0.1"),
        ("rate = 0.1", "rate = nan", r"\[algorithms.mine\] learning_rate must be"),
        ("n_push = 1", "n_push = 0", r"\[algorithms.mine\] .*n_push must be"),
        ("learning_rate = 0.1", "", r"\[algorithms.mine\] needs the key 'learning_rate'"),
        ('algorithm = "downpour"', "", r"\[algorithms.mine\] needs the key 'algorithm'"),
        ("workers = 2", "workers = 0", r"\[fleets.machines\] workers must be"),
        ("workers = 2", "", r"(?i)\[fleets.machines\].*missing.*workers"),
        ("latency = 0.1", "latency = -0.1", r"\[fleets.machines\] latency must be"),
        ("staleness = 3", "staleness = -3", r"\[fleets.exact\] staleness must be"),
        ("[problem]", "[problem", "small.toml is not valid TOML"),
        ("rate = 0.1", 'rate = "tume"', r"\[algorithms.mine\] learning_rate must be a number"),
        ("n_push = 1", 'n_push = "tune"', r"n_push = \"tune\" needs a range"),
        ("n_push = 1", "n_push = {low = 4, high = 1}", "high must be > low .* the grid is empty"),
        ("n_push = 1", "n_puch = {low = 1, high = 4}", "'n_puch'.*'n_push'"),
        ("n_push = 1", "n_push = {low = 1, hihg = 4}", "'hihg'.*'high'"),
        ("[problem]", "[tuning]\ntrials = 0\n[problem]", "tuning.trials must be"),
        ("[problem]", "[tuning]\ntrails = 3\n[problem]", "trails"),
        ("[problem]", "target = {reference = 'me'}\n[problem]", "unknown target.reference 'me'"),
        ("[problem]", "target = {reference = 'mine', fleet = 'x'}\n[problem]", "target.fleet 'x'"),
        ("[problem]", "target = {factor = 2.0}\n[problem]", "reference"),
        ("[algorithms.mine]", "[algorithms.mine]\n[algorithms.mine]", "Cannot declare .* twice"),
    ],
)
def test_a_wrong_value_is_named(right: str, wrong: str, says: str) -> None:
    """A key that is missing, or a value out of bounds, of a wrong type or not to tune, is named."""
    with pytest.raises(ConfigError, match=says):
        parse(SMALL.replace(right, wrong, 1), "small.toml").build()


@given(st.text(string.ascii_lowercase + "_", min_size=1, max_size=12))
def test_no_unknown_key_is_ignored(key: str) -> None:
    """Whatever key is added to the top of a file, either it is known or it is an error."""
    known = Experiment.__struct_fields__
    if key not in known:
        with pytest.raises(ConfigError, match="unknown key"):
            parse(f"{key} = 1\n{SMALL}", "small.toml")


def test_several_problems_have_labels() -> None:
    """Problems in tables of their own are known by their labels; a single one by its name."""
    text = SMALL.replace("[problem]", "[problems.flat]")
    text += '[problems.steep]\nname = "quadratic"\ncurvature = [9.0]\n'
    setup = parse(text, "small.toml").build()
    assert {name: one.dimension for name, one in setup.problems.items()} == {"flat": 2, "steep": 1}
    assert list(parse(SMALL, "small.toml").build().problems) == ["quadratic"]
    assert list(setup.settings["problems"]) == ["flat", "steep"]


@pytest.mark.parametrize(("right", "wrong"), [("[problem]", "[problems.a]\n[problem]"), ("[problem]", "[problems]")])
def test_one_kind_of_problem_is_needed(right: str, wrong: str) -> None:
    """Both kinds of tables of problems, or a label that has none, is an error."""
    with pytest.raises(ConfigError, match=r"exactly one of \[problem\]|Expected `?object"):
        parse(SMALL.replace(right, wrong), "small.toml").build()


def test_what_is_to_be_tuned() -> None:
    """A learning rate of "tune" has the range of [tuning], and a table is a range of its own."""
    text = SMALL.replace("learning_rate = 0.1", 'learning_rate = "tune"')
    text = text.replace("n_push = 1", "n_push = {low = 1, high = 4}")
    tunable = parse(text + "[tuning]\nhigh = 2.0\n", "small.toml").build().tunables["mine"]
    assert tunable.ranges == {"learning_rate": Range(0.01, 2.0), "n_push": Range(1, 4)}
    built = tunable.make(learning_rate=0.5, n_push=2)
    assert (built.hyper.learning_rate, built.hyper.local_rate) == (0.5, 0.2)


@pytest.mark.parametrize(
    ("change", "fleet"),
    [
        ("fleets.exact.staleness=5", fixed_staleness(5)),
        ('fleets.sampled.stale_reads="exponential(2.0)"', StaleReads(exponential(2.0), 9)),
        ("fleets.sampled.stale_reads=exponential(2.0)", StaleReads(exponential(2.0), 9)),
        ('fleets."new one".staleness = 1', fixed_staleness(1)),
    ],
)
def test_a_change_is_put_over_the_file(change: str, fleet: object) -> None:
    """A line of TOML changes the key that it names; a shell may have taken the quotes away."""
    assert fleet in parse(SMALL, "small.toml", [change]).build().fleets.values()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("fleets.exact.stalenes=5", "'stalenes'.*'staleness'"),
        ("nonsense", "set must be KEY=VALUE"),
        ("two words=1", "set must be KEY=VALUE"),
        ("batch=many", "batch"),
    ],
)
def test_a_wrong_change_is_named(change: str, says: str) -> None:
    """A change of a key that is not there, or that is none, is an error that says so."""
    with pytest.raises(ConfigError, match=says):
        parse(SMALL, "small.toml", [change]).build()


def test_fleets_that_are_gone_are_not_referred_to() -> None:
    """With other fleets, a target on one that is gone is on the first, and a tuning on each."""
    text = "target = {reference = 'mine', fleet = 'exact'}\n" + SMALL + "[tuning]\nfleet = 'exact'"
    setup = parse(text, "small.toml").with_fleets([0], []).build()
    assert (setup.target.fleet, setup.tuning.fleet) == (None, None)


def test_staleness_replaces_the_fleets() -> None:
    """Asked for stalenesses alone, an experiment has these fleets and no others."""
    setup = parse(SMALL, "small.toml").with_fleets([0, 5], []).build()
    assert setup.fleets == {"staleness 0": fixed_staleness(0), "staleness 5": fixed_staleness(5)}


def test_workers_resize_the_machines() -> None:
    """Asked for numbers of workers, an experiment keeps its machines, in these numbers."""
    setup = parse(SMALL, "small.toml").with_fleets([], [4, 8]).build()
    assert {name: fleet.workers for name, fleet in setup.fleets.items()} == {"4 workers": 4, "8 workers": 8}
    assert all(fleet.latency == 0.1 for fleet in setup.fleets.values())


def test_workers_need_machines() -> None:
    """An experiment without machines cannot be resized, and says so."""
    text = SMALL.replace("workers = 2", "staleness = 1").replace("compute =", "# compute =")
    with pytest.raises(ConfigError, match="needs a fleet"):
        parse(text, "small.toml").with_fleets([], [4])


def test_quick_is_a_fifth() -> None:
    """A quick experiment has a fifth of the budget, at least one update, and two seeds at most."""
    assert builtin().quick().build().config.budget == ("epochs", pytest.approx(builtin().epochs / 5))
    assert parse(SMALL, "small.toml").quick().build().config.budget == ("updates", 1)
    assert builtin().quick().build().seeds == (0, 1)
    assert builtin().quick().tuning.trials == 4


def test_nothing_asked_changes_nothing() -> None:
    """Without options an experiment stays as it is."""
    assert builtin().with_fleets([], []).with_seeds(None) == builtin()


def test_a_data_path_starts_at_the_file(tmp_path: Path) -> None:
    """A relative path of a data file is looked up beside the experiment file."""
    (tmp_path / "rows.svm").write_text("".join(f"{i % 2} 1:{i}.5 2:1\n" for i in range(40)))
    text = SMALL.replace('"quadratic"\ncurvature = [1.0, 2.0]', '"logistic"')
    text = text.replace('"logistic"', '"logistic"\ndata = {name = "svmlight", path = "rows.svm"}')
    (tmp_path / "mine.toml").write_text(text)
    setup = read(tmp_path / "mine.toml").build(tmp_path)
    assert setup.problem.dimension >= 2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A file that is not there is named, with what to do."""
    with pytest.raises(ConfigError, match=r"cannot read .*no\.toml \(No such file"):
        read(tmp_path / "no.toml")


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    """A file that is not text is refused as such."""
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read(tmp_path / "x.toml")


def test_unknown_data_is_answered_with_the_nearest() -> None:
    """A misspelt data set is an error that names the nearest one."""
    text = SMALL.replace('"quadratic"', '"softmax"\ndata = "digit"').replace("curvature", "# ")
    with pytest.raises(ConfigError, match=r"'digit'.*'digits'"):
        parse(text, "small.toml").build()


def test_construct_names_the_table() -> None:
    """Errors of a constructor begin with the table that its arguments stand in."""
    with pytest.raises(ConfigError, match=r"^\[here\] "):
        construct(fixed_staleness, {"tau": -1}, "[here]")
    assert construct(fixed_staleness, {"tau": 2}, "[here]").workers == 3


SPARSE = """
epochs = 0.5
seeds = 1
batch = 1
{rest}

[problem]
name = "logistic"
data = {{name = "sparse", samples = 60, features = 30, nonzeros = 5}}

[algorithms.racing]
algorithm = "hogwild"
learning_rate = 0.1

[fleets.cores]
workers = 4
{more}
"""


@pytest.mark.parametrize(
    ("rest", "more", "kept"),
    [
        ('reads = "interleaved"\natomic = false', "", {"reads": "interleaved", "atomic": False}),
        (
            "",
            '[partition]\nparts = "skewed"\nconcentration = 0.5',
            {"partition": {"parts": "skewed", "sampler": "replacement", "concentration": 0.5}},
        ),
    ],
    ids=["reads", "partition"],
)
def test_partition_and_reads_are_those_of_every_run(rest: str, more: str, kept: dict[str, object]) -> None:
    """What a file says of data and reads reaches each run, and is known before it is made."""
    setup = parse(SPARSE.format(rest=rest, more=more), "sparse.toml").build()
    ((job, run),) = run_jobs(setup, [Job("logistic", "cores", "racing", 0, *setup.algorithms.values())], NOWHERE)
    assert kept.items() <= run.settings.items()
    assert run.settings == setup.request(job).settings


def test_skewed_data_are_counted_class_by_class() -> None:
    """The settings of a comparison on skewed data say how many of each class each worker has."""
    skewed = '[partition]\nparts = "skewed"\nconcentration = 0.5'
    setup = parse(SPARSE.format(rest="", more=skewed), "sparse.toml").build()
    (found,) = setup.settings["histograms"]
    assert (found["problem"], found["fleet"], found["seed"]) == ("logistic", "cores", 0)
    labels = setup.problems["logistic"].data.y
    assert [sum(column) for column in zip(*found["counts"], strict=True)] == [
        (labels == label).sum() for label in found["classes"]
    ]
    assert len(found["counts"]) == 4


def test_what_cannot_be_divided_or_interleaved_is_found_first() -> None:
    """Dense gradients do not interleave, and more workers than samples cannot share them."""
    text = SPARSE.format(rest='reads = "interleaved"', more="").replace("hogwild", "synchronous")
    with pytest.raises(ConfigError, match="interleaved reads need workers that read"):
        parse(text, "sparse.toml").build()
    text = SPARSE.format(rest="", more='[partition]\nparts = "sharded"')
    with pytest.raises(ConfigError, match="workers must be <="):
        parse(text.replace("workers = 4", "workers = 400"), "sparse.toml").build()
