"""The budget of a run: after how much of what it is done."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, cast

from distsgd.errors import ConfigError, check_count, check_number

Unit: TypeAlias = Literal["updates", "gradients", "epochs", "seconds"]


class Limits(NamedTuple):
    """What ends an order, whichever comes first."""

    updates: float = math.inf
    gradients: float = math.inf
    """Gradient steps in the pushes that have been served."""
    seconds: float = math.inf
    """Nothing is served later than this [s]."""


class Budget(NamedTuple):
    """When a run is done: after this `amount` of updates, gradients, epochs or seconds."""

    unit: Unit
    amount: float

    @classmethod
    def of(cls, amounts: Mapping[str, float | None]) -> "Budget":
        """Return the budget of the only amount that is not None, or raise a `ConfigError`."""
        given = {unit: amount for unit, amount in amounts.items() if amount is not None}
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ConfigError(f"give exactly one of {', '.join(amounts)} as the budget, not {found}")
        ((unit, amount),) = given.items()
        if unit in {"updates", "gradients"}:
            return cls(cast("Unit", unit), check_count(unit, amount))
        return cls(cast("Unit", unit), check_number(unit, amount, above=0, unit=" s" if unit == "seconds" else ""))

    @property
    def settings(self) -> dict[str, Any]:
        """What identifies it, as JSON."""
        return {self.unit: self.amount}

    @property
    def limits(self) -> Limits:
        """What an order has to be told of a budget that is none of epochs."""
        return Limits(**self.settings)

    def without_epochs(self, batch: int, samples: int) -> "Budget":
        """Return the same budget in gradients of all workers, if it is one of epochs."""
        if self.unit != "epochs":
            return self
        return Budget("gradients", math.ceil(self.amount * samples / batch))
