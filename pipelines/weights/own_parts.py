"""Weights of the user's own, taken in without a hub: a transformers or diffusers directory, or a timm file.

Owns the cut to the half that the recipe's encoder needs (vision, audio or text) and the proof that the encoder opens what was written. Input: the
files that pipelines.weights.given_files chose, as sources of the step; output: `encoder/`, `encoder.json`, `licence.json`, like the other weights steps. The
licence is that of the catalogue's family; for weights of which it knows nothing it is "unknown: see publisher". A missing tensor, another shape, another family
or another width is an error that names it. Nothing but tensors is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.step import AnyloomError, StepContext
from infra.storage import read_json, write_json
from mmcore.encoder_config import EncoderConfig, TimmImage, TimmVideo
from mmcore.encoders import MODALITY_OF, catalogue, hf_audio, hf_text, hf_vision, load_encoder
from mmcore.encoders.timm_image import head_prefixes, unloaded
from mmcore.encoders.whisper import encoder_tensors
from mmcore.runtime.given_weights import check_finite
from pipelines.toys.media import medium
from pipelines.weights.config import ImportConfig
from pipelines.weights.given_files import FRONTS, TOKENIZERS
from pipelines.weights.writing import finish, load_state, save

if TYPE_CHECKING:
    import torch

MODEL_TYPES = {
    "clip": ("clip", "clip_vision_model", "clip_text_model"),
    "siglip": ("siglip", "siglip_vision_model", "siglip_text_model"),
    "dinov2": ("dinov2",),
    "clap": ("clap", "clap_audio_model", "clap_text_model"),
    "hubert": ("hubert",),
    "whisper": ("whisper",),
    "bert": ("bert",),
}
"""Family -> what config.json may call itself."""
UNUSED = ("pooler.",)
"""Tensors of a text encoder that its token states do not need; checkpoints without them are as good."""


def run(ctx: StepContext[ImportConfig]) -> dict[str, Any]:
    """`encoder/`, `encoder.json`, `licence.json` from the given files."""
    import torch
    from transformers.utils import logging as transformers_logging

    config = ctx.config
    spec = config.specs[0]
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(max(1, ctx.resources.threads))
    ctx.progress(0, 2, "reading")
    model, about = _take_timm(ctx, spec) if isinstance(spec, (TimmImage, TimmVideo)) else _take_directory(ctx, spec)
    write_json(ctx.output / "encoder.json", {"arch": spec.arch, **about})
    result = finish(ctx, model, _licence(spec))
    del model
    ctx.progress(1, 2, "opening")
    for each in config.specs:
        _prove(ctx, each)
    ctx.progress(2, 2, "done")
    return result


def _take_timm(ctx: StepContext[ImportConfig], spec: TimmImage | TimmVideo) -> tuple[Any, dict[str, Any]]:
    import timm
    from safetensors.torch import save_file

    if spec.arch.partition(".")[0] not in timm.list_models():
        raise AnyloomError(f"{ctx.name}: timm has no architecture '{spec.arch}'; see timm.list_models()")
    path = ctx.sources["weights"]
    model = unloaded(spec)
    state = {name: value for name, value in load_state(path).items() if not name.startswith(head_prefixes(model))}
    strictly(path, state, model)
    (ctx.output / "encoder").mkdir()
    save_file({name: value.contiguous() for name, value in sorted(model.state_dict().items())}, ctx.output / "encoder" / "model.safetensors")
    facts = {"width": model.num_features, "mean": list(model.pretrained_cfg["mean"]), "std": list(model.pretrained_cfg["std"])}
    return model, facts


def _take_directory(ctx: StepContext[ImportConfig], spec: EncoderConfig) -> tuple[Any, dict[str, Any]]:
    """A transformers or diffusers directory; only the counted files of it are seen."""
    given, folder = ctx.sources["config.json"].parent, ctx.work / "given"
    folder.mkdir(exist_ok=True)
    for name, path in ctx.sources.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(path)
    described = read_json(folder / "config.json")
    if spec.kind == "vae_image":
        model, facts = _vae(given, folder, described), {"width": described.get("latent_channels")}
    else:
        family = _family(spec)
        takes = MODEL_TYPES.get(family)
        if takes is None:
            raise AnyloomError(f"{ctx.name}: arch '{spec.arch}' of {spec.kind} is none that can be taken in: {', '.join(MODEL_TYPES)}")
        if described.get("model_type") not in takes:
            raise AnyloomError(f"{given / 'config.json'}: model_type is {described.get('model_type')}, but {spec.kind} {spec.arch} takes {' or '.join(takes)}")
        model = _whisper(given, folder) if family == "whisper" else _half(given, folder, _class(spec, family))
        facts = {"model_type": model.config.model_type}
    save(model, ctx.output / "encoder")
    for name in sorted({*FRONTS, *TOKENIZERS} & set(ctx.sources)):
        (ctx.output / "encoder" / name).write_bytes(ctx.sources[name].read_bytes())
    return model, facts


def _family(spec: EncoderConfig) -> str:
    """What config.json must be; whisper_audio opens Whisper whatever its arch is called."""
    return "whisper" if spec.kind == "whisper_audio" else catalogue.family(spec.arch)


def _class(spec: EncoderConfig, family: str) -> str:
    """Class of transformers that the encoder of this kind opens."""

    if MODALITY_OF[spec.kind] == "text":
        return hf_text.FAMILIES[family].model if spec.kind == "hf_text" else "AutoModel"
    return hf_audio.FAMILIES[family] if spec.kind == "hf_audio" else hf_vision.FAMILIES[family].model


def _half(given: Path, folder: Path, name: str) -> Any:
    """One half of a checkpoint, by name, through transformers' own reader (which knows the older names of published files)."""
    import torch
    import transformers

    options: dict[str, Any] = {"local_files_only": True, "dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    options["use_safetensors"] = not (folder / "pytorch_model.bin").exists()
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would list every tensor of the other half
    try:
        model, info = getattr(transformers, name).from_pretrained(folder, **options)
    except Exception as error:  # the reader has many ways to say it
        raise AnyloomError(f"{given}: transformers cannot open it as {name}: {_first_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    _complete(given, model, info)
    for missing in info["missing_keys"]:  # what UNUSED allows to be missing was drawn at random
        model.get_parameter(missing).data.zero_()
    return model


def _whisper(given: Path, folder: Path) -> Any:
    """Whisper's encoder, from a whole checkpoint or an encoder of its own."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    state: dict[str, torch.Tensor] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin")):
        state |= load_state(path)
    model = WhisperEncoder(WhisperConfig.from_pretrained(folder, local_files_only=True))
    strictly(given, encoder_tensors(state), model)
    return model


def _vae(given: Path, folder: Path, described: Mapping[str, Any]) -> Any:
    """An autoencoder with its decoder, through diffusers' own reader."""
    import torch
    from diffusers import AutoencoderKL

    if described.get("_class_name") != "AutoencoderKL":
        raise AnyloomError(f"{given / 'config.json'}: _class_name is {described.get('_class_name')}, but vae_image takes AutoencoderKL")
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "torch_dtype": torch.float32}
    try:
        model, info = AutoencoderKL.from_pretrained(folder, **options, output_loading_info=True, low_cpu_mem_usage=False, ignore_mismatched_sizes=True)
    except Exception as error:  # the reader has many ways to say it
        raise AnyloomError(f"{given}: diffusers cannot open it as AutoencoderKL: {_first_line(error)}") from error
    _complete(given, model, info)
    return model


def _complete(given: Path, model: Any, info: Mapping[str, Any]) -> None:
    """Raises AnyloomError naming a tensor that the reader did not find, found in another shape, or that is not finite."""
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(UNUSED))
    if missing:
        raise AnyloomError(f"{given}: the weights lack {missing[0]}{_more(missing)}; are they those of this config.json?")
    if info["mismatched_keys"]:
        name, found, wanted = sorted(info["mismatched_keys"])[0]
        raise AnyloomError(f"{given}: the weights have {name} of shape {tuple(found)}, config.json says {tuple(wanted)}")
    _finite(given, model)


