"""Golden outputs of the public ImageBind code, and a full-size comparison with it.

Run by hand: `imagebind_reference.py CHECKOUT [--full [MODALITY ...] | --media]`.

CHECKOUT is a clone of facebookresearch/ImageBind; pytorchvideo and what it imports, torchaudio, and for `--media` decord must be importable. Nothing of
it is copied here: both sides get the same seeded weights and inputs, and only numbers are kept (tests/golden/imagebind).
Without an option: outputs.json (small layout) and inputs.json (preprocessing). `--full`: full.json, the full layout, one modality at a time (about
8 GB), in float64 and float32. `--media`: how far our preprocessing of the checkout's real pictures and sounds is from the public one.
"""

from __future__ import annotations

import json
import math
import sys
import types
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent / "imagebind"
SMALL = {"width": 32, "blocks": 2, "heads": 2}
OUT = 32
BATCH = 2
WORDS, LONG_TEXT = ("A dog.", "a  DOG &amp; a cat, 3 km away!"), "tree " * 100
RATES = (8000, 22050, 44100)
CONSTANTS = (".mask", "log_logit_scale")
SHAPES = {
    "vision": (3, 2, 224, 224),
    "text": (77,),
    "audio": (3, 1, 128, 204),
    "depth": (1, 224, 224),
    "thermal": (1, 224, 224),
    "imu": (6, 2000),
}
"""One item of each modality; sounds have three clips, and BATCH pictures stand as BATCH x 1 clips of one crop for vision."""


