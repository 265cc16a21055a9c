"""Legacy checkpoint: the only published NExT-GPT weights (`7b_tiva_v0`, file pytorch_model.pt), read into our model and written back.

Owns the map between its tensors and ours, name by name and shape by shape, complete in both directions, and the import of the file. The layout
is that of the repository's old code (github.com/NExT-GPT/NExT-GPT, folder NExT-GPT-Lagacy): one Linear for all inputs (one token per item),
LoRA on q k v o, three transformer output projectors, and embedding and head matrices that were trained whole. Their last rows are those of the
added tokens: <Img> and </Img>, which stay in the base here, then [IMG..], [VID..], [AUD..], our signal tokens in our order, so that ids agree.

Input: that file and a transformers directory of the LM under it (Vicuna-7B v0). Output: a directory for `load_model`. The file is read with
weights_only: nothing is unpickled.

Shape letters: V rows of the LM's own vocabulary, D its width, S signal tokens of all modalities; Q, C, W as in output_projectors.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from infra.step import AnyloomError
from infra.storage import new_staging, publish_dir, write_atomic
from mmcore.chat.special_tokens import MEDIA
from mmcore.config import InputProjectorSpec, LoraSpec, ModelSpec, OutputProjectorSpec, SpecialTokens, output_spec
from mmcore.encoder_config import ImageBindAudio, ImageBindImage, ImageBindVideo
from mmcore.lm.language_model import load_tokenizer, own_code_refused
from mmcore.lm.lora import attach_lora, lora_parameters, save_lora
from mmcore.model.any_model import LORA, TENSORS
from mmcore.runtime.given_weights import check_finite, check_unquantised

WRAPPERS = ("<Img>", "</Img>")
"""Tokens that the old prompts put around an item's embedding; they precede the signal tokens."""
_LM = "llama_model.base_model.model."
_OUTPUTS = {"image": "gen_text_hidden_fcs.0", "video": "gen_text_hidden_fcs_video.0", "audio": "gen_text_hidden_fcs_audio.0"}
_MATRICES = (("model.embed_tokens.weight", "lm.new_input_rows"), ("lm_head.weight", "lm.new_head_rows"))
_NEXT = OutputProjectorSpec(kind="nextgpt_legacy", width=512, layers=4, heads=4, ffn=2048, queries=77, out=1024)


