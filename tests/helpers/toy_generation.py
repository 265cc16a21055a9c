"""Stage 2 with a denoising loss at toy size: a toy model whose signal blocks drive toy decoders, everything in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from toy_any import any_spec, randomise
from toy_decoders import decoder, directory

from mmcore.chat.chat import Chat
from mmcore.chat.special_tokens import TokenTable
from mmcore.config import ModelSpec, OutputProjectorSpec, SpecialTokens, StatesStage, output_spec
from mmcore.decoders.projected import joined
from mmcore.decoders.texts import encode_texts
from mmcore.lm.language_model import LanguageModel
from mmcore.model.any_model import AnyModel
from mmcore.training.fit import draws
from mmcore.training.generation_loss import GenerationLoss
from mmcore.training.signals import SignalSide, caption_key, compute_states, target_key
from mmcore.training.states import SignalData
from mmcore.types import Sample
from pipelines.toys.parts import tiny_llama

MOST = 12
"""Most tokens of a stream that takes any number."""
STAGE2 = StatesStage(
    stage="stage2", steps=4, batch=4, lr=1e-3, warmup_steps=1, checkpoint_every=2, mixture=(("pictures", 1.0),), denoise_loss=1.0, min_snr_gamma=5.0
)


def projector_for(name: str) -> OutputProjectorSpec:
    """A toy output projector that fits a toy decoder."""
    *fixed, last = decoder(name).contract.streams
    queries = sum(stream.tokens for stream in fixed) + (min(MOST, last.tokens) if last.any_length else last.tokens)
    width = max(stream.width for stream in decoder(name).contract.streams)
    return OutputProjectorSpec(width=16, layers=1, heads=2, ffn=32, queries=queries, out=width)


def spec_for(names: tuple[str, ...], mode: str = "shared") -> ModelSpec:
    """A toy model that drives these decoders, one for each modality. mode: of LoRA."""
    modalities = {decoder(name).contract.modality: projector_for(name) for name in names}
    tokens = SpecialTokens(**{"image": 0, "video": 0, "audio": 0, **dict.fromkeys(modalities, 3)})
    return replace(any_spec(mode), tokens=tokens, output_projectors=tuple(modalities.items()))


def samples(modality: str, num: int = 5) -> list[Sample]:
    """Captioned media."""
    return [Sample(key=f"{modality}-{i}", source=modality, modality=modality, texts=(f"a {modality} {i}",)) for i in range(num)]


class MemoryStates:
    """StateSet in memory."""

    def requests(self, modality, caption):
        return 1

    def __init__(self, model: AnyModel, captions: dict[str, list[str]]):
        self._found, self.table = {}, TokenTable(model.lm.table.base, model.spec.tokens)
        for modality, texts in captions.items():
            for text, states, lse in zip(texts, *compute_states(model, modality, texts), strict=True):
                self._found[caption_key(modality, text)] = (states, lse)
        self._rows = {name: getattr(model.lm, name).detach().clone() for name in ("new_input_rows", "new_head_rows")}

    def gather(self, keys):
        states, lse = zip(*(self._found[key] for key in keys), strict=True)
        return torch.stack(states), torch.stack(lse)

    def rows(self):
        return {name: value.clone() for name, value in self._rows.items()}


class OwnTargets:
    """Captions through the decoder's own text encoders."""

    def __init__(self, name: str, texts: list[str]):
        spec, (streams, masks) = projector_for(name), encode_texts(directory(name), texts)
        rows = joined(decoder(name).contract, streams, masks, spec.queries, spec.out)
        self._rows = {target_key(text): row.numpy() for text, row in zip(texts, rows, strict=True)}

    def gather(self, keys):
        lengths = np.array([len(self._rows[key]) for key in keys])
        features = np.zeros((len(keys), int(lengths.max()), self._rows[keys[0]].shape[1]), np.float32)
        for row, key, length in zip(features, keys, lengths, strict=True):
            row[:length] = self._rows[key]
        return features, lengths


class OwnLatents:
    """Seeded latents of the decoder's shape for every key."""

    def __init__(self, name: str):
        self._shape = decoder(name).contract.latent_shape

    def gather(self, keys):
        return torch.stack([torch.randn(self._shape, generator=draws("latents", key)) for key in keys])


def model_for(names: tuple[str, ...], mode: str = "") -> AnyModel:
    """The toy model whose states stage 2 trains on. mode: of its LoRA adapters, which are random; "" for none."""
    spec = spec_for(names, mode or "shared")
    base, tokenizer = tiny_llama(0)
    lm = LanguageModel(base, spec.tokens, spec.seed)
    model = AnyModel(spec, lm, Chat(tokenizer, lm.table))
    if mode:
        model.add_lora()
        randomise(model.lm.base)
    return model.requires_grad_(False)


def stage2(names: tuple[str, ...], config: StatesStage = STAGE2, model: AnyModel | None = None) -> tuple[SignalSide, SignalData]:
    """(model, data) at the start of a stage 2 that drives these decoders. model: whose states it trains on."""
    model, by_modality = model or model_for(names), {decoder(name).contract.modality: name for name in names}
    rows = {modality: samples(modality) for modality in by_modality}
    captions = {modality: [text for sample in found for text in sample.texts] for modality, found in rows.items()}
    states = MemoryStates(model, captions)
    side = SignalSide(model.spec, states)
    config = replace(config, mixture=tuple((modality, 1.0) for modality in sorted(rows)))
    targets = {modality: OwnTargets(name, captions[modality]) for modality, name in by_modality.items()}
    denoised = {modality: GenerationLoss(decoder(name), OwnLatents(name), config) for modality, name in by_modality.items()}
    return side, SignalData(config, side, rows, {modality: modality for modality in rows}, states, targets, denoised)


def queries_of(names: tuple[str, ...], modality: str) -> int:
    """Q of a modality's projector."""
    return output_spec(spec_for(names), modality).queries
