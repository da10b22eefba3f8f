"""What is compared, by label: mappings, checked, and single objects, which get a label."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from distsgd.algorithm import Algorithm
from distsgd.errors import ConfigError, check_count, wrong_kind
from distsgd.experiment.values import Tunable
from distsgd.order.fleet import Fleet, StaleReads

Kind: TypeAlias = Literal["algorithms", "problems", "fleets"]

_EXAMPLES = {
    "algorithms": "distsgd.algorithms.downpour(0.1)",
    "problems": "distsgd.problems.softmax(data)",
    "fleets": "distsgd.Fleet(workers=8)",
}
_CLASSES = {"algorithms": (Algorithm, Tunable), "fleets": (Fleet, StaleReads), "problems": (object,)}


def by_label(kind: Kind, given: Any) -> dict[str, Any]:  # noqa: ANN401 # whatever was given
    """Return what is compared by its label; a single object is called by its name, or "fleet".

    A `ConfigError` says that nothing was given or something of another kind, or that labels are no
    texts that tell their objects apart. A problem is looked at elsewhere.
    """
    if isinstance(given, (list, tuple, set)) and not hasattr(given, "_fields"):  # an algorithm is a tuple with names
        raise ConfigError(_no_mapping(kind, given))
    known = given if isinstance(given, Mapping) else {_label(kind, given): given}
    check_count(f"number of {kind}", len(known))
    for label, one in known.items():
        if not isinstance(one, _CLASSES[kind]):
            where = f"{kind}[{label!r}]" if known is given else kind
            raise wrong_kind(where, _EXAMPLES[kind], one)
    _check_labels(kind, known)
    return dict(known)


def _label(kind: Kind, given: object) -> str:
    if kind == "fleets":
        return "fleet"
    one = given.lowest if isinstance(given, Tunable) else given
    name = getattr(one, "name", kind)
    return name if isinstance(name, str) else kind


def _no_mapping(kind: Kind, given: Any) -> str:  # noqa: ANN401 # a list, a tuple or a set
    labels = [
        f"{kind[:-1]} {place}" if kind == "fleets" else _label(kind, one) for place, one in enumerate(given, start=1)
    ]
    written = ", ".join(f'"{label}": ...' for label in labels)
    return f"{kind} must be a mapping, not a {type(given).__name__}; write {{{written}}}"


def _check_labels(kind: Kind, known: Mapping[Any, object]) -> None:
    """Raise a `ConfigError` unless labels are texts that differ in more than case and spaces."""
    plain: dict[str, str] = {}
    for label in known:
        if not isinstance(label, str) or not label.strip():
            raise ConfigError(f"labels of {kind} must be text, not {label!r}")
        other = plain.setdefault("".join(label.split()).casefold(), label)
        if other != label:
            raise ConfigError(f"{kind} {other!r} and {label!r} differ in nothing but case or spaces; rename one")
