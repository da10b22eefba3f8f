"""How a Keras model is made again: its config, what it uses of the user's own, and its weights.

1. A model is made again from its description and its weights, in each process: none is sent, and
   the caller's own is never changed.
2. Layers that Keras has named itself are numbered from 0 in every model, however many layers the
   program has made before: equal models then have equal names.
"""

import inspect
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distsgd.errors import ConfigError, wrong_kind

KerasObject: TypeAlias = Any
"""A model, a layer, a loss or a metric: Keras ships no types."""
Weights: TypeAlias = tuple[NDArray[Any], ...]
"""All variables but the states of random layers, in the model's order; none if it is not built."""


class Description(NamedTuple):
    """What a model is, but for its weights."""

    config: str
    """What Keras serialises, as JSON."""
    own: Mapping[str, Any]
    """Classes and functions of the user's by the names that Keras knows them by."""


def described(model: KerasObject) -> tuple[Description, Weights]:
    """Return what `model` is, and its weights; a `ConfigError` if it cannot be made again."""
    import keras  # noqa: PLC0415 # optional

    if not isinstance(model, keras.Model):
        raise wrong_kind("model", "keras.Sequential([...])", model)
    try:
        config = keras.saving.serialize_keras_object(model)
    except NotImplementedError:
        kind = type(model).__name__
        what = f"model must have a config, to be made again in every worker, but {kind} has none"
        raise ConfigError(f"{what}; write get_config for {kind} and layers of your own, as keras.Model shows") from None
    config.pop("compile_config", None)
    description = Description(json.dumps(_renamed(config), sort_keys=True), _own(model, config))
    return description, tuple(map(numbers_of, model.weights))


def rebuilt(description: Description, weights: Weights, inputs: NDArray[Any]) -> KerasObject:
    """Return a new model; one that does not know its inputs is built on `inputs`, of one sample."""
    import keras  # noqa: PLC0415 # optional

    config = json.loads(description.config)
    model = keras.saving.deserialize_keras_object(config, custom_objects=dict(description.own), safe_mode=False)
    if not model.built or not model.weights:
        model(inputs)
    if weights:
        for variable, value in zip(model.weights, weights, strict=True):
            variable.assign(value)
    return model


def layers_of_model(model: KerasObject) -> list[KerasObject]:
    """Return all layers of a model, those inside of layers too."""
    return list(model._flatten_layers())  # noqa: SLF001 # nothing public goes into layers of layers


def numbers_of(variable: Any) -> NDArray[Any]:  # noqa: ANN401 # a variable, or a tensor
    """Return a copy of the numbers of a variable or a tensor."""
    tensor = getattr(variable, "value", variable)
    return np.asarray(tensor.detach() if hasattr(tensor, "detach") else tensor).copy()


def _objects(config: Any) -> Iterator[Mapping[str, Any]]:  # noqa: ANN401 # JSON
    """Yield the objects in a config, the outer ones first."""
    if isinstance(config, Mapping):
        if "config" in config and "class_name" in config:
            yield config
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for one in config:
            yield from _objects(one)


def _own(model: KerasObject, config: object) -> dict[str, Any]:
    """Return classes and functions that are not Keras' own, by the names that a config has."""
    import keras  # noqa: PLC0415 # optional

    wanted, found = {one.get("registered_name") for one in _objects(config)}, {}
    for layer in layers_of_model(model):
        for part in (layer, *vars(layer).values()):
            kind = part if inspect.isfunction(part) else type(part)
            name = keras.saving.get_registered_name(kind)
            if name in wanted and not kind.__module__.startswith("keras."):
                found[name] = kind
    return found


def _renamed(config: Any) -> Any:  # noqa: ANN401 # JSON
    """Return a config in which layers that Keras has named are numbered from 0."""
    names: dict[str, str] = {}
    known: Counter[str] = Counter()
    for one in _objects(config):
        inner, kind = one["config"], _snake_case(one["class_name"])
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if isinstance(name, str) and name not in names and re.fullmatch(rf"{kind}(_\d+)?", name):
            names[name] = f"{kind}_{known[kind]}" if known[kind] else kind
            known[kind] += 1
    return _replaced(config, names)


def _snake_case(name: str) -> str:
    """Return the name of a class as Keras writes it in names of layers."""
    words = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()


def _replaced(config: Any, names: Mapping[str, str], key: str = "") -> Any:  # noqa: ANN401 # JSON
    """Return a config with other names where it names layers: as a name, and before two numbers."""
    if isinstance(config, str):
        return names.get(config, config) if key == "name" else config
    if isinstance(config, Mapping):
        return {name: _replaced(one, names, name) for name, one in config.items()}
    if not isinstance(config, (list, tuple)):
        return config
    if len(config) == 3 and isinstance(config[0], str):
        return [names.get(config[0], config[0]), *config[1:]]
    return [_replaced(one, names) for one in config]
