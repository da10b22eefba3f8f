import copy
import os
import random
import re
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import pytest
from mutations import MORE, Table, edited, mutated

import distsgd as ds
from distsgd import ConfigError, data
from distsgd.errors import DistsgdWarning
from distsgd.experiment import tables
from distsgd.experiment.file import Experiment, builtin, parse
from distsgd.experiment.setup import Job, Setup
from distsgd.experiment.values import Tunable, grid
from distsgd.fold.request import RunRequest
from distsgd.fold.simulate import simulated
from distsgd.order.budget import Budget
from distsgd.order.fleet import StaleReads
from distsgd.run import identify

TEXT = (Path(ds.__file__).parent / "builtin.toml").read_text(encoding="utf-8")
N = int(os.environ.get("DISTSGD_MUTATIONS", "1000"))

pytestmark = pytest.mark.filterwarnings(f"ignore::{DistsgdWarning.__module__}.DistsgdWarning")


@pytest.fixture(autouse=True)
def _read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the digits once: what is mutated is how they are used."""
    monkeypatch.setattr(data, "digits", lru_cache(data.digits))


def bases() -> list[Table]:
    """Return the built-in experiment, one with more tables, and one of sampled staleness."""
    more = tomllib.loads(TEXT + MORE)
    for name in ("synchronous", "Hogwild!"):
        del more["algorithms"][name]
    more["algorithms"]["SSP"]["learning_rate"] = 0.1
    more |= {"engine": "simulate", "reads": "consistent", "atomic": True}
    sampled = copy.deepcopy(more)
    del more["fleets"]["sampled"]
    for name in ("SSP", "EASGD", "EAMSGD"):
        del sampled["algorithms"][name]
    return [tomllib.loads(TEXT), more, sampled]


def tried(described: Experiment, dice: random.Random) -> str:
    """Build an experiment, and make one of its runs if it is not live; say how far that came."""
    try:
        setup = described.build(Path("/nowhere"))
        described.quick().build(Path("/nowhere"))
        return run(setup, dice)
    except ConfigError:
        return "refused"


def run(setup: Setup, dice: random.Random) -> str:
    """Make a short run of a set-up."""
    for one in setup.tunables.values():
        assert grid(one.ranges, min(setup.tuning.trials, 9))
    problem, site, label = dice.choice(setup.places)
    given = setup.algorithms[label]
    algorithm = given.lowest if isinstance(given, Tunable) else given
    job = Job(problem, site, label, setup.seeds[0], algorithm)
    assert len(identify(setup.request(job).settings)) == len(identify(setup.settings)) == 64
    machines = setup.machines_of(site)
    if not isinstance(machines, (ds.Fleet, StaleReads)):
        return "live"
    short = replace(setup.config, budget=Budget("updates", 2), evaluations=2)
    return simulated(replace(setup, config=short).request(job), driver="interpreted").status


def outcome(read: Callable[[], Experiment], dice: random.Random, what: str) -> str:
    """Return how far an experiment came, if it can be read; any other error says what it was."""
    try:
        return tried(read(), dice)
    except ConfigError:
        return "unknown"
    except BaseException as error:
        error.add_note(what)
        raise


@pytest.mark.parametrize("part", range(3))
def test_a_mutated_experiment_runs_or_is_refused(part: int) -> None:
    """Whatever values and keys an experiment has, it runs, or one sentence says why not."""
    base, found = bases()[part], Counter[str]()
    for number in range(N // 3 + 1):
        dice = random.Random(number)
        table, told = mutated(base, dice)
        read = partial(tables.typed, table, Experiment, "mine.toml")
        found[outcome(read, dice, f"mutation {number} of part {part}: {told}")] += 1
    print(found)
    assert min(found["done"], found["refused"], found["unknown"]) > 0


def test_an_edited_experiment_runs_or_is_refused() -> None:
    """Whatever characters are changed in an experiment file, it runs, or is refused."""
    found = Counter[str]()
    for number in range(N // 4):
        dice = random.Random(number)
        text = edited(TEXT, dice)
        read = partial(parse, text, "mine.toml")
        found[outcome(read, dice, f"edit {number}: {text}")] += 1
    print(found)
    assert min(found["done"], found["refused"], found["unknown"]) > 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("fleets.'8 machines'.workers = 9223372036854775808", r"workers must be < 2\*\*63"),
        ("fleets.'8 machines'.workers = 1_000_000_000_000", "workers must be at most .* memory"),
        ("fleets.'staleness 4'.staleness = 18446744073709551616", r"staleness must be < 2\*\*63"),
        ("fleets.'staleness 4'.staleness = 1_000_000_000_000", "at most .* to find room in memory"),
        ("algorithms.Downpour.server = ['adagrad']", "unknown server"),
        ("fleets.'8 machines'.compute = 'constant(1e308)'", "virtual time finite"),
        ("fleets.'8 machines'.latency = 1.7e308", "virtual time finite"),
        ("batch = 9223372036854775808", r"batch must be < 2\*\*63"),
        ("batch = 1_000_000_000_000", "batch must be at most .* memory"),
        ("seeds = 1_000_000_000_000", "seeds must be at most 1,000,000"),
        ("tuning.trials = 1_000_000_000_000", "tuning.trials must be at most"),
        ("algorithms.EASGD.period = 4294967296", "must be at most 1,000,000 steps"),
        ("problems.network.hidden = [1_000_000_000_000]", "weights of hidden layers must be"),
        ("epochs = 1e300", "messages of the budget must be at most|2\\*\\*63"),
        (f"batch = {'9' * 5000}", "Expected int, got str"),
        (f"batch = {'9' * 400}", "batch must be"),
        (f"algorithms.Downpour.server = '{'x' * 10_000}'", r"unknown server 'x{150,250}\.\.\."),
    ],
)
def test_absurd_values_are_sentences(change: str, says: str) -> None:
    """A value that no machine can have is refused by its name and bound, and allocates nothing."""
    try:
        setup = builtin([change]).build()
        said = " ".join(one.reason for one in setup.left_out) or run_first(setup)
    except ConfigError as error:
        said = str(error)
    assert re.search(says, said)


def run_first(setup: Setup) -> str:
    """Make a run of Downpour with the set-up's own budget, and return how it ended."""
    made = setup.algorithms["Downpour"].lowest, setup.problems["softmax"]
    return simulated(RunRequest(*made, setup.machines_of("8 machines"), setup.config)).status


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "9" * 5000, "a = 2020-99-99"])
def test_what_no_parser_can_read_is_refused(text: str) -> None:
    """Brackets too deep, numbers too long and impossible dates are not valid TOML."""
    with pytest.raises(ConfigError, match="mine is not valid TOML"):
        parse(text, "mine")
