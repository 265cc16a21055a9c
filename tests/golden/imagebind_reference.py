"""Golden outputs of the public ImageBind code, and a full-size comparison with it. Run by hand: `imagebind_reference.py CHECKOUT [--full]`.

CHECKOUT is a clone of facebookresearch/ImageBind; it and torchaudio must be importable, pytorchvideo and iopath only for what the checkout
imports. Nothing of it is copied here: both sides get the same seeded weights and inputs, and only numbers are kept (tests/golden/imagebind).
`--full` compares the full layout, modality by modality, in float64 and float32, and the preprocessing of the checkout's real pictures and sounds.
"""

from __future__ import annotations

import json
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
        if name.endswith((".mask", "log_logit_scale")):
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


def sound_array(seconds: float = 6.5) -> np.ndarray:
    """A chirp with a beat, float32 at 16 kHz; long enough that the three spans do not overlap (see imagebind_inputs: there the public code differs)."""
    t = np.arange(int(seconds * 16000)) / 16000
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


def reference_model(module: Any, full: bool) -> Any:
    """The public model, full-size or small."""
    if full:
        return module.imagebind_huge()
    sizes = {
        f"{m}_{key}": value for m in SHAPES for key, value in (("embed_dim", SMALL["width"]), ("num_blocks", SMALL["blocks"]), ("num_heads", SMALL["heads"]))
    }
    return module.ImageBindModel(out_embed_dim=OUT, audio_drop_path=0.1, imu_drop_path=0.7, **sizes)


def write_golden(checkout: Path) -> None:
    """outputs.json and inputs.json."""
    module, data, pv_functional = import_reference(checkout)
    model = reference_model(module, full=False).double().eval()
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
    frames = torch.from_numpy(clip_array()).permute(3, 0, 1, 2).float() / 255
    normalise = data.NormalizeVideo(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
    clips = [normalise(pv_functional.short_side_scale(frames[:, 2 * n : 2 * n + 2], 224)) for n in range(5)]
    made["clip"] = digest(torch.stack(data.SpatialCrop(224, num_crops=3)(clips)))
    sampler = data.ConstantClipsPerVideoSampler(clip_duration=2, clips_per_video=5)
    made["clip_starts"] = {str(s): [float(a) for a, _ in data.get_clip_timepoints(sampler, s)] for s in (1.5, 2.0, 9.25)}
    words = ("A dog.", "a  DOG &amp; a cat, 3 km away!", "tree " * 100)
    made["text"] = {text: data.load_and_transform_text([text], "cpu")[0].tolist() for text in words}
    return made


def compare_full(checkout: Path) -> None:
    """Print the norm-relative difference of every modality in float64 and float32, then of real media."""
    module, data, _ = import_reference(checkout)
    from mmcore.encoders import imagebind_inputs as inputs
    from mmcore.encoders.imagebind import HUGE, load_imagebind, modality_of

    theirs = reference_model(module, full=True).eval()
    print(f"{sum(p.numel() for p in theirs.parameters()):,} parameters, {len(theirs.state_dict())} keys")
    for modality in HUGE:
        state = seeded_state({name: tensor for name, tensor in theirs.state_dict().items() if modality_of(name) == modality})
        theirs.load_state_dict(state, strict=False)
        line = []
        for dtype, parts in ((torch.float64, theirs.double()), (torch.float32, theirs.float())):
            if dtype == torch.float64:
                parts.load_state_dict({name: value.double() if value.is_floating_point() else value for name, value in state.items()}, strict=False)
            ours = load_imagebind({name: value.to(dtype) for name, value in state.items()}, {modality: HUGE[modality]})
            batch = item(modality, dtype)
            with torch.no_grad():
                expected = parts({modality: batch[:, None] if modality == "vision" else batch})[modality]
                got = ours(modality, batch)
            line.append(float((got - expected).norm() / expected.norm()))
        count = sum(p.numel() for p in ours.parameters())
        print(f"{modality}: {count:,} parameters, float64 {line[0]:.1e}, float32 {line[1]:.1e}", flush=True)
    compare_media(checkout, data, inputs)


def compare_media(checkout: Path, data: Any, inputs: Any) -> None:
    """Preprocessing of the checkout's own pictures and sounds: largest difference of a normalised value."""
    from mmcore.data.media import decode_audio, decode_image

    for path in sorted((checkout / ".assets").glob("*.jpg")):
        expected = data.load_and_transform_vision_data([str(path)], "cpu")[0]
        print(path.name, f"{float((inputs.picture(decode_image(path.read_bytes())) - expected).abs().max()):.1e}")
    for path in sorted((checkout / ".assets").glob("*.wav")):
        expected = data.load_and_transform_audio_data([str(path)], "cpu")[0]
        got = inputs.sound(decode_audio(path.read_bytes(), inputs.AUDIO_HZ, 60.0))
        difference = (got - expected).abs()
        print(path.name, f"largest {float(difference.max()):.1e}, mean {float(difference.mean()):.1e}")


if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve()
    compare_full(place) if "--full" in sys.argv else write_golden(place)
