"""A small comparison of simulated and live runs; the live ones have no processes."""

from functools import cache

from simulated_launch import made_without_processes
from small_comparison import Small
from small_setup import setup_of

from distsgd.algorithms import downpour, hogwild, synchronous
from distsgd.experiment.execution import Execution
from distsgd.live.options import Live
from distsgd.order.fleet import Fleet
from distsgd.order.laws import constant, lognormal
from distsgd.problems import quadratic
from distsgd.report.comparison import Comparison

TWO, FIVE = "2 machines", "5 machines"


@cache
def small_live() -> Small:
    """Return the comparison; all tests share it."""
    fleets = {TWO: Fleet(2, constant(1.0)), FIVE: Fleet(5, lognormal(1.0, 0.5))}
    algorithms = {"together": synchronous(0.2), "alone": downpour(0.2), "racing": hogwild(0.2)}
    setup = setup_of(
        algorithms,
        quadratic([1.0, 0.2], noise=0.1),
        fleets,
        {"gradients": 120},
        seeds=range(3),
        target=0.2,
        evaluations=20,
        engine=["simulate", "local"],
        live=Live(shards=2),
    )
    found = Execution(setup)
    found.carry_out(make=made_without_processes)
    return Small(Comparison.of(found).summary, list(found.outcomes))