def _finite(given: Path, model: Any) -> None:
    """Raises AnyloomError naming a tensor that is not finite."""
    try:
        check_finite(model.named_parameters(), given)
    except ValueError as error:
        raise AnyloomError(str(error)) from error


def strictly(given: Path, state: Mapping[str, torch.Tensor], model: torch.nn.Module) -> None:
    """Load `state` into the model. Raises AnyloomError naming what is missing, unknown or misshapen, or not finite."""
    wanted = model.state_dict()
    for problem, names in (("lack", sorted(wanted.keys() - state.keys())), ("have the unknown", sorted(state.keys() - wanted.keys()))):
        if names:
            raise AnyloomError(f"{given}: the weights {problem} {names[0]}{_more(names)}")
    for name, tensor in sorted(wanted.items()):
        if tensor.shape != state[name].shape:
            shapes = f"{tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
            raise AnyloomError(f"{given}: the weights have {name} of shape {shapes}; check arch, and image_size where it is of positions")
    model.load_state_dict(dict(state))
    _finite(given, model)


def _licence(spec: EncoderConfig) -> dict[str, str]:
    """licence.json: the catalogue's for this family, which holds only where the files are what they seem."""
    entry = catalogue.known(spec.kind, _family(spec) if spec.kind == "whisper_audio" else spec.arch)
    if entry is None:
        facts = {"name": spec.arch, "licence": catalogue.UNKNOWN_LICENCE, "commercial_use": "unknown"}
    else:
        facts = {"name": f"{spec.arch}, as {entry.published}", "licence": entry.licence, "commercial_use": entry.commercial}
    return facts | {"source": "files given with --weights; the licence is the catalogue's, not read from the files"}


def _prove(ctx: StepContext[ImportConfig], spec: EncoderConfig) -> None:
    """Encode one generated medium with what was written. Raises AnyloomError when the encoder does not fit the recipe."""

    try:
        load_encoder(spec, ctx.output).encode([medium(MODALITY_OF[spec.kind])])
    except ValueError as error:
        raise AnyloomError(
            f"{next(iter(ctx.sources.values())).parent}: {_first_line(error).replace(str(ctx.output), 'it')}; change the recipe's spec"
        ) from error


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
