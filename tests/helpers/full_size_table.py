"""Parameter counts at full size: ours on meta tensors, the reference's, and where its number comes from. Run as a program it writes docs/full_size.md."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "full_size.md"
if __name__ == "__main__":
    sys.path.insert(0, str(PAGE.parents[1]))

import torch  # noqa: E402

from mmcore.config import SpecialTokens  # noqa: E402
from mmcore.encoders.imagebind.network import HUGE, HUGE_OUT, ImageBind  # noqa: E402
from mmcore.lm.catalogue import KnownLm, known_lm  # noqa: E402
from mmcore.lm.lora import attach_lora, lora_parameters  # noqa: E402
from mmcore.projectors.inputs import build_input_projector  # noqa: E402
from mmcore.projectors.outputs import build_output_projector  # noqa: E402
from pipelines.recipes import get_recipe  # noqa: E402
from pipelines.recipes.recipe import model_spec  # noqa: E402

VICUNA, E, D = known_lm("vicuna-7b-v1.5"), 1024, 4096
NEW = "NExT-GPT repository, its current code instantiated with random weights"
OLD = "NExT-GPT repository, folder of the old code: the layers of the public checkpoint, by arithmetic"
IMAGEBIND = "ImageBind repository, its code instantiated with random weights"
LLAVA = "LLaVA repository, finetune_lora.sh: layers and rank, by arithmetic"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    part: str
    ours: Callable[[], int]
    exact: int
    """From the reference's layers, written out below."""
    stated: str
    """The reference's own number, in millions and as precise as it is stated."""
    source: str


def counted(module: torch.nn.Module) -> int:
    """Parameters of a module on meta tensors."""
    assert all(parameter.is_meta for parameter in module.parameters())
    return sum(parameter.numel() for parameter in module.parameters())


def llama(lm: KnownLm) -> torch.nn.Module:
    """transformers' Llama in the sizes of the catalogue."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": lm.vocabulary, "hidden_size": lm.width, "intermediate_size": lm.ffn, "num_hidden_layers": lm.layers}
    heads = {"num_attention_heads": lm.heads, "num_key_value_heads": lm.heads * lm.key_width // lm.width, "tie_word_embeddings": lm.tied}
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**sizes, **heads))


def lora_of(recipe: str, lm: KnownLm, mode: str = "") -> int:
    """Parameters of the adapters that a recipe puts on this LM."""
    spec = model_spec(get_recipe(recipe))
    base = llama(lm)
    with torch.device("meta"):
        attach_lora(base, replace(spec.lora, mode=mode or spec.lora.mode), 0, [modality for modality, _ in spec.encoders])
    return sum(parameter.numel() for parameter in lora_parameters(base).values())


def read(recipe: str) -> int:
    """Parameters of one input projector of a recipe."""
    spec = model_spec(get_recipe(recipe))
    with torch.device("meta"):
        return counted(build_input_projector(spec.input_projector, spec.encoders[0][1].width, D, 0))


def write(recipe: str, modality: str, **changes: object) -> int:
    """Parameters of one output projector of a recipe."""
    spec = model_spec(get_recipe(recipe))
    made = replace(dict(spec.output_projectors).get(modality, spec.output_projector), **changes)
    with torch.device("meta"):
        return counted(build_output_projector(made, D, getattr(spec.tokens, modality), 0))


def trunk(name: str) -> int:
    """Parameters of one of ImageBind's transformers, without stem and head."""
    with torch.device("meta"):
        return counted(ImageBind({name: HUGE[name]}, HUGE_OUT).modality_trunks)


def rows(tokens: SpecialTokens) -> int:
    """New input rows and head rows of all signal tokens."""
    return 2 * (tokens.image + tokens.video + tokens.audio) * D


def attention(width: int, bias: int = 4) -> int:
    return 4 * width * width + bias * width


def mlp(into: int, hidden: int, out: int) -> int:
    return into * hidden + hidden + hidden * out + out


TRANSFORMER = 4 * (attention(512) + mlp(512, 2048, 512) + 2 * 1024) + 4 * (2 * attention(512) + mlp(512, 2048, 512) + 3 * 1024) + 2 * 1024
LAYER = attention(512, 1) + mlp(512, 2048, 512) + 2 * 1024
GROUPING = 2 * attention(512) + 2 * mlp(512, 2048, 512) + 6 * 1024
GROUP = E * 512 + 512 + 12 * LAYER + 2 * GROUPING + (64 + 8) * 512
GROUP += mlp(64, 256, 64) + mlp(8, 256, 8) + mlp(64, 256, 8) + 1024 + 1024 + 512 * D + D
BLOCK = 4 * D * D + 3 * D * 11008 + 2 * D


def vit(width: int) -> int:
    return attention(width) + mlp(width, 4 * width, width) + 4 * width


