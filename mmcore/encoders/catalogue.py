"""The known weights of every encoder kind: what they are, under which licence, what they give, and the tiny twin that stands in for them in tests.

Owns facts in two literal tables, no code that loads anything; importing it loads no library. Licences are those of the weights as their publisher
states them: Whisper's and DINOv2's repositories and the model cards of the others say so in words; CLIP's is that of the repository the weights are
released from; Whisper's cards on the model hub say Apache-2.0 instead. A file of your own has the licence its publisher gave it, whatever this table
says about its family.

Not here: BEATs (Chen et al. 2022, arXiv 2212.09058). Neither transformers 5.23 nor timm carries it; the packages that do bring a speech toolkit
(ESPnet) or a vendored copy of its encoder. HuBERT, CLAP, Whisper and ImageBind are the audio encoders that can be opened.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmcore.encoder_config import BertText, EncoderConfig, HfAudio, HfImage, ImageBindImage, TimmImage, VaeImage, WhisperAudio

UNKNOWN_LICENCE = "unknown: see publisher"
VISION, TIMM = ("hf_image", "hf_video"), ("timm_image", "timm_video")
SHARED = (*VISION, "hf_text")


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownWeights:
    """One published set of weights."""

    name: str
    kinds: tuple[str, ...]
    """Encoder kinds that open it."""
    arch: str
    """spec.arch; of the hf kinds what follows `:` only names the weights."""
    licence: str
    """SPDX name where there is one."""
    commercial: str
    """Commercial use: yes, no or unknown."""
    published: str
    """Where its publisher keeps it: a code repository, or a name on the model hub."""
    features: str
    """Shape of one image's, frame's, audio's or text's features as text; grid and tokens are the spec's."""
    tiny: str
    """Name in TWINS."""


CATALOGUE: tuple[KnownWeights, ...] = (
    KnownWeights(
        name="ImageBind huge, vision",
        kinds=("imagebind_image", "imagebind_video"),
        arch="imagebind_huge",
        licence="CC-BY-NC-SA-4.0 (research only)",
        commercial="no",
        published="facebookresearch/ImageBind: imagebind_huge.pth",
        features="[1, 1024] or [grid*grid, 1280]",
        tiny="imagebind_toy",
    ),
    KnownWeights(
        name="ImageBind huge, audio",
        kinds=("imagebind_audio",),
        arch="imagebind_huge",
        licence="CC-BY-NC-SA-4.0 (research only)",
        commercial="no",
        published="facebookresearch/ImageBind: imagebind_huge.pth",
        features="[1, 1024] or [tokens, 768]",
        tiny="imagebind_toy",
    ),
    KnownWeights(
        name="ImageBind huge, text",
        kinds=("imagebind_text",),
        arch="imagebind_huge",
        licence="CC-BY-NC-SA-4.0 (research only)",
        commercial="no",
        published="facebookresearch/ImageBind: imagebind_huge.pth",
        features="[1, 1024]",
        tiny="imagebind_toy",
    ),
    KnownWeights(
        name="CLIP ViT-L/14",
        kinds=SHARED,
        arch="clip:vit-large-patch14",
        licence="MIT",
        commercial="yes",
        published="openai/clip-vit-large-patch14",
        features="[1, 768] or [grid*grid, 1024]",
        tiny="tiny-clip",
    ),
    KnownWeights(
        name="CLIP ViT-B/32",
        kinds=SHARED,
        arch="clip:vit-base-patch32",
        licence="MIT",
        commercial="yes",
        published="openai/clip-vit-base-patch32",
        features="[1, 512] or [grid*grid, 768]",
        tiny="tiny-clip",
    ),
    KnownWeights(
        name="SigLIP so400m/14, 384 px",
        kinds=SHARED,
        arch="siglip:so400m-patch14-384",
        licence="Apache-2.0",
        commercial="yes",
        published="google/siglip-so400m-patch14-384",
        features="[1 or grid*grid, 1152]",
        tiny="tiny-siglip",
    ),
    KnownWeights(
        name="DINOv2 ViT-L/14",
        kinds=VISION,
        arch="dinov2:large",
        licence="Apache-2.0",
        commercial="yes",
        published="facebook/dinov2-large",
        features="[1 or grid*grid, 1024]",
        tiny="tiny-dinov2",
    ),
    KnownWeights(
        name="EfficientNet-lite0",
        kinds=TIMM,
        arch="tf_efficientnet_lite0",
        licence="Apache-2.0",
        commercial="yes",
        published="timm/tf_efficientnet_lite0.in1k",
        features="[grid*grid, 1280]",
        tiny="test_efficientnet",
    ),
    KnownWeights(
        name="NFNet-F6",
        kinds=TIMM,
        arch="dm_nfnet_f6",
        licence="Apache-2.0",
        commercial="yes",
        published="timm/dm_nfnet_f6.dm_in1k",
        features="[grid*grid, 3072]",
        tiny="test_nfnet",
    ),
    KnownWeights(
        name="ViT-B/16 AugReg",
        kinds=TIMM,
        arch="vit_base_patch16_224",
        licence="Apache-2.0",
        commercial="yes",
        published="timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
        features="[grid*grid, 768]",
        tiny="test_vit",
    ),
    KnownWeights(
        name="EVA-CLIP g/14",
        kinds=TIMM,
        arch="eva_giant_patch14_clip_224",
        licence="MIT",
        commercial="yes",
        published="timm/eva_giant_patch14_clip_224.laion400m",
        features="[grid*grid, 1408]",
        tiny="eva02_tiny_patch14_224",
    ),
    KnownWeights(
        name="EVA02-CLIP L/14",
        kinds=TIMM,
        arch="eva02_large_patch14_clip_224",
        licence="MIT",
        commercial="yes",
        published="timm/eva02_large_patch14_clip_224.merged2b",
        features="[grid*grid, 1024]",
        tiny="eva02_tiny_patch14_224",
    ),
    KnownWeights(
        name="Stable Diffusion VAE, ft-MSE",
        kinds=("vae_image",),
        arch="sd-vae",
        licence="MIT",
        commercial="yes",
        published="stabilityai/sd-vae-ft-mse",
        features="[(image_size/8)^2, 4]",
        tiny="tiny-vae",
    ),
    KnownWeights(
        name="Whisper tiny.en, encoder",
        kinds=("whisper_audio",),
        arch="whisper",
        licence="MIT",
        commercial="yes",
        published="openai/whisper-tiny.en",
        features="[tokens, 384]",
        tiny="tiny-whisper",
    ),
    KnownWeights(
        name="Whisper large-v3, encoder",
        kinds=("whisper_audio",),
        arch="whisper",
        licence="MIT",
        commercial="yes",
        published="openai/whisper-large-v3",
        features="[tokens, 1280]",
        tiny="tiny-whisper",
    ),
    KnownWeights(
        name="CLAP HTSAT unfused",
        kinds=("hf_audio", "hf_text"),
        arch="clap:htsat-unfused",
        licence="Apache-2.0",
        commercial="yes",
        published="laion/clap-htsat-unfused",
        features="[1, 512] or [tokens, 768]",
        tiny="tiny-clap",
    ),
    KnownWeights(
        name="HuBERT base",
        kinds=("hf_audio",),
        arch="hubert:base-ls960",
        licence="Apache-2.0",
        commercial="yes",
        published="facebook/hubert-base-ls960",
        features="[1 or tokens, 768]",
        tiny="tiny-hubert",
    ),
    KnownWeights(
        name="all-MiniLM-L6-v2",
        kinds=("bert_text",),
        arch="bert",
        licence="Apache-2.0",
        commercial="yes",
        published="sentence-transformers/all-MiniLM-L6-v2",
        features="[tokens of the text, 384]",
        tiny="tiny-bert",
    ),
)

