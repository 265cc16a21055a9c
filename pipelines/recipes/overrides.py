"""Overrides: `--set key=value` on a recipe.

Owns the way from dotted keys to the fields of a recipe, its stages and its encoders. Input: a Recipe and JSON values by key; output: the changed Recipe.
Raises AnyloomError, one clear line, for what does not fit.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from infra.fingerprint import to_plain
from infra.secrets import without_secrets
from infra.step import AnyloomError
from mmcore.config import StageConfig
from mmcore.encoder_config import EncoderConfig, config_class, encoder_config, names, shared_values
from pipelines.recipes.recipe import LIST_OPTIONS, Recipe, with_stage

FIXED = ("name", "file")
"""What --set cannot change."""


def with_overrides(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """`recipe` with dotted keys replaced: {"stage3.lr": 1e-4}; a stage whole: {"stage3": {"steps": 100, ...}}; the order of the stages, by the names of their
    entries: {"stages": ["stage1", "stage3"]}, which comes first; an encoder whole: {"image": {"kind": "hf_image", ...}}, or its kind:
    {"image.kind": "hf_image"}, which keeps the values of the fields that both kinds have; an option of a list: {"datasets.mine.media_template": "{id}.wav"}.

    Raises AnyloomError for an unknown key (naming the closest ones), a value of the wrong type, an unknown stage and one with no steps, batch or rate, an
    unknown kind of encoder and one that lacks something.
    """
    for key, value in sorted(_with_kinds(recipe, overrides).items(), key=lambda item: item[0] != "stages"):
        first, _, rest = key.partition(".")
        if key == "stages":
            recipe = dataclasses.replace(recipe, stages=_ordered(recipe, value))
        elif first == "datasets" and rest:
            recipe = _with_option(recipe, rest, value, key)
        elif first in recipe.entries:
            old = recipe.entries[first]
            recipe = with_stage(recipe, first, _replace(old, rest.split("."), value, key, recipe) if rest else _whole_stage(old, value, key))
        else:
            recipe = _replace(recipe, key.split("."), value, key, recipe)
    if overrides:
        _check_stages(recipe)
    return recipe


def _with_option(recipe: Recipe, place: str, value: Any, key: str) -> Recipe:
    """`recipe` with an option of one of its lists. place: <dataset>.<option>. media_roots also takes one directory as text."""
    name, _, option = place.rpartition(".")
    known = [f"datasets.{dataset.name}.{one}" for dataset in recipe.datasets for one in LIST_OPTIONS]
    if key not in known:
        close = difflib.get_close_matches(key, known, n=3, cutoff=0.5) or known[:3]
        raise AnyloomError(f"--set {key}: no such key; close ones: {', '.join(close)} (the datasets are {', '.join(d.name for d in recipe.datasets)})")
    if option == "media_roots" and isinstance(value, str):
        value = [value]
    if (option == "span_s" and isinstance(value, (int, float)) and not 0 <= value < float("inf")) or (option == "media_roots" and not _are_texts(value)):
        expected = "seconds >= 0" if option == "span_s" else 'directories, like ["/data/coco"]'
        raise AnyloomError(f"--set {key}={value}: expected {expected}")
    changed = [dataclasses.replace(one, **{option: _coerce(getattr(one, option), value, key)}) if one.name == name else one for one in recipe.datasets]
    return dataclasses.replace(recipe, datasets=tuple(changed))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) and one for one in value)


def _ordered(recipe: Recipe, names: Any) -> tuple[StageConfig, ...]:
    """The entries called `names`, in this order; one that is named again is trained again with the same settings."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise AnyloomError(f'--set stages={names}: expected the names of stages in training order, like ["stage1", "stage2"]')
    unknown = [name for name in names if name not in recipe.entries]
    if unknown:
        raise AnyloomError(f"--set stages: there is no {unknown[0]}; the recipe's stages are {', '.join(recipe.entries)}")
    return tuple(recipe.entries[name] for name in names)


def _whole_stage(old: StageConfig, value: Any, key: str) -> StageConfig:
    """A stage with the settings of `value` and the defaults of its kind for all others."""
    if not isinstance(value, Mapping):
        raise AnyloomError(f"--set {key}: give a value of the stage ({key}.lr=1e-4) or the whole stage as a JSON object")
    fields = {field.name: field for field in dataclasses.fields(old)}
    unknown = sorted(set(value) - set(fields) | {"stage"} & set(value))
    if unknown:
        raise AnyloomError(f"--set {key}: {unknown[0]} is no setting of it; it has {', '.join(name for name in fields if name != 'stage')}")
    lacking = [name for name in ("steps", "batch", "lr", "mixture") if name not in value]
    if lacking:
        raise AnyloomError(f"--set {key}: the whole stage needs {', '.join(lacking)}")
    given = {name: _coerce(getattr(old, name), item, f"{key}.{name}") for name, item in value.items()}
    return type(old)(stage=old.stage, **given)


