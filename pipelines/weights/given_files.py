"""Which files of the user's own weights count: decided while planning, so that each is a source of the step and counts by its bytes.

Input: the path given with --weights and the encoders that will open it; output: file name -> path. The files are opened in pipelines.weights.own_parts.

Directories (transformers, diffusers): config.json, weights (model.safetensors, its numbered shards with their index, or pytorch_model.bin), and
preprocessor_config.json or a tokenizer's files. A language model's weights are in safetensors. timm: one .safetensors or .pth in timm's own layout.
Decoders: a whole diffusers directory, safetensors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from infra.step import AnyloomError
from infra.storage import read_json
from mmcore.decoders.contract import INDEX
from mmcore.encoder_config import EncoderConfig

TENSORS = {"hf": "model", "vae": "diffusion_pytorch_model"}
"""First part of the name of the weights' file."""
FRONTS = ("preprocessor_config.json", "processor_config.json")
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt")
LM_TOKENIZERS = (*TOKENIZERS, "tokenizer.model", "chat_template.jinja", "generation_config.json")
TEXTS = ("text", "query")
"""Parts whose weights come with a tokenizer."""
TIMM_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts of a diffusers directory that no decoder here opens."""
WITHOUT_WEIGHTS = ("scheduler", "tokenizer")
"""Starts of the names of parts that hold settings only."""
SETTINGS = (".json", ".txt", ".model")
DECODER_WEIGHTS = (".safetensors", ".onnx")
"""Suffixes of a decoder's weights; only a voice has ONNX graphs."""


def given_files(part: str, specs: Sequence[EncoderConfig], path: Path) -> dict[str, Path]:
    """The files below `path` that the step reads, by name. part: image, audio, text or query, as in --weights; specs: the encoders that will open them.

    Raises AnyloomError when the encoder's kind does not take such a path, or something is not there.
    """
    option, spec = f"--weights {part}={path}", specs[0]
    if len({(loader_of(each.kind), each.arch) for each in specs}) > 1:
        raise AnyloomError(f"{option}: {' and '.join(f'{each.kind} {each.arch}' for each in specs)} share these weights: give them one kind and one arch")
    loader = loader_of(spec.kind)
    if loader == "imagebind":
        raise AnyloomError(f"{option}: {spec.kind} takes the released file: --weights imagebind=FILE")
    if loader == "timm":
        if not path.is_file() or path.suffix not in TIMM_SUFFIXES:
            raise AnyloomError(f"{option}: {spec.kind} takes a timm weights file ({', '.join(TIMM_SUFFIXES)}), and this is none")
        return {"weights": path}
    if not (path / "config.json").is_file():
        raise AnyloomError(f"{option}: {spec.kind} takes a directory with config.json, weights and preprocessor files, and this has no config.json")
    found = {"config.json": path / "config.json", **_tensor_files(option, path, TENSORS[loader])}
    fronts = [name for name in (TOKENIZERS if part in TEXTS else FRONTS) if (path / name).is_file()]
    if loader == "hf" and not fronts:
        raise AnyloomError(f"{option}: the directory has no {'tokenizer.json' if part in TEXTS else 'preprocessor_config.json'}")
    return found | {name: path / name for name in fronts}


def given_lm(path: Path) -> dict[str, Path]:
    """The files of a language model's directory that the step reads, by name. Raises AnyloomError when something is not there."""
    option = f"--weights lm={path}"
    if not (path / "config.json").is_file():
        raise AnyloomError(f"{option}: a language model is a transformers directory, and this has no config.json")
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise AnyloomError(f"{option}: the directory has no tokenizer.json; save the model's tokenizer there with save_pretrained")
    try:
        tensors = _tensor_files(option, path, "model", pickled=False)
    except AnyloomError as error:
        if not list(path.glob("*.bin")):
            raise
        raise AnyloomError(f"{error}; its .bin files are pickles: load the model with transformers and save_pretrained it anew") from None
    found = {"config.json": path / "config.json", **tensors}
    return found | {name: path / name for name in LM_TOKENIZERS if (path / name).is_file()}


def loader_of(kind: str) -> str:
    """timm, imagebind, vae, or hf for every kind that opens a transformers directory."""
    first = kind.partition("_")[0]
    return first if first in ("timm", "imagebind", "vae") else "hf"


def _tensor_files(option: str, path: Path, stem: str, pickled: bool = True) -> dict[str, Path]:
    """One safetensors file, else the shards with their index, else (where `pickled` allows it) a .bin."""
    shards = sorted(path.glob(f"{stem}-*-of-*.safetensors"))
    index = path / f"{stem}.safetensors.index.json"
    if (path / f"{stem}.safetensors").is_file():
        found = [path / f"{stem}.safetensors"]
    elif shards and index.is_file():
        found = [index, *shards]
    elif pickled and stem == "model" and (path / "pytorch_model.bin").is_file():
        found = [path / "pytorch_model.bin"]
    else:
        raise AnyloomError(f"{option}: the directory has no {stem}.safetensors")
    return {file.name: file for file in found}


def decoder_parts(directory: Path) -> list[str]:
    """The parts of a diffusers directory that a decoder needs, sorted. Raises AnyloomError when it is none, or names a part that can be no folder in it."""
    if not (directory / INDEX).is_file():
        raise AnyloomError(f"{directory} is no diffusers directory: it has no {INDEX}; save the decoder there with save_pretrained")
    named = {part: value for part, value in read_json(directory / INDEX).items() if isinstance(value, list) and value and value[-1] is not None}
    for part in named:
        if not part.isidentifier():  # a pipeline of diffusers takes its parts as named arguments, so a published one is; others could be paths
            raise AnyloomError(f"{directory / INDEX} names the part {part!r}, which is no plain folder name: take the decoder from its publisher again")
    return sorted(part for part in named if part not in LEFT_OUT)


def given_decoder(modality: str, directory: Path) -> dict[str, Path]:
    """The files of a decoder that count, by their names below `directory`: its index, settings, tokenizers and safetensors, of full precision where
    there are several. Raises AnyloomError naming the part that is missing or has no safetensors."""
    option = f"--weights decoder_{modality}={directory}"
    found = {INDEX: directory / INDEX}
    for part in decoder_parts(directory):
        folder = directory / part
        if not folder.is_dir():
            raise AnyloomError(f"{option}: {INDEX} names {part}, which is not there; copy the whole directory")
        files = [path for path in sorted(folder.iterdir()) if path.is_file()]
        weights = [path for path in files if path.suffix in DECODER_WEIGHTS]
        plain = [path for path in weights if path.name.count(".") == 1] or weights
        if not plain and not part.startswith(WITHOUT_WEIGHTS):
            raise AnyloomError(f"{option}: {part} has no .safetensors; convert its weights once with torch.load(weights_only=True) and safetensors")
        found |= {f"{part}/{path.name}": path for path in files if path.suffix in SETTINGS or path in plain}
    return found
