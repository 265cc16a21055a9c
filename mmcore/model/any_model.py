"""AnyModel: input projectors, language model and output projectors as one module.

Owns where features go: projected features replace the placeholder tokens of a batch, and any mismatch of their counts raises. Returns
hidden states; logits are asked for only where something is supervised.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from infra.step import AnyloomError
from mmcore.chat.chat import Chat
from mmcore.chat.special_tokens import MEDIA, placeholder
from mmcore.config import ModelSpec, output_spec
from mmcore.lm.language_model import check_length, load_lm, load_tokenizer, packed_mask
from mmcore.lm.lora import attach_lora, load_lora, lora_parameters
from mmcore.lm.lora_layers import routing_of
from mmcore.lm.protocol import LanguageModelLike
from mmcore.lm.routes import token_routes
from mmcore.projectors.base import StandardisedProjector
from mmcore.projectors.inputs import build_input_projector
from mmcore.projectors.outputs import build_output_projector
from mmcore.runtime.given_weights import check_finite
from mmcore.types import IGNORE, PADDING, Batch, MediaBatch

TENSORS, LORA = "tensors.safetensors", "lora"


class AnyModel(nn.Module):
    """spec: shapes and seed of all parts; lm: the frozen language model; chat: how its text becomes ids (kept for the model's users)."""

    def __init__(self, spec: ModelSpec, lm: LanguageModelLike, chat: Chat):
        super().__init__()
        self.spec, self.lm, self.chat = spec, lm, chat
        self.input_projectors = nn.ModuleDict(
            {
                modality: build_input_projector(spec.input_projector, encoder.width, lm.width, spec.seed + MEDIA.index(modality))
                for modality, encoder in sorted(spec.encoders)
            }
        )
        self.output_projectors = output_projectors(spec, lm.width)
        self.untrained: frozenset[str] = frozenset()
        """Modalities whose output projectors no stage has trained (see check_trained)."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.lm.new_input_rows.device

    def embed(self, ids_BT: torch.Tensor, media: Mapping[str, MediaBatch]) -> torch.Tensor:
        """Token ids and features -> embeds_BTD in the LM's dtype.

        Raises ValueError, with both counts, when a row's placeholder tokens are not exactly its projected feature tokens.
        """
        embeds_BTD = self.lm.embed(ids_BT)
        for modality in MEDIA:
            holes_BT = ids_BT == self.lm.table.placeholder_id(modality)
            part = media.get(modality)
            if part is None:
                if bool(holes_BT.any()):
                    raise ValueError(f"the batch has {int(holes_BT.sum())} {placeholder(modality)} tokens but 0 {modality} feature tokens")
                continue
            embeds_BTD = self._fill(embeds_BTD, holes_BT, modality, part)
        return embeds_BTD

    def _fill(self, embeds_BTD: torch.Tensor, holes_BT: torch.Tensor, modality: str, part: MediaBatch) -> torch.Tensor:
        if modality not in self.input_projectors:
            raise ValueError(f"this model has no {modality} encoder: add it to the recipe's encoders")
        projected_BKD, mask_BK = self.input_projectors[modality](part.features_BNE, part.lengths_B)
        given_B = torch.zeros(len(holes_BT), dtype=torch.int64, device=holes_BT.device).index_add_(0, part.rows_B, mask_BK.sum(1))
        wanted_B = holes_BT.sum(1)
        for row in torch.nonzero(given_B != wanted_B).flatten().tolist():
            raise ValueError(
                f"row {row} has {int(wanted_B[row])} {placeholder(modality)} tokens but {int(given_B[row])} {modality} feature tokens: they must be equal"
            )
        return embeds_BTD.masked_scatter(holes_BT[..., None], projected_BKD[mask_BK].to(embeds_BTD.dtype))

    def set_draw(self, draw: int | None) -> None:
        """Number of the noise that the random parts take from now on: the input projectors' own, and the dropout of LoRA. Frozen ones, and None, take none."""
        routing = routing_of(self.lm.base)
        if routing is not None:
            routing.draw = draw if any(parameter.requires_grad for parameter in lora_parameters(self.lm.base).values()) else None
        for projector in self.input_projectors.values():
            assert isinstance(projector, StandardisedProjector)
            projector.draw = draw if any(parameter.requires_grad for parameter in projector.parameters()) else None

    def add_lora(self) -> None:
        """Attach the recipe's LoRA adapters to the language model, unless they are there. B starts at zero: nothing changes yet."""
        if routing_of(self.lm.base) is None:
            attach_lora(self.lm.base, self.spec.lora, self.spec.seed, [modality for modality, _ in self.spec.encoders])

    def routes(self, ids_BL: torch.Tensor, segments_BL: torch.Tensor) -> torch.Tensor | None:
        """0/1 routes [B, L, A] of packed rows through adapters per modality; None when the model routes nothing."""
        routing = routing_of(self.lm.base)
        if routing is None or routing.shared:
            return None
        return token_routes(ids_BL, segments_BL, self.lm.table, routing.adapters)

    def forward(self, batch: Batch) -> torch.Tensor:
        """hidden_BTD of packed rows. Raises ValueError for a row that is longer than the language model reads."""
        if batch.positions_BT.numel():
            check_length(int(batch.positions_BT.max()) + 1, self.lm.longest)
        mask = packed_mask(batch.segments_BT, batch.segments_BT, self.lm.dtype)
        routes, routing = self.routes(batch.ids_BT, batch.segments_BT), routing_of(self.lm.base)
        seeds = None if routing is None else routing.token_seeds(batch.ids_BT, batch.numbers_B)
        real = batch.segments_BT != PADDING
        return self.lm.hidden(self.embed(batch.ids_BT, batch.media), mask, batch.positions_BT, routes_BTA=routes, seeds_BT=seeds, real_BT=real)

    def supervised(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits [P, V+S] float32, targets [P]) at the P supervised positions only, in row-major order."""
        where_BT = batch.targets_BT != IGNORE
        return self.lm.logits(self(batch)[where_BT]), batch.targets_BT[where_BT]

    def conditioning(self, modality: str, hidden_BSD: torch.Tensor) -> torch.Tensor:
        """Hidden states of complete signal blocks -> conditioning_BQC. Raises AnyloomError when nothing trained the modality's output projector."""
        if modality in self.untrained:
            raise AnyloomError(f"the model emits {modality}, but its output projector was never trained: train stage2 and export again, or ask for words")
        conditioning_BQC: torch.Tensor = self.output_projectors[modality](hidden_BSD, signal_rows(self.lm, modality))
        return conditioning_BQC


def signal_rows(lm: Any, modality: str) -> torch.Tensor:
    """Input rows [S, D] of a modality's signal tokens; lm: anything with `table` and `new_input_rows`."""
    ids = lm.table.block(modality)
    rows: torch.Tensor = lm.new_input_rows[ids[0] - lm.table.base : ids[-1] + 1 - lm.table.base]
    return rows


def output_projectors(spec: ModelSpec, lm_width: int) -> nn.ModuleDict:
    """One output projector per modality that has signal tokens. Raises ValueError when the spec describes one for a modality without."""
    counts = {modality: int(getattr(spec.tokens, modality)) for modality in MEDIA}
    for modality, _ in spec.output_projectors:
        if not counts.get(modality):
            raise ValueError(f"output_projectors describes {modality}, which has no signal tokens: set tokens.{modality} or leave it out")
    return nn.ModuleDict(
        {
            modality: build_output_projector(output_spec(spec, modality), lm_width, counts[modality], spec.seed + 100 + MEDIA.index(modality))
            for modality in MEDIA
            if counts[modality]
        }
    )


def load_tensors(module: nn.Module, path: Path, only: str = "") -> None:
    """Copy named tensors of a stage into a module; only: those whose names begin so.

    Raises ValueError for a name or shape the module does not have, and for values that are not finite.
    """
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, value in load_file(path).items():
        if not name.startswith(only):
            continue
        if name not in own:
            raise ValueError(f"{path} holds {name}, which this model does not have: the recipe's model changed since it was trained")
        if own[name].shape != value.shape:
            shapes = f"{name} has shape {tuple(value.shape)}, the model wants {tuple(own[name].shape)}"
            raise ValueError(f"{path}: {shapes}: it was trained with another language model, encoder or projector; train that stage again with these")
        check_finite([(name, value)], path)
        own[name].data.copy_(value)


def check_trained(model: AnyModel, path: Path) -> None:
    """The projectors of an exported model come from its tensors (path), not from a seed: notes the modalities that have no trained output projector.

    Raises ValueError naming the file, or what it lacks of an encoder's input projector, or of an output projector that is there in part.
    """
    if not path.is_file():
        raise ValueError(f"it has no {path.name}: copy the whole export")
    with safe_open(path, framework="pt") as handle:
        held = set(handle.keys())
    untrained = set()
    for side in ("input_projectors", "output_projectors"):
        for modality, projector in getattr(model, side).items():
            start = f"{side}.{modality}."
            lacking = [start + name for name, parameter in projector.named_parameters() if parameter.numel() and start + name not in held]
            if lacking and side == "input_projectors":
                remedy = f"train stage1 and export again, or take {modality} out of the encoders"
                raise ValueError(f"{path.name} lacks {lacking[0]}: the input projector of {modality} was never trained; {remedy}")
            if lacking and any(name.startswith(start) for name in held):
                raise ValueError(f"{path.name} lacks {lacking[0]}, but holds the rest of this projector: export again")
            if lacking:
                untrained.add(modality)
    model.untrained = frozenset(untrained)


def load_model(spec: ModelSpec, lm_dir: Path, stages: tuple[Path, ...] = (), device: str = "cpu") -> AnyModel:
    """The model after the given stage artifacts, loaded in order. lm_dir: transformers directory of the frozen LM; device: where the caller will move it."""
    lm = load_lm(lm_dir, spec.dtype, spec.tokens, spec.seed, spec.quantize, device)
    model = AnyModel(spec, lm, Chat(load_tokenizer(lm_dir), lm.table, spec.chat))
    for stage in stages:
        if (stage / TENSORS).exists():
            load_tensors(model, stage / TENSORS)
        if (stage / LORA).is_dir():
            model.add_lora()
            load_lora(model.lm.base, stage / LORA)
    return model.requires_grad_(False)
