"""The algorithms, one file per paper. An algorithm is a value: rules, numbers and a cycle."""

from collections.abc import Callable
from typing import NamedTuple

from distsgd.algorithm import Algorithm
from distsgd.algorithms.adaptive_revision import adaptive_revision
from distsgd.algorithms.downpour import downpour
from distsgd.algorithms.elastic_averaging import elastic_averaging
from distsgd.algorithms.hogwild import hogwild
from distsgd.algorithms.serial import serial
from distsgd.algorithms.stale_synchronous import stale_synchronous
from distsgd.algorithms.synchronous import synchronous

__all__ = [
    "Entry",
    "adaptive_revision",
    "downpour",
    "elastic_averaging",
    "hogwild",
    "registry",
    "serial",
    "stale_synchronous",
    "synchronous",
]


class Entry(NamedTuple):
    """A row of the registry."""

    constructor: Callable[..., Algorithm]
    paper: str


registry = {
    "serial": Entry(serial, "Robbins and Monro 1951"),
    "synchronous": Entry(synchronous, "Chen et al. 2016 (backup workers)"),
    "hogwild": Entry(hogwild, "Niu et al. 2011 (Hogwild!)"),
    "downpour": Entry(downpour, "Dean et al. 2012 (DistBelief)"),
    "adaptive_revision": Entry(adaptive_revision, "McMahan and Streeter 2014"),
    "elastic_averaging": Entry(elastic_averaging, "Zhang et al. 2015 (EASGD, EAMSGD)"),
    "stale_synchronous": Entry(stale_synchronous, "Ho et al. 2013 (SSP)"),
}
"""Every algorithm by name."""
