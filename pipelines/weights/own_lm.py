"""A language model of the user's own, taken in without a hub: a transformers directory of a decoder-only model in safetensors.

Owns the proof that the files are a whole model of the family that config.json names and that the recipe's chat template and LoRA targets fit it; sizes
are compared on meta tensors, so nothing of the model is held in memory. Input: the files that pipelines.weights.given_files chose, as sources of the step;
output: `lm/` and `licence.json`, like the other weights steps. The weights are copied as they are. Nothing is converted: pickled checkpoints, missing tensors,
tensors of another shape, values that are not finite, weights that somebody else has quantised and families that LanguageModel cannot use are errors.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.step import AnyloomError, StepContext
from infra.storage import read_json, write_json
from mmcore.chat.chat import Chat
from mmcore.chat.special_tokens import TokenTable
from mmcore.config import SpecialTokens
from mmcore.lm.catalogue import known_lm
from mmcore.lm.families import check_family, lora_targets
from mmcore.lm.language_model import load_tokenizer, own_code_refused
from mmcore.runtime.given_weights import check_finite, check_unquantised
from pipelines.weights.config import LmConfig

if TYPE_CHECKING:
    import torch

PLACES = ("_name_or_path", "name_or_path", "local_files_only", "is_local")
"""Settings that tell where a directory was made."""


def run(ctx: StepContext[LmConfig]) -> dict[str, Any]:
    """`lm/`: the directory's model and tokenizer. Returns width, rows of the embedding and parameters."""
    config = ctx.config
    given, folder = ctx.sources["config.json"].parent, ctx.output / "lm"
    folder.mkdir()
    ctx.progress(0, 3, "reading")
    for name, path in ctx.sources.items():
        if path.suffix == ".json" and name in ("config.json", "tokenizer_config.json"):
            write_json(folder / name, {key: value for key, value in read_json(path).items() if key not in PLACES})
        elif path.suffix != ".safetensors":
            shutil.copyfile(path, folder / name)
    model = _prove(given, folder, config, [path for name, path in sorted(ctx.sources.items()) if path.suffix == ".safetensors"])
    ctx.progress(1, 3, "copying")
    for name, path in ctx.sources.items():
        if path.suffix == ".safetensors":
            shutil.copyfile(path, folder / name)
    known = known_lm(config.arch)
    licence = (known.licence, known.commercial) if known else ("unknown: see publisher", "unknown")
    about = {"name": f"{config.arch}, as {known.published}" if known else config.arch, "licence": licence[0], "commercial_use": licence[1]}
    write_json(ctx.output / "licence.json", about | {"source": "files given with --weights; the licence is the catalogue's, not read from the files"})
    ctx.progress(3, 3, "done")
    width, rows = model.get_input_embeddings().weight.shape[1], model.get_input_embeddings().weight.shape[0]
    return {
        "arch": config.arch,
        "kind": "given",
        "licence": licence[0],
        "parameters": sum(p.numel() for p in model.parameters()),
        "width": width,
        "vocab": rows,
    }


def _prove(given: Path, folder: Path, config: LmConfig, weights: list[Path]) -> Any:
    """The model on meta tensors. Raises AnyloomError when the directory cannot be used as the recipe's language model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with own_code_refused(folder):
            check_unquantised(folder)
            settings = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        check_family(settings)
        with own_code_refused(folder), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(settings, trust_remote_code=False)
        lora_targets(model, config.targets)
    except (ValueError, KeyError, OSError) as error:
        raise AnyloomError(f"{given}: not the directory of a language model that can be used here: {_first_line(error)}") from error
    _complete(given, model, weights)
    try:
        tokenizer = load_tokenizer(folder)
        rows = int(model.get_input_embeddings().weight.shape[0])
        Chat(tokenizer, TokenTable(rows, SpecialTokens()), config.chat)
    except Exception as error:  # tokenizers have many ways to say that they cannot be opened
        raise AnyloomError(f"{given}: its tokenizer cannot be used with chat={config.chat}: {_first_line(error)}") from error
    if len(tokenizer) > rows:
        raise AnyloomError(f"{given}: the tokenizer has {len(tokenizer)} tokens, the embedding matrix {rows} rows: they do not belong together")
    return model


def _complete(given: Path, model: torch.nn.Module, weights: list[Path]) -> None:
    """Every tensor of the model is in the files, in its shape. Names may lack or have the model's outer prefix, as transformers reads them."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, tuple[int, ...]] = {}
    for path in weights:
        try:
            with safe_open(path, framework="pt") as handle:
                found |= {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}
                check_finite(((name, handle.get_tensor(name)) for name in sorted(handle.keys())), path)
        except SafetensorError as error:
            raise AnyloomError(f"{path}: no safetensors file: {_first_line(error)}") from error
        except ValueError as error:
            raise AnyloomError(str(error)) from error
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    found |= {prefix + name: shape for name, shape in found.items() if not name.startswith(prefix)}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    unsaved = [name for name, tensor in sorted(model.state_dict().items()) if name not in found and name not in tied]
    if unsaved:
        more = f" and {len(unsaved) - 1} more" if len(unsaved) > 1 else ""
        raise AnyloomError(f"{given}: the weights lack {unsaved[0]}{more}; are they those of this config.json, with every shard?")
    for name, tensor in sorted(model.state_dict().items()):
        if found.get(name, tuple(tensor.shape)) != tuple(tensor.shape):
            raise AnyloomError(f"{given}: the weights have {name} of shape {found[name]}, config.json says {tuple(tensor.shape)}")


def _first_line(error: Exception) -> str:
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return re.sub(r"\s+", " ", line)