TWINS: dict[str, EncoderConfig] = {
    "imagebind_toy": ImageBindImage(arch="imagebind_toy", width=32),
    "tiny-clip": HfImage(arch="clip:tiny", width=16),
    "tiny-siglip": HfImage(arch="siglip:tiny", width=16),
    "tiny-dinov2": HfImage(arch="dinov2:tiny", width=32),
    "test_efficientnet": TimmImage(arch="test_efficientnet", width=256, grid=2, image_size=32),
    "test_nfnet": TimmImage(arch="test_nfnet", width=192, grid=2, image_size=96),
    "test_vit": TimmImage(arch="test_vit", width=64, grid=2, image_size=160),
    "eva02_tiny_patch14_224": TimmImage(arch="eva02_tiny_patch14_224", width=192, grid=2),
    "tiny-vae": VaeImage(arch="tiny-vae", width=4, image_size=32),
    "tiny-whisper": WhisperAudio(arch="tiny-whisper", width=32, tokens=4),
    "tiny-clap": HfAudio(arch="clap:tiny", width=16, max_seconds=2.0),
    "tiny-hubert": HfAudio(arch="hubert:tiny", width=32, max_seconds=2.0),
    "tiny-bert": BertText(arch="bert", width=32, tokens=16),
}
"""What a weights step makes from a seed in a second (its `arch`) -> the spec that opens it, for one of its kinds. The layout of the real ones at toy size."""


def family(arch: str) -> str:
    """`clip:vit-large-patch14` -> `clip`."""
    return arch.partition(":")[0]


def licence_of(name: str) -> str:
    """Licence of the entry called `name`. Raises KeyError for another name."""
    return {entry.name: entry.licence for entry in CATALOGUE}[name]


def known(kind: str, arch: str) -> KnownWeights | None:
    """The entry of exactly these weights, or one of their family where all of the family agree on the licence; None: not known."""
    of_kind = [entry for entry in CATALOGUE if kind in entry.kinds]
    exact = [entry for entry in of_kind if entry.arch == arch]
    related = [entry for entry in of_kind if family(entry.arch) == family(arch)]
    found = exact or (related if len({entry.licence for entry in related}) == 1 else [])
    return found[0] if found else None
