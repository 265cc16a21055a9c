"""Parameter counts at full size, on meta tensors: ours, the reference's, and where the reference's number comes from; and the sums of mmcore.model.sizes."""

from dataclasses import replace

import pytest
import torch
from full_size_table import PAGE, TABLE, VICUNA, counted, llama, lora_of, markdown

from flows.cli import catalogues
from mmcore.config import InputProjectorSpec, OutputProjectorSpec
from mmcore.decoders.catalogue import CATALOGUE as DECODERS
from mmcore.lm.catalogue import CATALOGUE
from mmcore.model import sizes
from mmcore.projectors.inputs import build_input_projector
from mmcore.projectors.outputs import build_output_projector
from pipelines.recipes import RECIPES, get_recipe
from pipelines.recipes.recipe import model_spec


@pytest.mark.parametrize("row", TABLE, ids=[row.part for row in TABLE])
def test_counts_equal_the_references(row):
    decimals = len(row.stated.partition(".")[2])
    assert row.ours() == row.exact and round(row.exact / 1e6, decimals) == float(row.stated), row.source


def test_the_page_is_this_table():
    assert PAGE.read_text() == markdown(), "run python tests/helpers/full_size_table.py and review the diff"


def test_the_counts_in_figures():
    figures = [4_198_400, 20_979_712, 53_144_912, 32_090_112, 32_090_112, 31_788_544, 31_958_784, 32_090_112, 31_788_544, 4_195_328]
    assert [row.exact for row in TABLE][:14] == [*figures, 319_815_680, 319_815_680, 33_554_432, 294_912]


def test_group_layers_are_those_of_the_apache_groupvit():
    """transformers' GroupViT at the same sizes differs from ours by its biases of q, k and v alone (the reference has none there)."""
    from transformers import GroupViTVisionConfig
    from transformers.models.groupvit.modeling_groupvit import GroupViTVisionEncoder

    config = GroupViTVisionConfig(hidden_size=512, intermediate_size=2048, depths=[6, 3, 3], num_attention_heads=8, num_group_tokens=[64, 8, 0])
    with torch.device("meta"):
        theirs = counted(GroupViTVisionEncoder(config))
        ours = build_input_projector(InputProjectorSpec(kind="group"), 1024, 4096, 0)
    ends = counted(ours.into) + counted(ours.norm) + counted(ours.out)
    assert counted(ours) - ends == theirs - 12 * 3 * 512


@pytest.mark.parametrize("lm", CATALOGUE, ids=lambda lm: lm.arch)
def test_the_arithmetic_of_language_models_and_adapters_is_that_of_the_modules(lm):
    assert lm.parameters == counted(llama(lm))
    for recipe, mode in (("nextgpt_7b", "shared"), ("nextgpt_7b_legacy", "per_modality"), ("llava15_7b", "per_modality")):
        spec = model_spec(get_recipe(recipe))
        assert sizes.lora(replace(spec, lora=replace(spec.lora, mode=mode)), lm) == lora_of(recipe, lm, mode)


INPUTS = [
    *(InputProjectorSpec(kind=kind) for kind in ("linear", "mlp", "group")),
    InputProjectorSpec(kind="group", width=48, depths=(1, 2, 1, 3), groups=(9, 5, 3)),
]
OUTPUTS = [OutputProjectorSpec(kind=kind, queries=7, out=33) for kind in ("linear", "transformer", "nextgpt", "nextgpt_legacy")]


@pytest.mark.parametrize("spec", INPUTS, ids=lambda spec: f"{spec.kind} {len(spec.groups)}")
def test_the_arithmetic_of_input_projectors_is_that_of_the_modules(spec):
    with torch.device("meta"):
        assert sizes.input_projector(spec, 96, 80) == counted(build_input_projector(spec, 96, 80, 0))


@pytest.mark.parametrize("spec", [*OUTPUTS, OutputProjectorSpec(kind="linear", queries=4, out=33)], ids=lambda spec: f"{spec.kind} {spec.queries}")
def test_the_arithmetic_of_output_projectors_is_that_of_the_modules(spec):
    with torch.device("meta"):
        assert sizes.output_projector(spec, 80, 4) == counted(build_output_projector(spec, 80, 4, 0))


def test_what_a_stage_trains_is_the_sum_of_its_modules():
    recipe = get_recipe("nextgpt_7b")
    spec = model_spec(recipe)
    exact = {row.part: row.exact for row in TABLE}
    stage1, stage2, stage3 = (sizes.trained(spec, VICUNA, recipe.entries[name]) for name in ("stage1", "stage2", "stage3"))
    assert stage1 == {"input projectors": 3 * 53_144_912}
    assert stage2 == {"output projectors": 2 * 32_090_112 + 31_788_544, "new head rows": 36 * 4096}
    assert stage3 == {"LoRA": 319_815_680, "new token rows": exact["new token rows, 36 in embedding and in head (nextgpt_7b)"], **stage1}
    assert "input projectors" not in sizes.trained(spec, VICUNA, replace(recipe.entries["stage3"], train_projectors=False))


