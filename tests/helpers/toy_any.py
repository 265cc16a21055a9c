"""A toy model that reads pictures, clips and sounds, with samples and features in memory, for the tests of LoRA modes, families and signal blocks."""

import hashlib

import numpy as np
import torch
from toy_model import Features, Targets

from mmcore.chat.chat import Chat
from mmcore.chat.special_tokens import MEDIA, TokenTable
from mmcore.config import InputProjectorSpec, LoraSpec, ModelSpec, OutputProjectorSpec, RowsStage, SpecialTokens, StatesStage
from mmcore.encoder_config import encoder_config
from mmcore.inference.generator import Generator
from mmcore.lm.language_model import LanguageModel
from mmcore.lm.lora import lora_parameters
from mmcore.model.any_model import AnyModel
from mmcore.training.rows import ChatData
from mmcore.training.signals import SignalSide, caption_key, compute_states
from mmcore.training.states import SignalData
from mmcore.types import Sample, Shown
from pipelines.toys.parts import tiny_llama

MODES = ("shared", "per_modality")


def any_spec(mode: str) -> ModelSpec:
    """Toy shapes: every modality in, pictures out."""
    return ModelSpec(
        dtype="float32",
        lora=LoraSpec(mode=mode, rank=2, alpha=4),
        tokens=SpecialTokens(image=4, video=0, audio=2),
        encoders=tuple((modality, encoder_config(f"imagebind_{modality}", {"arch": "x", "width": 12})) for modality in MEDIA),
        input_projector=InputProjectorSpec(init_std=0.05),
        output_projector=OutputProjectorSpec(width=16, layers=1, heads=2, ffn=32, queries=5, out=8),
    )


def randomise(base: torch.nn.Module, std: float = 0.2) -> None:
    """Seeded values for every adapter, as after a training."""
    for i, parameter in enumerate(lora_parameters(base).values()):
        parameter.data.normal_(std=std, generator=torch.Generator().manual_seed(i))


def any_model(mode: str, lora: bool = True) -> AnyModel:
    """A fresh toy model, its adapters random."""
    base, tokenizer = tiny_llama(0)
    spec = any_spec(mode)
    lm = LanguageModel(base, spec.tokens, spec.seed)
    model = AnyModel(spec, lm, Chat(tokenizer, lm.table)).requires_grad_(False)
    if lora:
        model.add_lora()
        randomise(model.lm.base)
    return model.requires_grad_(False)


def samples() -> dict[str, list[Sample]]:
    """Captioned pictures, clips and sounds, questions about pictures, and requests for pictures."""
    found = {}
    for name, modality in (("pictures", "image"), ("clips", "video"), ("sounds", "audio")):
        found[name] = [Sample(key=f"{name}-{i}", source=name, modality=modality, texts=(f"a {name[:3]} {i}",)) for i in range(5)]
    pairs = (((Shown("image"), "\nhue?"), "red"), ("form?", "dot"), ("is it?", "yes"))
    found["asked"] = [Sample(key=f"asked-{i}", source="asked", modality="image", conversations=pairs) for i in range(4)]
    found["drawn"] = [Sample(key=f"drawn-{i}", source="drawn", modality="text", conversations=((f"draw {i}", (Shown("image"),)),)) for i in range(4)]
    return found


MIXTURE = (("pictures", 1.0), ("clips", 1.0), ("sounds", 1.0), ("asked", 1.0), ("drawn", 1.0))
STAGES = {
    "stage1": RowsStage(stage="stage1", steps=3, batch=10, lr=3e-3, warmup_steps=1, mixture=MIXTURE[:3]),
    "stage2": StatesStage(stage="stage2", steps=3, batch=5, lr=1e-3, warmup_steps=1, mixture=MIXTURE[:1]),
    "stage3": RowsStage(stage="stage3", steps=3, batch=10, lr=1e-3, warmup_steps=1, questions=2, mixture=MIXTURE),
}


def chat_data(config: RowsStage, model: AnyModel) -> ChatData:
    """Data of stages 1 and 3."""
    rows = samples()
    return ChatData(config, model.chat, {n: rows[n] for n, _ in config.mixture}, {m: Features() for m in MEDIA}, model.spec.input_projector)


class MemoryStates:
    """StateSet in memory."""

    def requests(self, modality, caption):
        return 1

    def __init__(self, model: AnyModel, captions: list[str]):
        self._states, self._lse = compute_states(model, "image", captions)
        self._at = {caption_key("image", text): i for i, text in enumerate(captions)}
        self.table = TokenTable(model.lm.table.base, model.spec.tokens)
        self._rows = {name: getattr(model.lm, name).detach().clone() for name in ("new_input_rows", "new_head_rows")}

    def gather(self, keys):
        index = [self._at[key] for key in keys]
        return self._states[index], self._lse[index]

    def rows(self):
        return {name: value.clone() for name, value in self._rows.items()}


def signal_side(model: AnyModel) -> tuple[SignalSide, SignalData]:
    """(model, data) of stage 2."""
    rows = samples()["pictures"]
    states = MemoryStates(model, sorted(text for sample in rows for text in sample.texts))
    side = SignalSide(model.spec, states)
    return side, SignalData(STAGES["stage2"], side, {"pictures": rows}, {"pictures": "image"}, states, {"image": Targets()})


def checksums(module: torch.nn.Module) -> dict[str, str]:
    """SHA-256 of the bytes of every parameter and buffer."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: hashlib.sha256(np.ascontiguousarray(value.detach().numpy()).tobytes()).hexdigest() for name, value in tensors}


def emitting(*names: str, mode: str = "shared", caption_turn: bool = False) -> Generator:
    """A Generator whose model writes these tokens, one after the other, and then its end token, whatever it is asked."""
    model = any_model(mode)
    table, chat = model.lm.table, model.chat
    wanted = [table.base + table.names.index(name) if name in table.names else chat.tokenizer.convert_tokens_to_ids(name) for name in names]
    script = iter(wanted)

    def logits(hidden_PD: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(len(hidden_PD), table.base + table.num_signals)
        out[:, next(script, chat.end_id)] = 1.0
        return out

    model.lm.logits = logits
    return Generator(model, caption_turn=caption_turn)
