"""The training loss that runs are timed to: a number, or what an algorithm sets."""

import msgspec

from distsgd.errors import check_number


class Reference(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A target that an algorithm sets: `factor` times its median final training loss.

    On the fleet `fleet`, by default the first one. Where the algorithm is tuned, it is tuned for
    that loss first.
    """

    reference: str
    fleet: str | None = None
    factor: float = 1.05

    def __post_init__(self) -> None:
        check_number("target.factor", self.factor, above=0)


class Target(msgspec.Struct, frozen=True):
    """The training loss to reach, and where it comes from, in words; None if nothing gives one."""

    loss: float | None
    origin: str
