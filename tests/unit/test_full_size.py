"""Parameter counts at full size, on meta tensors: ours, the reference's, and where the reference's number comes from."""

import pytest
import torch

from mmcore.config import InputProjectorSpec, OutputProjectorSpec
from mmcore.input_projectors import build_input_projector
from mmcore.output_projectors import build_output_projector

E, D = 1024, 4096
FULL = {"width": 512, "layers": 4, "heads": 4, "ffn": 2048}


def counted(module: torch.nn.Module) -> int:
    assert all(parameter.is_meta for parameter in module.parameters())
    return sum(parameter.numel() for parameter in module.parameters())


def read(kind: str) -> torch.nn.Module:
    return build_input_projector(InputProjectorSpec(kind=kind), E, D, 0)


def write(kind: str, signals: int, queries: int, out: int) -> torch.nn.Module:
    return build_output_projector(OutputProjectorSpec(kind=kind, queries=queries, out=out, **FULL), D, signals, 0)


def attention(width: int, bias: int = 4) -> int:
    return 4 * width * width + bias * width


def mlp(into: int, hidden: int, out: int) -> int:
    return into * hidden + hidden + hidden * out + out


NEW = "NExT-GPT repository, public code instantiated with random weights"
OLD = "NExT-GPT repository, old code: the layers of the public checkpoint, by arithmetic"
TRANSFORMER = 4 * (attention(512) + mlp(512, 2048, 512) + 2 * 1024) + 4 * (2 * attention(512) + mlp(512, 2048, 512) + 3 * 1024) + 2 * 1024
LAYER = attention(512, 1) + mlp(512, 2048, 512) + 2 * 1024
GROUPING = 2 * attention(512) + 2 * mlp(512, 2048, 512) + 6 * 1024
GROUP = E * 512 + 512 + 12 * LAYER + 2 * GROUPING + (64 + 8) * 512
GROUP += mlp(64, 256, 64) + mlp(8, 256, 8) + mlp(64, 256, 8) + 1024 + 1024 + 512 * D + D
TABLE = [
    # part, ours, exact count from the layers of the reference, the reference's measured number in millions, source
    ("input linear 1024 -> 4096", lambda: read("linear"), E * D + D, 4.2, NEW),
    ("input mlp 1024 -> 4096", lambda: read("mlp"), mlp(E, D, D), 21.0, f"{NEW}; LLaVA-1.5 has the same layers"),
    ("input group 1024 -> 4096", lambda: read("group"), GROUP, 53.1, NEW),
    ("output image 77 x 1024", lambda: write("nextgpt", 4, 77, 1024), D * 512 + 512 + TRANSFORMER + 77 * 512 + 512 * 1024 + 1024, 32.09, NEW),
    ("output video 77 x 1024", lambda: write("nextgpt", 24, 77, 1024), D * 512 + 512 + TRANSFORMER + 77 * 512 + 512 * 1024 + 1024, 32.09, NEW),
    ("output audio 1 x 512", lambda: write("nextgpt", 8, 1, 512), D * 512 + 512 + TRANSFORMER + 512 + 512 * 512 + 512, 31.79, NEW),
    ("output image 77 x 768", lambda: write("nextgpt_legacy", 4, 77, 768), D * 512 + 512 + TRANSFORMER + 77 * 512 + 512 * 768 + 768, 31.96, OLD),
    ("output linear 4 x 1024", lambda: write("linear", 4, 4, 1024), D * 1024 + 1024, 4.2, f"{NEW[:19]}, kind linear: one nn.Linear"),
]


@pytest.mark.parametrize(("part", "build", "exact", "millions", "source"), TABLE, ids=[row[0] for row in TABLE])
def test_counts_equal_the_references(part, build, exact, millions, source):
    with torch.device("meta"):
        ours = counted(build())
    decimals = len(str(millions).partition(".")[2])
    assert ours == exact and round(ours / 1e6, decimals) == millions, (part, source)


def test_the_counts_in_figures():
    assert [row[2] for row in TABLE] == [4_198_400, 20_979_712, 53_144_912, 32_090_112, 32_090_112, 31_788_544, 31_958_784, 4_195_328]


def test_group_layers_are_those_of_the_apache_groupvit():
    """transformers' GroupViT at the same sizes differs from ours by its biases of q, k and v alone (the reference has none there)."""
    from transformers import GroupViTVisionConfig
    from transformers.models.groupvit.modeling_groupvit import GroupViTVisionEncoder

    config = GroupViTVisionConfig(hidden_size=512, intermediate_size=2048, depths=[6, 3, 3], num_attention_heads=8, num_group_tokens=[64, 8, 0])
    with torch.device("meta"):
        theirs = counted(GroupViTVisionEncoder(config))
        ours = read("group")
    ends = counted(ours.into) + counted(ours.norm) + counted(ours.out)
    assert counted(ours) - ends == theirs - 12 * 3 * 512
