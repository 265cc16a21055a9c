"""Fingerprint: the identity of work to do, as a hash of canonical JSON.

Canonical JSON *raises* on anything whose text is not stable (callables, paths, default reprs, unknown types, NaN): a permissive
str(value) would silently fork or merge identities. Dataclasses become objects (of their fields, or of what their method `identity_fields` says), enums
their values, sets sorted lists.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any


def to_plain(value: Any, where: str = "value") -> Any:
    """`value` as JSON types only. Raises TypeError naming the field (`where`) that has no stable form."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, enum.Enum):
        return to_plain(value.value, where)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{where} is {value}: only finite numbers have an identity")
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = value.identity_fields() if hasattr(value, "identity_fields") else {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {name: to_plain(item, f"{where}.{name}") for name, item in named.items()}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}: keys must be text")
        return {key: to_plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return sorted((to_plain(item, where) for item in value), key=canonical_json)
    raise TypeError(f"{where} is a {type(value).__name__}, which has no stable form: use text, numbers, lists or dataclasses")


def canonical_json(value: Any) -> str:
    """One text per meaning: sorted keys, no spaces, shortest floats. Raises TypeError as `to_plain` does."""
    return json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """sha256 hex of canonical_json(value)."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Field-level differences of two plain values, as `field: old -> new` lines in a stable order."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines = []
        for key in sorted({*old, *new}):
            lines += differences(old.get(key, "absent"), new.get(key, "absent"), f"{where}.{key}" if where else key)
        return lines
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [line for i, (a, b) in enumerate(zip(old, new, strict=True)) for line in differences(a, b, f"{where}[{i}]")]
    return [] if old == new else [f"{where}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:12] + "…" if set(text) <= set("0123456789abcdef") else text[:37] + "…"
