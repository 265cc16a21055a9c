"""Identity: one text per meaning, and a refusal of everything that has no stable form."""

import enum
import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from infra.fingerprint import canonical_json, differences, fingerprint, to_plain
from mmcore.encoder_config import TimmImage


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    rate: float
    names: tuple[str, ...]


def test_order_of_keys_and_sets_does_not_matter():
    assert canonical_json({"b": {3, 1, 2}, "a": 1}) == '{"a":1,"b":[1,2,3]}'
    assert fingerprint({"x": (1, 2)}) == fingerprint({"x": [1, 2]})


def test_dataclasses_and_enums_have_a_form():
    assert to_plain({"c": Colour.RED, "i": Inner(0.1, ("p",))}) == {"c": "red", "i": {"rate": 0.1, "names": ["p"]}}


@pytest.mark.parametrize("value", [lambda: 1, object(), Path("x"), math.nan, math.inf, b"bytes", {1: "a"}, {"deep": [Path("x")]}])
def test_unstable_values_raise(value):
    with pytest.raises(TypeError):
        canonical_json(value)


def test_the_error_names_the_field():
    with pytest.raises(TypeError, match=r"value\.deep\[0\] is a PosixPath"):
        canonical_json({"deep": [Path("x")]})


def test_differences_name_the_field_and_both_values():
    spec = TimmImage(arch="a", width=8, grid=1)
    lines = differences(to_plain(spec), to_plain(replace(spec, image_size=256)))
    assert lines == ["image_size: 224 -> 256"]
    assert differences({"a": [1, 2]}, {"a": [1, 3], "b": 1}) == ["a[1]: 2 -> 3", "b: absent -> 1"]


def test_one_and_one_point_zero_and_true_are_three_identities():
    assert len({fingerprint(1), fingerprint(1.0), fingerprint(True)}) == 3