def out(queries: int, width: int) -> int:
    return D * 512 + 512 + TRANSFORMER + queries * 512 + 512 * width + width


TABLE = (
    Row("input projector linear, 1024 -> 4096 (nextgpt_7b_legacy)", lambda: read("nextgpt_7b_legacy"), E * D + D, "4.2", NEW),
    Row("input projector mlp, 1024 -> 4096 (llava15_7b)", lambda: read("llava15_7b"), mlp(E, D, D), "21.0", f"{NEW}; LLaVA-1.5 has the same layers"),
    Row("input projector group, 1024 -> 8 x 4096 (nextgpt_7b)", lambda: read("nextgpt_7b"), GROUP, "53.1", NEW),
    Row("output projector, image 77 x 1024 (nextgpt_7b)", lambda: write("nextgpt_7b", "image"), out(77, 1024), "32.09", NEW),
    Row("output projector, video 77 x 1024 (nextgpt_7b)", lambda: write("nextgpt_7b", "video"), out(77, 1024), "32.09", NEW),
    Row("output projector, audio 1 x 512 (nextgpt_7b)", lambda: write("nextgpt_7b", "audio"), out(1, 512), "31.79", NEW),
    Row("output projector, image 77 x 768 (nextgpt_7b_legacy)", lambda: write("nextgpt_7b_legacy", "image"), out(77, 768), "31.96", OLD),
    Row("output projector, video 77 x 1024 (nextgpt_7b_legacy)", lambda: write("nextgpt_7b_legacy", "video"), out(77, 1024), "32.09", OLD),
    Row("output projector, audio 1 x 512 (nextgpt_7b_legacy)", lambda: write("nextgpt_7b_legacy", "audio"), out(1, 512), "31.79", OLD),
    Row(
        "output projector linear, 4 x 1024",
        lambda: write("nextgpt_7b", "image", kind="linear", queries=4),
        D * 1024 + 1024,
        "4.2",
        "NExT-GPT repository, kind linear: one nn.Linear",
    ),
    Row(
        "LoRA, rank 128 on seven linear layers (nextgpt_7b)",
        lambda: lora_of("nextgpt_7b", VICUNA),
        32 * 128 * (4 * 2 * D + 3 * (D + 11008)),
        "319.8",
        "NExT-GPT repository, finetune.sh: layers and rank, by arithmetic",
    ),
    Row("LoRA, rank 128 on seven linear layers (llava15_7b)", lambda: lora_of("llava15_7b", VICUNA), 32 * 128 * (4 * 2 * D + 3 * (D + 11008)), "319.8", LLAVA),
    Row("LoRA, rank 32 on q k v o (nextgpt_7b_legacy)", lambda: lora_of("nextgpt_7b_legacy", VICUNA), 32 * 32 * 4 * 2 * D, "33.6", OLD),
    Row(
        "new token rows, 36 in embedding and in head (nextgpt_7b)",
        lambda: rows(get_recipe("nextgpt_7b").tokens),
        2 * 36 * D,
        "0.29",
        "NExT-GPT repository: 4 + 24 + 8 tokens; its code trains both matrices whole, 262 M, to train these",
    ),
    Row(
        "language model, Vicuna 7B",
        lambda: counted(llama(VICUNA)),
        2 * 32000 * D + 32 * BLOCK + D,
        "6738",
        "LLaMA 7B: 6.7 B in its paper (arXiv 2302.13971); layers of its config.json",
    ),
    Row("encoder, ImageBind's vision trunk", lambda: trunk("vision"), 32 * vit(1280) + 2 * 1280, "629.7", IMAGEBIND),
    Row("encoder, ImageBind's audio trunk", lambda: trunk("audio"), 12 * (vit(768) + 2 * 768), "85.1", IMAGEBIND),
    Row("encoder, ImageBind's text trunk", lambda: trunk("text"), 24 * vit(1024), "302.3", IMAGEBIND),
)

HEAD = """# Parameter counts at full size

Ours against the reference's, part by part. Ours are counted on meta tensors from the recipes in brackets (no weights, no download); the reference's number
is as precise as its source states it. `test_full_size.py` holds every line and this page; `python tests/helpers/full_size_table.py` writes it anew.

| part | ours | reference, millions | source of the reference's number |
|---|---:|---:|---|
"""
FOOT = """
Two kinds of parts differ from the reference on purpose. New token rows are small parameters of their own: the embedding and head matrices stay as they
are. Every projector has two buffers that are no parameters and are fitted before training: mean and spread of its features or targets.
"""


def markdown() -> str:
    """The page."""
    return HEAD + "".join(f"| {row.part} | {row.ours():,} | {row.stated} | {row.source} |\n" for row in TABLE) + FOOT


if __name__ == "__main__":
    PAGE.write_text(markdown())