def legacy_spec() -> ModelSpec:
    """The published model: Vicuna-7B v0, ImageBind's pooled vector, Stable Diffusion 1.5 / ZeroScope 576w / AudioLDM-L."""
    kinds = (("image", ImageBindImage), ("video", ImageBindVideo), ("audio", ImageBindAudio))
    return ModelSpec(
        dtype="float16",
        encoders=tuple((modality, kind(arch="imagebind_huge", width=1024)) for modality, kind in kinds),
        input_projector=InputProjectorSpec(kind="linear"),
        output_projector=_NEXT,
        output_projectors=(
            ("image", OutputProjectorSpec(kind="nextgpt_legacy", width=512, layers=4, heads=4, ffn=2048, queries=77, out=768)),
            ("audio", OutputProjectorSpec(kind="nextgpt_legacy", width=512, layers=4, heads=4, ffn=2048, queries=1, out=512)),
        ),
        tokens=SpecialTokens(image=4, video=24, audio=8),
        lora=LoraSpec(rank=32, alpha=32, dropout=0.1, targets=("q_proj", "k_proj", "v_proj", "o_proj")),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class LmShape:
    """Sizes of the LM under the checkpoint."""

    width: int = 4096
    """D."""
    key_width: int = 4096
    """Outputs of k_proj and v_proj."""
    layers: int = 32
    vocabulary: int = 32000
    """V, tokens of the LM's own tokenizer."""

    @property
    def rows(self) -> int:
        """Rows of our base matrices: V and the wrappers. The signal tokens' ids start here, as in the checkpoint."""
        return self.vocabulary + len(WRAPPERS)


@dataclass(frozen=True, slots=True)
class Part:
    """One of our tensors: rows start..stop of a tensor of theirs, in our shape."""

    name: str
    start: int
    stop: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """One tensor of theirs and ours that it becomes; parts over the same rows are equal copies."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


def _direct(theirs: str, shape: tuple[int, ...], *ours: str) -> Link:
    return Link(theirs, shape, tuple(Part(name, 0, shape[0], shape) for name in ours))


def _output_names(layers: int, width: int, ffn: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(their name, our name, shape) of the tensors of torch's nn.Transformer, which both sides name alike but for the prefix `tfm.`."""

    def attention(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.in_proj_weight", (3 * width, width)
        yield f"{name}.in_proj_bias", (3 * width,)
        yield f"{name}.out_proj.weight", (width, width)
        yield f"{name}.out_proj.bias", (width,)

    def half(half_name: str, attentions: tuple[str, ...], norms: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for i in range(layers):
            layer = f"{half_name}.layers.{i}"
            for name in attentions:
                yield from attention(f"{layer}.{name}")
            yield from ((f"{layer}.linear1.weight", (ffn, width)), (f"{layer}.linear1.bias", (ffn,)))
            yield from ((f"{layer}.linear2.weight", (width, ffn)), (f"{layer}.linear2.bias", (width,)))
            for norm in range(1, norms + 1):
                yield from ((f"{layer}.norm{norm}.weight", (width,)), (f"{layer}.norm{norm}.bias", (width,)))
        yield from ((f"{half_name}.norm.weight", (width,)), (f"{half_name}.norm.bias", (width,)))

    for name, shape in (*half("encoder", ("self_attn",), 2), *half("decoder", ("self_attn", "multihead_attn"), 3)):
        yield f"tfm.{name}", name, shape


def links(spec: ModelSpec, lm: LmShape) -> tuple[Link, ...]:
    """The whole map. spec: as `legacy_spec`, at any size. Raises ValueError for a spec of another layout."""
    if spec.input_projector.kind != "linear" or any(output_spec(spec, modality).kind != "nextgpt_legacy" for modality in MEDIA):
        raise ValueError("the old checkpoint has linear input and nextgpt_legacy output projectors: start from legacy_spec()")
    encoder_widths = {encoder.width for _, encoder in spec.encoders}
    if {modality for modality, _ in spec.encoders} != set(MEDIA) or len(encoder_widths) != 1 or not all(getattr(spec.tokens, m) for m in MEDIA):
        raise ValueError("the old checkpoint reads and writes image, video and audio, with one width of features: start from legacy_spec()")
    signals = sum(getattr(spec.tokens, modality) for modality in MEDIA)
    made = [_direct("llama_proj.weight", (lm.width, *encoder_widths), *(f"input_projectors.{modality}.proj.weight" for modality in MEDIA))]
    made.append(_direct("llama_proj.bias", (lm.width,), *(f"input_projectors.{modality}.proj.bias" for modality in MEDIA)))
    for matrix, rows in _MATRICES:
        own = Part(f"lm.base.{matrix}", 0, lm.rows, (lm.rows, lm.width))
        new = Part(rows, lm.rows, lm.rows + signals, (signals, lm.width))
        made.append(Link(_LM + matrix, (lm.rows + signals, lm.width), (own, new)))
    for i in range(lm.layers):
        for name in spec.lora.targets:
            outputs = lm.key_width if name in ("k_proj", "v_proj") else lm.width
            for half, shape in (("lora_A", (spec.lora.rank, lm.width)), ("lora_B", (outputs, spec.lora.rank))):
                path = f"model.layers.{i}.self_attn.{name}.{half}.default.weight"
                made.append(_direct(_LM + path, shape, f"lm.base.{path}"))
    for modality in MEDIA:
        out, theirs, ours = output_spec(spec, modality), _OUTPUTS[modality], f"output_projectors.{modality}"
        made.append(_direct(f"{theirs}.fc.weight", (out.width, lm.width), f"{ours}.into.weight"))
        made.append(_direct(f"{theirs}.fc.bias", (out.width,), f"{ours}.into.bias"))
        made += [_direct(f"{theirs}.{a}", shape, f"{ours}.{b}") for a, b, shape in _output_names(out.layers, out.width, out.ffn)]
        made.append(_direct(f"{theirs}.model.weight", (out.out, out.width), f"{ours}.out.weight"))
        made.append(_direct(f"{theirs}.model.bias", (out.out,), f"{ours}.out.bias"))
        queries = (out.queries, out.width)
        made.append(Link(f"{theirs}.query_embs", (1, *queries), (Part(f"{ours}.queries_QW", 0, 1, queries),)))
    return tuple(made)


def _checked(state: Mapping[str, torch.Tensor], wanted: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raises AnyloomError naming the first tensor that is missing, unknown or of another shape."""
    for problem, names in (("lacks", wanted.keys() - state.keys()), ("has the unknown", state.keys() - wanted.keys())):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise AnyloomError(f"{what} {problem} {min(names)}{more}: is it the file and the size of legacy_spec?")
    for name, shape in wanted.items():
        if tuple(state[name].shape) != shape:
            raise AnyloomError(f"{what}: {name} has shape {tuple(state[name].shape)}, the layout says {shape}: is the LM the one it was trained on?")


def to_ours(state: Mapping[str, torch.Tensor], map_: tuple[Link, ...], what: str = "the checkpoint") -> dict[str, torch.Tensor]:
    """Their tensors by our full parameter names (LoRA: the one adapter `default`), same dtype. Raises AnyloomError for what is not in the layout."""
    _checked(state, {link.name: link.shape for link in map_}, what)
    return {part.name: state[link.name][part.start : part.stop].reshape(part.shape) for link in map_ for part in link.parts}


def to_theirs(tensors: Mapping[str, torch.Tensor], map_: tuple[Link, ...], what: str = "the model") -> dict[str, torch.Tensor]:
    """Our tensors by their names. Raises AnyloomError for what is not in the layout, and for copies that have become different."""
    _checked(tensors, {part.name: part.shape for link in map_ for part in link.parts}, what)
    state = {}
    for link in map_:
        whole = torch.empty(link.shape, dtype=tensors[link.parts[0].name].dtype)
        for part in link.parts:
            whole[part.start : part.stop] = tensors[part.name].reshape(whole[part.start : part.stop].shape)
        for part in link.parts:
            if not torch.equal(whole[part.start : part.stop].reshape(part.shape), tensors[part.name].to(whole.dtype)):
                raise AnyloomError(f"{what}: {part.name} differs from {link.parts[-1].name}, but the old layout has one {link.name} for both")
        state[link.name] = whole
    return state


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a published .pt file, on the CPU. Raises AnyloomError for a file that holds anything but named tensors."""
    if not path.is_file():
        raise AnyloomError(f"{path} is no file: give the published pytorch_model.pt")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises its own, zipfile's and the unpickler's errors for a file that is no such checkpoint
        raise AnyloomError(f"{path} is not a checkpoint of plain tensors: {(str(error) or type(error).__name__).splitlines()[0]}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise AnyloomError(f"{path} holds something else than named tensors: it must be the published pytorch_model.pt")
    return {str(name): value.detach() for name, value in state.items()}


def _base(directory: Path) -> tuple[Any, Any, LmShape]:
    """(LM, tokenizer with the wrapper tokens, sizes) of a transformers directory. Raises AnyloomError for one that cannot carry the checkpoint."""
    from transformers import AutoModelForCausalLM

    try:
        check_unquantised(directory)
        with own_code_refused(directory):
            base = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True, use_safetensors=True, dtype="auto", trust_remote_code=False)
        check_finite(base.named_parameters(), directory)
        tokenizer = load_tokenizer(directory)
    except ValueError as error:
        raise AnyloomError(f"{directory}: {str(error).partition(chr(10))[0]}") from error
    layers = getattr(getattr(base, "model", None), "layers", ())
    if not layers or not hasattr(layers[0].self_attn, "k_proj") or base.config.tie_word_embeddings:
        raise AnyloomError(f"{directory} is not an LM of the LLaMA kind with a head of its own, as the old checkpoint needs (Vicuna-7B v0)")
    lm = LmShape(width=base.config.hidden_size, key_width=layers[0].self_attn.k_proj.out_features, layers=len(layers), vocabulary=len(tokenizer))
    tokenizer.add_tokens(list(WRAPPERS), special_tokens=True)
    if tokenizer.convert_tokens_to_ids(list(WRAPPERS)) != [lm.vocabulary, lm.vocabulary + 1]:
        raise AnyloomError(f"{directory}: its tokenizer knows {' or '.join(WRAPPERS)} already: give the LM as it was before NExT-GPT")
    base.resize_token_embeddings(lm.rows, mean_resizing=False)
    return base, tokenizer, lm


def import_checkpoint(checkpoint: Path, lm_dir: Path, output: Path, spec: ModelSpec) -> LmShape:
    """Write `output`: lm/ (the LM with the checkpoint's own matrices), lora/, tensors.safetensors; `load_model(spec, output / "lm", (output,))` reads it.

    Base matrices keep the LM's dtype, trained tensors become float32. The directory appears when it is whole. Raises AnyloomError when it exists already,
    or for a file or LM that does not fit, by name.
    """
    if output.exists():
        raise AnyloomError(f"{output} exists already: name a new directory")
    state = read_checkpoint(checkpoint)
    base, tokenizer, lm = _base(lm_dir)
    ours = to_ours(state, links(spec, lm), str(checkpoint))
    own = dict(base.named_parameters())
    with torch.no_grad():
        for matrix, _ in _MATRICES:
            own[matrix].copy_(ours.pop(f"lm.base.{matrix}"))
    base.config._name_or_path = tokenizer.name_or_path = ""  # no trace of where it was made
    staging = new_staging(output.absolute())
    try:
        base.save_pretrained(staging / "lm")
        tokenizer.save_pretrained(staging / "lm")
        attach_lora(base, spec.lora, spec.seed)
        for name, parameter in lora_parameters(base).items():
            parameter.data.copy_(ours.pop(f"lm.base.{name}"))
        save_lora(base, spec.lora, staging / LORA)
        write_atomic(staging / TENSORS, save({name: value.float().contiguous().clone() for name, value in sorted(ours.items())}))
        publish_dir(staging, output.absolute())
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return lm