def seeded_state(shapes: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Random tensors that depend on their names alone; constants (mask, logit scales) stay."""
    made = {}
    for name, tensor in shapes.items():
        if name.endswith(CONSTANTS):
            made[name] = tensor
            continue
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())), dtype=torch.float64)
        fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
        is_norm = tensor.ndim == 1 and name.endswith("weight")
        made[name] = (1 + 0.1 * noise if is_norm else noise * (0.02 if tensor.ndim == 1 else min(0.5, fan_in**-0.5))).to(tensor.dtype)
    return made


def item(modality: str, dtype: torch.dtype = torch.float64, batch: int = BATCH) -> torch.Tensor:
    """Seeded input [batch, …]."""
    generator = torch.Generator().manual_seed(zlib.crc32(modality.encode()))
    if modality == "text":
        ids = torch.zeros(batch, 77, dtype=torch.long)
        for row, length in enumerate((9, 77, 30, 5)[:batch]):
            ids[row, :length] = torch.randint(1, 49000, (length,), generator=generator)
            ids[row, 0], ids[row, length - 1] = 49406, 49407
        return ids
    return torch.randn(batch, *SHAPES[modality], generator=generator, dtype=torch.float64).to(dtype)


def picture_array() -> np.ndarray:
    """A picture with structure at every scale, uint8 [230, 317, 3]."""
    y, x = np.mgrid[0:230, 0:317]
    channels = [np.sin(x / (3 + c) + y * y / 900) * 90 + np.cos(y / (2 + 2 * c)) * 35 + 128 for c in range(3)]
    return np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8)


def sound_array(seconds: float = 6.5, hz: int = 16000) -> np.ndarray:
    """A chirp with a beat, float32; long enough that the three spans do not overlap (see imagebind_inputs: there the public code differs)."""
    t = np.arange(int(seconds * hz)) / hz
    return (0.4 * np.sin(2 * np.pi * (80 * t + 900 * t * t)) + 0.2 * np.sin(2 * np.pi * 440 * t) * (t % 0.3 > 0.1) + 0.01).astype(np.float32)


def clip_array() -> np.ndarray:
    """Ten frames, uint8 [10, 96, 150, 3]."""
    return np.stack([np.roll(picture_array()[:96, :150], 7 * n, axis=1) for n in range(10)])


def digest(tensor: torch.Tensor) -> dict[str, Any]:
    """Shape, mean, deviation and 64 evenly spread values."""
    flat = tensor.double().flatten()
    return {
        "shape": list(tensor.shape),
        "mean": float(flat.mean()),
        "std": float(flat.std()),
        "values": flat[torch.linspace(0, len(flat) - 1, 64).long()].tolist(),
    }


def import_reference(checkout: Path) -> tuple[Any, Any, Any]:
    """(imagebind_model, data, pv_functional) of the checkout. What newer packages no longer have is put in its place: file access, its own folder."""
    import torchvision.transforms.functional as tv_functional

    sys.path.insert(0, str(checkout))
    for name in ("iopath", "iopath.common", "iopath.common.file_io", "pkg_resources"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["iopath.common.file_io"].g_pathmgr = types.SimpleNamespace(open=open)  # type: ignore[attr-defined]
    sys.modules["pkg_resources"].resource_filename = lambda package, path: str(checkout / package / path)  # type: ignore[attr-defined]
    sys.modules["torchvision.transforms.functional_tensor"] = tv_functional
    from imagebind import data
    from imagebind.models import imagebind_model
    from pytorchvideo.transforms import functional as pv_functional

    data.torchaudio.load = read_wav
    return imagebind_model, data, pv_functional


def read_wav(path: str) -> tuple[torch.Tensor, int]:
    """What torchaudio.load returned before it needed torchcodec: samples [C, n] in -1..1 and the rate."""
    from scipy.io import wavfile

    hz, samples = wavfile.read(path)
    scaled = samples.astype(np.float32) / (np.iinfo(samples.dtype).max + 1 if samples.dtype.kind == "i" else 1)
    return torch.from_numpy(scaled.reshape(len(scaled), -1).T.copy()), hz


def reference_model(module: Any) -> Any:
    """The public model, small."""
    sizes = {
        f"{m}_{key}": value for m in SHAPES for key, value in (("embed_dim", SMALL["width"]), ("num_blocks", SMALL["blocks"]), ("num_heads", SMALL["heads"]))
    }
    return module.ImageBindModel(out_embed_dim=OUT, audio_drop_path=0.1, imu_drop_path=0.7, **sizes)


def write_golden(checkout: Path) -> None:
    """outputs.json and inputs.json."""
    module, data, pv_functional = import_reference(checkout)
    model = reference_model(module).double().eval()
    model.load_state_dict(seeded_state(model.state_dict()))
    outputs = {}
    with torch.no_grad():
        for modality in SHAPES:
            batch = item(modality)
            outputs[modality] = model({modality: batch[:, None] if modality == "vision" else batch})[modality].tolist()
    (HERE / "outputs.json").write_text(json.dumps(outputs) + "\n")
    (HERE / "inputs.json").write_text(json.dumps(reference_inputs(data, pv_functional), indent=1) + "\n")


def reference_inputs(data: Any, pv_functional: Any) -> dict[str, Any]:
    """The public preprocessing of the seeded picture, sound and clip."""
    import tempfile

    from PIL import Image
    from scipy.io import wavfile

    with tempfile.TemporaryDirectory() as folder:
        picture, sound = Path(folder) / "p.png", Path(folder) / "s.wav"
        Image.fromarray(picture_array()).save(picture)
        wavfile.write(sound, 16000, sound_array())
        made = {
            "picture": digest(data.load_and_transform_vision_data([str(picture)], "cpu")[0]),
            "sound": digest(data.load_and_transform_audio_data([str(sound)], "cpu")[0]),
        }
        wavfile.write(sound, 16000, sound_array(1.1))
        made["short_sound"] = digest(data.load_and_transform_audio_data([str(sound)], "cpu")[0])
        for hz in RATES:
            wavfile.write(sound, hz, sound_array(hz=hz))
            made[f"sound_{hz}"] = digest(data.load_and_transform_audio_data([str(sound)], "cpu")[0])
    frames = torch.from_numpy(clip_array()).permute(3, 0, 1, 2).float() / 255
    normalise = data.NormalizeVideo(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
    clips = [normalise(pv_functional.short_side_scale(frames[:, 2 * n : 2 * n + 2], 224)) for n in range(5)]
    made["clip"] = digest(torch.stack(data.SpatialCrop(224, num_crops=3)(clips)))
    sampler = data.ConstantClipsPerVideoSampler(clip_duration=2, clips_per_video=5)
    made["clip_starts"] = {str(s): [float(a) for a, _ in data.get_clip_timepoints(sampler, s)] for s in (1.5, 2.0, 9.25)}
    made["text"] = {text: data.load_and_transform_text([text], "cpu")[0].tolist() for text in (*WORDS, LONG_TEXT)}
    return made


# ---- the full layout -------------------------------------------------------------------------------------------------

DIGITS = 12
FULL_BATCH = {"text": 2}
"""Items at full layout; one of the others."""


def full_inputs(modality: str, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """What the full layout is compared on, by name: the seeded item, and for vision a still picture as well."""
    batch = item(modality, dtype, FULL_BATCH.get(modality, 1))
    return {"vision": batch, "picture": batch[:, :, 0]} if modality == "vision" else {modality: batch}


def full_state(shapes: dict[str, torch.Tensor], modality: str, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Seeded weights of one modality of the full layout: a float64 draw, rounded once to dtype."""
    from mmcore.encoders.imagebind.network import modality_of

    wanted = {name: tensor for name, tensor in shapes.items() if modality_of(name) == modality}
    kept = {name: tensor.to(dtype) for name, tensor in wanted.items() if name.endswith(CONSTANTS)}
    return seeded_state({name: kept.get(name, torch.empty(tensor.shape, dtype=dtype, device="meta")) for name, tensor in wanted.items()})


def reference_full(module: Any, modality: str) -> Any:
    """The public model as `imagebind_huge` builds it, but with every other modality shrunk to one block of width 8."""
    maker, sizes = module.ImageBindModel, {}
    module.ImageBindModel = lambda **given: sizes.update(given)
    try:
        module.imagebind_huge()
    finally:
        module.ImageBindModel = maker
    shrunk = {f"{other}_{key}": value for other in SHAPES if other != modality for key, value in (("embed_dim", 8), ("num_blocks", 1), ("num_heads", 1))}
    return maker(**{**sizes, **shrunk}).eval()


def difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what was expected."""
    return float((got.double() - expected.double()).norm() / expected.double().norm())


@torch.no_grad()
def compare_trunk(module: Any, modality: str) -> dict[str, Any]:
    """Parameters, float64 outputs of the public trunk, and how far ours are from them. Only one side is in memory at a time."""
    from mmcore.encoders.imagebind.network import HUGE, ImageBind, load_imagebind, modality_of

    theirs = reference_full(module, modality)
    theirs.load_state_dict(full_state(theirs.state_dict(), modality), strict=False, assign=True)
    count = sum(parameter.numel() for name, parameter in theirs.named_parameters() if modality_of(name) == modality)
    expected: dict[torch.dtype, dict[str, torch.Tensor]] = {}
    for dtype in (torch.float64, torch.float32):
        theirs.to(dtype)
        given = {name: batch[:, None] if name == "vision" else batch for name, batch in full_inputs(modality, dtype).items()}
        expected[dtype] = {name: theirs({modality: batch})[modality] for name, batch in given.items()}
    names = {name for name in theirs.state_dict() if modality_of(name) == modality}
    del theirs
    with torch.device("meta"):
        shapes = ImageBind({modality: HUGE[modality]}).state_dict()
    if names != shapes.keys():
        raise SystemExit(f"{modality}: names differ: {sorted(names ^ shapes.keys())[:5]}")
    ours = load_imagebind(seeded_full(modality), {modality: HUGE[modality]})
    if count != sum(parameter.numel() for parameter in ours.parameters()):
        raise SystemExit(f"{modality}: {count} parameters there, {sum(parameter.numel() for parameter in ours.parameters())} here")
    report = {}
    for dtype in (torch.float64, torch.float32):
        ours.to(dtype)
        got = {name: ours(modality, batch) for name, batch in full_inputs(modality, dtype).items()}
        report[str(dtype)[6:]] = {name: difference(got[name], expected[dtype][name]) for name in got}
    report["float32 from float64"] = {name: difference(got[name], expected[torch.float64][name]) for name in got}
    values = {name: [[round(value, DIGITS) for value in row] for row in rows.tolist()] for name, rows in expected[torch.float64].items()}
    return {"parameters": count, "values": values, "report": report}


def seeded_full(modality: str, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Seeded weights of our full-layout trunk. The constants (mask, logit scales) have their own values."""
    from mmcore.encoders.imagebind.network import HUGE, ImageBind, toy

    with torch.device("meta"):
        shapes = dict(ImageBind({modality: HUGE[modality]}).state_dict())
    constants = ImageBind(toy({modality: HUGE[modality]}, width=8, blocks=1)).state_dict()
    shapes |= {name: tensor for name, tensor in constants.items() if name.endswith(CONSTANTS)}
    return full_state(shapes, modality, dtype)


def compare_full(checkout: Path, chosen: list[str]) -> None:
    """full.json: parameters and float64 outputs of the public full-layout trunks; prints how far ours are. Keeps what other modalities have there."""
    module, _, _ = import_reference(checkout)
    path = HERE / "full.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for modality in chosen or SHAPES:
        made = compare_trunk(module, modality)
        for what, differences in made.pop("report").items():
            print(f"{modality}: {made['parameters']:,} parameters, {what}:", ", ".join(f"{n} {d:.1e}" for n, d in differences.items()), flush=True)
        found[modality] = made
        path.write_text(json.dumps({name: found[name] for name in SHAPES if name in found}) + "\n")


# ---- real media ------------------------------------------------------------------------------------------------------


def compare_media(checkout: Path) -> None:
    """Prints how far our preprocessing of the checkout's own pictures and sounds, of clips made from them, and of texts is from the public one."""
    import tempfile

    from mmcore.encoder_config import ImageBindAudio
    from mmcore.encoders.imagebind import clip_bpe, inputs
    from mmcore.encoders.imagebind.encoders import ImageBindAudioEncoder
    from mmcore.media.decode import decode_image

    ears = ImageBindAudioEncoder.__new__(ImageBindAudioEncoder)  # its ears need no weights
    ears.spec = ImageBindAudio(arch="imagebind_huge", width=1024)
    _, data, _ = import_reference(checkout)
    pictures, sounds = (sorted((checkout / ".assets").glob(pattern)) for pattern in ("*.jpg", "*.wav"))
    for path in pictures:
        show(path.name, inputs.image(decode_image(path.read_bytes())), data.load_and_transform_vision_data([str(path)], "cpu")[0])
    with tempfile.TemporaryDirectory() as folder:
        for path in sounds:
            expected = data.load_and_transform_audio_data([str(path)], "cpu")[0]
            show(path.name, ears.prepare(path.read_bytes()), expected)
            mono = Path(folder) / path.name
            first_channel(path, mono)
            expected = data.load_and_transform_audio_data([str(mono)], "cpu")[0]
            show(f"{path.name}, first channel", ears.prepare(mono.read_bytes()), expected)
        for path in pictures:
            for seconds, hz in ((8.0, 25), (1.5, 30)):
                clip = Path(folder) / f"{path.stem}-{seconds:g}s-{hz}hz.mp4"
                clip.write_bytes(moving_clip(path, seconds, hz))
                compare_clip(data, clip)
    texts = (*WORDS, LONG_TEXT, "it's  the café’s &lt;b&gt; n° 42!", "Ünïcödé 漢字 🐕‍🦺 \u200b naïve", "<|endoftext|> after", "")
    ours = torch.stack([inputs.text(text, clip_bpe.encode, clip_bpe.START, clip_bpe.END) for text in texts])
    theirs = torch.stack([data.load_and_transform_text([text], "cpu")[0] for text in texts])
    print(f"texts: {int((ours != theirs).any(dim=1).sum())} of {len(texts)} differ")


def show(name: str, got: torch.Tensor, expected: torch.Tensor) -> None:
    """One line: largest and mean difference of a normalised value."""
    if got.shape != expected.shape:
        print(f"{name}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
        return
    gap = (got - expected).abs()
    print(f"{name}: largest {float(gap.max()):.1e}, mean {float(gap.mean()):.1e}", flush=True)


def first_channel(source: Path, target: Path) -> None:
    """The sound with its first channel only, which is what the public code hears."""
    from scipy.io import wavfile

    hz, samples = wavfile.read(source)
    wavfile.write(target, hz, samples.reshape(len(samples), -1)[:, 0])


def moving_clip(path: Path, seconds: float, hz: int) -> bytes:
    """H.264: a window of 320 x 240 pixels that wanders over the picture."""
    from PIL import Image

    from pipelines.demo.clips import encode_mp4

    picture = Image.open(path).convert("RGB")
    picture.thumbnail((640, 640))
    count, frames = round(seconds * hz), []
    for number in range(count):
        t = number / max(count - 1, 1)
        left, top = round((picture.width - 320) * t), round((picture.height - 240) * (0.5 + 0.5 * np.sin(6 * t)))
        frames.append(picture.crop((left, top, left + 320, top + 240)))
    return encode_mp4(iter(frames), hz)


def compare_clip(data: Any, path: Path) -> None:
    """The whole public path (decord and its transforms), and its samplers and transforms on the frames PyAV decodes."""
    from mmcore.encoders.imagebind import inputs
    from mmcore.media.decode import choose_video_frames

    got = inputs.clip(choose_video_frames(path.read_bytes(), inputs.frame_indices))
    show(f"{path.name}, their decoder", got, data.load_and_transform_video_data([str(path)], "cpu")[0])
    theirs, data.EncodedVideo = data.EncodedVideo, types.SimpleNamespace(from_path=lambda name, **_: PyAvClip(Path(name)))
    show(f"{path.name}, our decoder", got, data.load_and_transform_video_data([str(path)], "cpu")[0])
    data.EncodedVideo = theirs


class PyAvClip:
    """What the public code asks of a video, on the frames PyAV decodes; which frames lie in a span is decided by their number, as decord does."""

    def __init__(self, path: Path):
        import av

        with av.open(str(path)) as container:
            self.hz = float(container.streams.video[0].average_rate)
            self.frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        self.duration = len(self.frames) / self.hz

    def get_clip(self, start_s: Any, end_s: Any) -> dict[str, torch.Tensor]:
        """{"video": [3, T, H, W] in 0..255}."""
        chosen = self.frames[math.ceil(self.hz * start_s) : math.ceil(self.hz * end_s)]
        return {"video": torch.from_numpy(np.stack(chosen)).permute(3, 0, 1, 2).float()}


if __name__ == "__main__":
    place, options = Path(sys.argv[1]).resolve(), sys.argv[2:]
    if "--full" in options:
        torch.set_num_threads(1)
        compare_full(place, [name for name in options if name in SHAPES])
    elif "--media" in options:
        compare_media(place)
    else:
        write_golden(place)