def test_denoisers_have_the_parameters_of_diffusers_classes_in_the_published_sizes():
    """Beside them what their authors state, in millions: the READMEs of Stable Diffusion 1 and 2, AudioLDM's paper (arXiv 2301.12503, table 1)."""
    from diffusers import CogVideoXTransformer3DModel, UNet2DConditionModel, UNet3DConditionModel

    def sound(*widths):
        down, up = ("DownBlock2D", *["CrossAttnDownBlock2D"] * 3), (*["CrossAttnUpBlock2D"] * 3, "UpBlock2D")
        blocks = {"down_block_types": down, "up_block_types": up, "block_out_channels": widths, "cross_attention_dim": widths}
        clap = {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 512, "class_embeddings_concat": True}
        return UNet2DConditionModel(in_channels=8, out_channels=8, **blocks, **clap)

    made = {
        "runwayml/stable-diffusion-v1-5": (lambda: UNet2DConditionModel(cross_attention_dim=768), 860),
        "stabilityai/stable-diffusion-2": (
            lambda: UNet2DConditionModel(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True),
            865,
        ),
        "damo-vilab/text-to-video-ms-1.7b": (lambda: UNet3DConditionModel(cross_attention_dim=1024), None),
        "cerspense/zeroscope_v2_576w": (lambda: UNet3DConditionModel(cross_attention_dim=1024), None),
        "cvssp/audioldm": (lambda: sound(128, 256, 384, 640), None),
        "cvssp/audioldm-l-full": (lambda: sound(256, 512, 768, 1280), 739),
        "THUDM/CogVideoX-2b": (CogVideoXTransformer3DModel, None),
        "THUDM/CogVideoX-5b": (lambda: CogVideoXTransformer3DModel(num_attention_heads=48, num_layers=42, use_rotary_positional_embeddings=True), None),
    }
    known = {entry.published: entry.denoiser for entry in DECODERS}
    assert {name for name, count in known.items() if count} == set(made)
    for name, (make, stated) in made.items():
        with torch.device("meta"):
            assert known[name] == counted(make()), name
        assert stated is None or abs(known[name] / 1e6 - stated) < 1


def test_a_denoising_loss_holds_its_denoisers_beside_everything_else():
    """nextgpt_7b, stage 2: 2.46 billion parameters of three denoisers in float32 stand beside the output projectors; no other stage holds them."""
    recipe = get_recipe("nextgpt_7b")
    spec, held = model_spec(recipe), catalogues.denoisers(recipe)
    assert held == 865_910_724 + 1_411_233_860 + 185_036_552
    with_them, without = (sizes.stage_bytes(spec, VICUNA, recipe.entries["stage2"], count) for count in (held, 0))
    assert with_them - without == 4 * held and sizes.stage_bytes(spec, VICUNA, replace(recipe.entries["stage2"], denoise_loss=0.0), held) == without
    for stage in (recipe.entries["stage1"], recipe.entries["stage3"], replace(recipe.entries["stage1"], denoise_loss=1.0)):
        assert sizes.stage_bytes(spec, VICUNA, stage, held) == sizes.stage_bytes(spec, VICUNA, stage)
    generating = replace(recipe.entries["stage1"], generation_loss=1.0, denoise_loss=1.0)
    assert sizes.stage_bytes(spec, VICUNA, generating, held) - sizes.stage_bytes(spec, VICUNA, recipe.entries["stage1"]) == 4 * held
    assert catalogues.denoisers(get_recipe("smol")) == catalogues.denoisers(get_recipe("tiny_nextgpt")) == 0


def test_two_towers_by_arithmetic():
    from mmcore.config import TowerShape, TwoTowerSpec
    from mmcore.two_tower.model import TwoTower

    recipe = get_recipe("tiny_two_tower")
    media = tuple((modality, getattr(recipe, modality)) for modality in ("image", "video", "audio"))
    for shape in (TowerShape(width=6), TowerShape(width=6, hidden=5, pooling="mean")):
        spec = TwoTowerSpec(encoders=media, text=recipe.two_tower.text, shape=shape)
        assert sizes.two_tower(spec) == sum(parameter.numel() for parameter in TwoTower(spec).parameters())


def test_memory_follows_its_formula():
    """nextgpt_7b, stage 3: 13.5 GB frozen, 16 bytes of 479 M, activations of 16 rows of 520 tokens; quantising takes three quarters off the frozen layers."""
    recipe = get_recipe("nextgpt_7b")
    spec = model_spec(recipe)
    frozen = sizes.frozen_bytes(spec, VICUNA)
    assert frozen == 2 * 6_738_415_616
    tokens = 512 + 8
    layers = 32 * tokens * 16 * (34 * 4096 + 5 * 32 * tokens)
    assert sizes.activation_bytes(spec, VICUNA, recipe.entries["stage3"]) == pytest.approx(layers + 12 * 16 * 256 * 32000)
    trained = sum(sizes.trained(spec, VICUNA, recipe.entries["stage3"]).values())
    assert sizes.stage_bytes(spec, VICUNA, recipe.entries["stage3"]) == pytest.approx(frozen + 16 * trained + layers + 12 * 16 * 256 * 32000)
    small = sizes.frozen_bytes(replace(spec, quantize="4bit"), VICUNA)
    assert 0.25 * frozen < small < 0.31 * frozen
    assert sizes.stage_bytes(spec, VICUNA, recipe.entries["stage2"]) < frozen  # its states are cached: no language model
    llava = get_recipe("llava15_7b")
    assert sizes.num_features(llava.image) == 576 and sizes.stage_bytes(model_spec(llava), VICUNA, llava.entries["stage3"]) > 80e9
    for name in RECIPES:
        made = get_recipe(name)
        assert made.two_tower or all(sizes.stage_bytes(model_spec(made), VICUNA, stage) > 0 for stage in made.stages)