def _check_stages(recipe: Recipe) -> None:
    """Raise AnyloomError for a stage that cannot be trained as it says."""
    for entry, config in recipe.entries.items():
        for name in ("steps", "batch", "lr", "checkpoint_every"):
            if not getattr(config, name) > 0:
                raise AnyloomError(f"--set {entry}.{name}: {getattr(config, name)} is not above 0")


def _with_kinds(recipe: Recipe, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides, in which an encoder that gets another kind is one whole object: what both kinds have, and all that is set beside the kind."""
    left = dict(overrides)
    for key, kind in overrides.items():
        place, _, last = key.rpartition(".")
        old = _at(recipe, place)
        if last == "kind" and isinstance(old, EncoderConfig):
            beside = {other.removeprefix(f"{place}."): left.pop(other) for other in overrides if other.startswith(f"{place}.")}
            try:
                left[place] = shared_values(old, _coerce(old.kind, kind, key)) | beside
            except ValueError as error:
                raise AnyloomError(f"--set {key}: {error}") from error
    return left


def _at(config: Any, place: str) -> Any:
    """What stands at a dotted place; None for a place that there is not."""
    for part in place.split("."):
        config = getattr(config, part, None)
    return config


def _whole_encoder(old: EncoderConfig | None, value: Any, key: str) -> EncoderConfig:
    """An encoder with the settings of `value` and the defaults of its kind for all others."""
    kind = value.get("kind", old.kind if old else None) if isinstance(value, Mapping) else None
    if not isinstance(kind, str):
        raise AnyloomError(f'--set {key}: give a value of the encoder ({key}.batch=8) or the whole encoder as a JSON object like {{"kind": "hf_image", ...}}')
    try:
        types = typing.get_type_hints(config_class(kind))
        given = {name: _coerce(types[name](), item, f"{key}.{name}") if name in types else item for name, item in value.items() if name != "kind"}
        return encoder_config(kind, given)
    except ValueError as error:
        raise AnyloomError(f"--set {key}: {error}") from error


def settings(config: Any) -> list[str]:
    """The names that --set knows in a dataclass."""
    return ["kind", *names(type(config))] if isinstance(config, EncoderConfig) else [field.name for field in dataclasses.fields(config)]


def described(config: Any) -> Any:
    """`config` as JSON of what --set knows: encoders without the fields that only their identity has."""
    if not dataclasses.is_dataclass(config):
        return to_plain(config)
    return {name: described(getattr(config, name)) for name in settings(config)}


def keys(config: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key that --set accepts."""
    if isinstance(config, Recipe):
        for name, stage in config.entries.items():
            yield from keys(stage, f"{name}.")
    for name in settings(config):
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            yield from keys(value, f"{prefix}{name}.")
        elif prefix or name not in FIXED:
            yield prefix + name


def _replace(config: Any, parts: list[str], value: Any, key: str, whole: Recipe) -> Any:
    if len(parts) == 1 and _takes_encoder(config, parts[0], value):
        return dataclasses.replace(config, **{parts[0]: _whole_encoder(getattr(config, parts[0]), value, key)})
    if isinstance(config, EncoderConfig) and parts[0] not in settings(config):
        raise AnyloomError(f"--set {key}: {config.kind} has no {parts[0]}; it has {', '.join(settings(config))}")
    if parts[0] not in settings(config) or (len(parts) > 1) != dataclasses.is_dataclass(getattr(config, parts[0])):
        known = list(keys(whole))
        close = difflib.get_close_matches(key, known, n=3, cutoff=0.5) or known[:6]
        raise AnyloomError(f"--set {key}: no such key; close ones: {', '.join(close)} (all: anyloom recipes {whole.name} --json)")
    if key in FIXED:
        raise AnyloomError(f"--set {key}: a recipe's {key} is fixed; choose one with --recipe")
    old = getattr(config, parts[0])
    new = _replace(old, parts[1:], value, key, whole) if len(parts) > 1 else _coerce(old, value, key)
    return dataclasses.replace(config, **{parts[0]: new})


def _takes_encoder(config: Any, name: str, value: Any) -> bool:
    """True where an encoder stands, or may stand and is given."""
    holds = {field.name for field in dataclasses.fields(config) if "EncoderConfig" in str(field.type)}
    return name in holds and (isinstance(getattr(config, name), EncoderConfig) or isinstance(value, Mapping))


def _coerce(old: Any, value: Any, key: str) -> Any:
    """`value` in the type of `old`. Raises AnyloomError saying what is expected."""
    if isinstance(old, bool) or isinstance(value, bool):
        fits = isinstance(old, bool) and isinstance(value, bool)
    elif isinstance(old, float):
        fits = isinstance(value, (int, float))
        value = float(value) if fits else value
    elif isinstance(old, tuple):
        fits = isinstance(value, list)
        value = _tuples(value) if fits else value
    else:
        fits = isinstance(value, type(old))
    if not fits:
        raise AnyloomError(f"--set {key}={without_secrets(str(value))}: expected {type(old).__name__} like {old!r}")
    return value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
