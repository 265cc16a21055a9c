"""A toy model with samples and features in memory, for the tests of training and generation."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from infra.fingerprint import to_plain
from mmcore.chat.chat import Chat
from mmcore.chat.rows import RowBuilder
from mmcore.config import InputProjectorSpec, LoraSpec, ModelSpec, OutputProjectorSpec, RowsStage, SpecialTokens, StatesStage
from mmcore.encoder_config import TimmImage
from mmcore.inference.generator import DESCRIPTION, Generator
from mmcore.lm.language_model import LanguageModel
from mmcore.lm.lora import attach_lora, lora_parameters, save_lora
from mmcore.model.any_model import LORA, TENSORS, AnyModel
from mmcore.training.batching import collate
from mmcore.training.rows import ChatData
from mmcore.types import Sample, Shown
from pipelines.toys.parts import tiny_llama

SPEC = ModelSpec(
    dtype="float32",
    lora=LoraSpec(rank=2, alpha=4),
    tokens=SpecialTokens(image=4, video=0, audio=0),
    encoders=(("image", TimmImage(arch="x", width=12, grid=1)),),
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

    def __contains__(self, key):
        return True

    def length(self, key):
        return 2 if sum(key.encode()) % 4 == 0 else 3

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
            ((Shown("image"), "\nwhat hue?"), HUES[i % 3]),
            ("form?", FORMS[i % 2]),
            ("is it red?", "yes" if i % 3 == 0 else "no"),
            ("is it blue?", "no"),
            ("n?", "1"),
        )
        rows.append(Sample(key=f"asked-{i:06d}", source="asked", modality="image", conversations=pairs, media_sha256=f"sha{i}"))
    return rows


def drawn() -> list[Sample]:
    """Requests for pictures."""
    return [Sample(key=f"drawn-{i:06d}", source="drawn", modality="text", conversations=((f"draw {hue}", (Shown("image"),)),)) for i, hue in enumerate(HUES)]


STAGE1 = RowsStage(stage="stage1", steps=6, batch=5, lr=3e-3, warmup_steps=2, checkpoint_every=2, mixture=(("pictures", 1.0),))
STAGE3 = RowsStage(
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
STAGE2 = StatesStage(stage="stage2", steps=6, batch=5, lr=1e-3, warmup_steps=2, checkpoint_every=2, mixture=(("pictures", 1.0),))


def chat_data(config: RowsStage, model: AnyModel) -> ChatData:
    """Data of stages 1 and 3."""
    samples = {"pictures": captioned(), "asked": asked(), "drawn": drawn()}
    captions = {sample.media_sha256: sample.texts[0] for sample in captioned(5)}
    return ChatData(config, model.chat, {name: samples[name] for name, _ in config.mixture}, {"image": Features()}, SPEC.input_projector, captions)


def uncached(model: AnyModel, ids: Sequence[int], media: Mapping[str, Sequence[np.ndarray]] | None = None) -> torch.Tensor:
    """Hidden states [T, D] of one row of ids, read in one pass without a cache. media: modality -> features_NE of each, in order."""
    builder, given = RowBuilder(), {}
    builder.add(list(ids), 0)
    for modality, arrays in (media or {}).items():
        features = torch.zeros(len(arrays), max(map(len, arrays)), arrays[0].shape[1])
        for row, array in zip(features, arrays, strict=True):
            row[: len(array)] = torch.from_numpy(array)
        given[modality] = (features, torch.tensor([len(array) for array in arrays]), [0] * len(arrays))
    with torch.no_grad():
        return model(collate([builder.row()], given))[0]


def watched(generator: Generator) -> list[torch.Tensor]:
    """A list that gets the hidden states [S, D] of every further call for the next tokens' logits."""
    states, inner = [], generator.model.lm.logits

    def logits(hidden_SD: torch.Tensor) -> torch.Tensor:
        states.append(hidden_SD.clone())
        return inner(hidden_SD)

    generator.model.lm.logits = logits
    return states


def save_export(model: AnyModel, folder: Path, caption_turn: bool = False) -> Path:
    """The toy model as an export without encoders and decoders; returns the folder."""
    base, tokenizer = tiny_llama(0)
    base.save_pretrained(folder / "lm")
    tokenizer.save_pretrained(folder / "lm")
    save_lora(model.lm.base, SPEC.lora, folder / LORA)
    names = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    ours = [name for name in names if name.startswith(("input_proj", "output_proj", "lm.new_")) and "positions" not in name]
    save_file({name: names[name].detach().clone() for name in ours}, folder / TENSORS)
    (folder / DESCRIPTION).write_text(json.dumps({"model": to_plain(SPEC), "caption_turn": caption_turn, "stages": []}))
    return folder
