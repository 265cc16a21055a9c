"""Licences: every part of an export has one, the strictest decides what the whole permits, and the terminal says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from data_steps import run_step
from safetensors.torch import save_file
from toy_decoders import directory

from flows.cli.ask import terms
from infra.storage import write_atomic
from pipelines.dag.build import build
from pipelines.dag.licences import Part, exported_parts, permitted
from pipelines.recipes import RECIPES, get_recipe

MODELS = [name for name, make in RECIPES.items() if make().two_tower is None]


@pytest.mark.parametrize("name", MODELS)
def test_every_part_of_an_export_has_a_licence_from_the_registries(name):
    recipe = get_recipe(name)
    parts = {what: (licence, use) for what, _, licence, use in exported_parts(recipe)}
    assert set(parts) == {"lm", "image", *(["audio"] if recipe.audio else []), *(f"decoder_{modality}" for modality, _ in recipe.decoders)}
    assert all(licence and use.split(",")[0].split()[0] in ("yes", "no", "after", "unknown") for licence, use in parts.values())
    if recipe.weights.kind == "random":
        assert set(parts.values()) == {("Apache-2.0", "yes")}


def test_what_the_whole_may_be_used_for():
    uses = {name: permitted(Part(*rest) for _, *rest in exported_parts(get_recipe(name))) for name in MODELS}
    assert uses["nextgpt_7b"] == "no: imagebind_huge, ZeroScope v2, 576 px, AudioLDM" and uses["tiny"] == uses["tiny_nextgpt"] == uses["smol"] == "yes"
    assert uses["llava15_7b"] == "Vicuna 7B v1.5: yes, up to 700 million users a month"
    mine = get_recipe("nextgpt_7b", {"weights.lm": "my-own", "decoders": [["image", "stabilityai/stable-diffusion-2"]]})
    parts = dict((what, (licence, use)) for what, _, licence, use in exported_parts(mine))
    assert parts["lm"] == ("unknown: see publisher", "unknown") and parts["decoder_image"][0] == "CreativeML OpenRAIL++-M"
    permissive = [Part("a", "MIT", "yes"), Part("b", "RAIL", "yes, within limits")]
    assert permitted(permissive) == "b: yes, within limits" and permitted([*permissive, Part("c", "?", "unknown")]) == "unknown: c"


def export_of(root: Path, recipe_name: str) -> dict:
    """anyloom.json of an export of toy parts, as the recipe's step describes it."""
    step = build(get_recipe(recipe_name))["export"]
    artifacts = {"lm": "weights_lm", "image": "weights_image", "audio": "weights_audio"}
    for part in artifacts.values():
        (root / part / "lm").mkdir(parents=True)
        write_atomic(root / part / "licence.json", json.dumps({"name": f"random {part}", "licence": "Apache-2.0", "source": "made from a seed"}))
    for modality, name in (("image", "tiny-sd2"), ("video", "tiny-text-to-video"), ("audio", "tiny-audioldm")):
        (root / f"weights_decoder_{modality}").mkdir()
        (root / f"weights_decoder_{modality}" / "pipeline").symlink_to(directory(name))
        terms_of = {"name": name, "licence": "Apache-2.0", "commercial_use": "yes", "source": "made from a seed"}
        write_atomic(root / f"weights_decoder_{modality}" / "licence.json", json.dumps(terms_of))
    for stage in ("stage1", "stage2", "stage3"):
        (root / stage).mkdir()
        save_file({f"{stage}.x": torch.zeros(1)}, root / stage / "tensors.safetensors")
    run_step(root, "export", step.run, step.config, {name: of.name for name, of in step.inputs.items()})
    return json.loads((root / "export" / "anyloom.json").read_text())


def test_an_export_names_the_licence_of_every_part_and_what_they_permit(tmp_path):
    found = export_of(tmp_path, "tiny_nextgpt")
    assert set(found["licences"]) == {"lm", "image", "audio", "decoder_image", "decoder_video", "decoder_audio"} and found["commercial_use"] == "yes"
    assert all(set(part) == {"name", "licence", "commercial_use", "source"} for part in found["licences"].values())
    assert found["licences"]["decoder_video"]["name"] == "tiny-text-to-video" and found["licences"]["lm"]["source"] == "made from a seed"
    assert terms(found) == "commercial use: yes" and terms({"model": {}}) == ""


def test_the_terminal_names_the_parts_that_bind():
    description = {
        "commercial_use": "no: imagebind_huge",
        "licences": {
            "lm": {"name": "SmolLM2", "licence": "Apache-2.0", "commercial_use": "yes"},
            "image": {"name": "ImageBind huge", "licence": "CC-BY-NC-SA-4.0", "commercial_use": "no"},
            "audio": {"name": "ImageBind huge", "licence": "CC-BY-NC-SA-4.0", "commercial_use": "no"},
        },
    }
    assert terms(description) == "commercial use: no: imagebind_huge (ImageBind huge: CC-BY-NC-SA-4.0)"
