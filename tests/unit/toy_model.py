"""A toy model with samples and features in memory, for the tests of training and generation."""

import numpy as np
import torch

from mmcore.config import EncoderSpec, InputProjectorSpec, LoraSpec, ModelSpec, OutputProjectorSpec, SpecialTokens, StageConfig
from mmcore.data.chat import Chat
from mmcore.data.chat_data import ChatData
from mmcore.llm import LanguageModel
from mmcore.lora import attach_lora, lora_parameters
from mmcore.model import AnyModel
from mmcore.types import Sample
from pipelines.weights_tiny import tiny_llama

SPEC = ModelSpec(
    dtype="float32",
    lora=LoraSpec(rank=2, alpha=4),
    tokens=SpecialTokens(image=4, video=0, audio=0),
    encoders=(("image", EncoderSpec(kind="timm_image", arch="x", width=12)),),
    input_projector=InputProjectorSpec(init_std=0.05),
    output_projector=OutputProjectorSpec(width=16, layers=1, heads=2, ffn=32, queries=5, out=8),
)
HUES, FORMS = ("red", "blue", "teal"), ("circle", "square")


def build(lora: bool = False) -> AnyModel:
    """A fresh toy model; every call gives the same values."""
    base, tokenizer = tiny_llama(0)
    lm = LanguageModel(base.eval(), SPEC.tokens, SPEC.seed)
    model = AnyModel(SPEC, lm, Chat(tokenizer, lm.table)).requires_grad_(False)
    if lora:
        attach_lora(model.lm.base, SPEC.lora, 0)
        for i, parameter in enumerate(lora_parameters(model.lm.base).values()):
            parameter.data.normal_(std=0.2, generator=torch.Generator().manual_seed(i))
    return model


class Features:
    """Three seeded tokens per key (two for every fourth)."""

    def gather(self, keys):
        lengths = np.array([2 if sum(key.encode()) % 4 == 0 else 3 for key in keys], np.int64)
        features = np.zeros((len(keys), int(lengths.max()), 12), np.float32)
        for row, key, length in zip(features, keys, lengths, strict=True):
            row[:length] = np.random.default_rng(sum(key.encode())).normal(1.0, 3.0, (length, 12))
        return features, lengths


class Targets:
    """Two to seven seeded tokens of width 8 per caption."""

    def gather(self, keys):
        lengths = np.array([2 + sum(key.encode()) % 6 for key in keys], np.int64)
        features = np.zeros((len(keys), int(lengths.max()), 8), np.float32)
        for row, key, length in zip(features, keys, lengths, strict=True):
            row[:length] = np.random.default_rng(sum(key.encode())).normal(0.5, 2.0, (length, 8))
        return features, lengths


def captioned(num: int = 11) -> list[Sample]:
    """Pictures with captions."""
    return [
        Sample(key=f"pictures-{i:06d}", source="pictures", modality="image", texts=(f"a {HUES[i % 3]} {FORMS[i % 2]} {i}",), media_sha256=f"sha{i}")
        for i in range(num)
    ]


def asked(num: int = 7) -> list[Sample]:
    """Pictures with five questions each."""
    rows = []
    for i in range(num):
        pairs = (
            ("<image>\nwhat hue?", HUES[i % 3]),
            ("form?", FORMS[i % 2]),
            ("is it red?", "yes" if i % 3 == 0 else "no"),
            ("is it blue?", "no"),
            ("n?", "1"),
        )
        rows.append(Sample(key=f"asked-{i:06d}", source="asked", modality="image", conversations=pairs, media_sha256=f"sha{i}"))
    return rows


def drawn() -> list[Sample]:
    """Requests for pictures."""
    return [Sample(key=f"drawn-{i:06d}", source="drawn", modality="text", conversations=((f"draw {hue}", "<image>"),)) for i, hue in enumerate(HUES)]


STAGE1 = StageConfig(stage="stage1", steps=6, batch=5, lr=3e-3, warmup_steps=2, checkpoint_every=2, mixture=(("pictures", 1.0),))
STAGE3 = StageConfig(
    stage="stage3",
    steps=6,
    batch=5,
    lr=1e-3,
    warmup_steps=2,
    checkpoint_every=2,
    questions=2,
    caption_turn=True,
    balance_answers=True,
    mixture=(("asked", 3.0), ("drawn", 1.0), ("pictures", 1.0)),
)
STAGE2 = StageConfig(stage="stage2", steps=6, batch=5, lr=1e-3, warmup_steps=2, checkpoint_every=2, mixture=(("pictures", 1.0),))


def chat_data(config: StageConfig, model: AnyModel) -> ChatData:
    """Data of stages 1 and 3."""
    samples = {"pictures": captioned(), "asked": asked(), "drawn": drawn()}
    captions = {sample.media_sha256: sample.texts[0] for sample in captioned(5)}
    return ChatData(config, model.chat, {name: samples[name] for name, _ in config.mixture}, {"image": Features()}, SPEC.input_projector, captions)
