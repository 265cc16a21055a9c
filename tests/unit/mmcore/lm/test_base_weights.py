"""The language model's weights beside an export: names that would lead out of its directory are refused, whatever is there."""

import json

import pytest

from infra.step import AnyloomError
from infra.storage import sha256_file
from mmcore.lm.base_weights import BASE, LM, language_model, leave_behind


@pytest.mark.parametrize("name", ["{root}/secret.safetensors", "../secret.safetensors", "deep/../../secret.safetensors", "config.json", ".."])
def test_names_that_lead_elsewhere_are_refused(name, tmp_path):
    export, base, name = tmp_path / "export", tmp_path / "base", name.format(root=tmp_path)
    for folder in (export / LM, base / "deep"):
        folder.mkdir(parents=True)
    for path in (tmp_path / "secret.safetensors", base / "config.json"):
        path.write_bytes(b"there")
    (export / LM / BASE).write_text(json.dumps({"sha256": {name: sha256_file(tmp_path / "secret.safetensors")}}))
    for given in (base, None):
        with pytest.raises(AnyloomError, match=r"base\.json names '.*', which is no \.safetensors file below its directory: take the packed") as caught:
            with language_model(export, given):
                pass
        assert "\n" not in str(caught.value)


def test_what_was_left_behind_comes_back_from_the_same_names(tmp_path):
    for name in ("model-1.safetensors", "deep/model-2.safetensors", "config.json"):
        path = tmp_path / "export" / LM / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        kept = tmp_path / "base" / name
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(name)
    assert leave_behind(tmp_path / "export" / LM) == ["deep/model-2.safetensors", "model-1.safetensors"]
    with language_model(tmp_path / "export", tmp_path / "base") as whole:
        assert {name: (whole / name).read_text() for name in ("model-1.safetensors", "deep/model-2.safetensors", "config.json")} == {
            name: name for name in ("model-1.safetensors", "deep/model-2.safetensors", "config.json")
        }
