"""What papers say of their experiments, seen again in small ones: scripts that print a table."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

SCRIPTS = Path(__file__).parent.parent / "scripts"


def printed(name: str) -> list[list[str]]:
    """Return the cells of the table that a script prints in its small setting."""
    done = subprocess.run(
        [sys.executable, SCRIPTS / f"{name}.py", "--quick"],
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.stderr == ""
    lines = [line for line in done.stdout.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def loss(cell: str) -> float:
    """Return the loss of a cell that may name its rate."""
    return float(cell.partition(" at ")[0])


def test_adaptive_revision_tolerates_delay() -> None:
    """A delay of 1,000 updates spoils AdaGrad tuned without one, and not AdaptiveRevision."""
    # McMahan and Streeter 2014, abstract: "when the delays grow large (1000 updates or more), our
    # new algorithms perform significantly better than standard adaptive gradient methods".
    rows = {row[0]: [loss(cell) for cell in row[1:]] for row in printed("delay_tolerance")}
    assert list(rows) == ["0", "1,000"]
    adagrad, averaging, revision = rows["1,000"][:3]
    assert revision < 0.6 * min(adagrad, averaging)
    assert rows["0"][0] == rows["0"][2]


def test_downpour_needs_short_periods() -> None:
    """Downpour suffers from a longer period, and EAMSGD leads at every one."""
    # Zhang et al. 2015, arXiv:1412.6651, experiments on CIFAR with 4 workers: of periods 1, 4, 16
    # and 64 Downpour is unstable at the long ones, and EAMSGD is ahead of all others at each.
    rows = {row[0]: [loss(cell) for cell in row[1:]] for row in printed("period")}
    assert list(rows) == ["1", "16"]
    assert rows["16"][0] > rows["1"][0]
    assert all(row[2] == min(row) for row in rows.values())


def test_backup_workers_help_when_they_cover_the_slow_machines() -> None:
    """Five backup workers for six slow machines gain little, and the sixth gains more."""
    # After Chen et al. 2016, arXiv:1604.00981: a step takes the first N gradients of N + b workers.
    rows = {row[0]: row[1:] for row in printed("backup_workers")}
    none, _, _, five, six = (float(cell) for cell in rows["6 machines always 30 % slower"][:5])
    assert five < 1.05 * none
    assert six > 1.10 * five
    assert int(rows["exponential"][-2]) < int(rows["exponential, interrupted (theory)"][-2]) == 99


def test_overlap_shows_in_what_is_lost() -> None:
    """Where samples overlap more, more changes are lost."""
    # Niu et al. 2011, arXiv:1106.5730: rho is the largest share of samples that meet one of them.
    # Processors share memory "with the possibility of overwriting each other's work" (abstract).
    apart, crowded = printed("overlap")
    assert float(apart[3]) < float(crowded[3]) == 1.0
    assert float(apart[-1].rstrip("%")) < float(crowded[-1].rstrip("%"))


def test_skewed_classes_hurt_those_that_exchange_parameters() -> None:
    """With few classes per worker elastic averaging falls behind, and synchronous SGD does not."""
    # Of no paper: a mean over workers is a mean over all classes, a local step is one over few.
    table = printed("skew")
    owned = [[int(cell) for cell in row[1:]] for row in table[:8]]
    assert sum(map(sum, owned)) == 1437
    shared, *_, skewed = ([loss(cell.rstrip("*")) for cell in row[1:]] for row in table[8:])
    assert skewed[0] < 1.2 * shared[0]
    assert skewed[2] > 2 * shared[2]
