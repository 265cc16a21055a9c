"""A toy voice in the layout of the demo's assets (one whole graph, as Piper publishes it), and a toy Whisper in CTranslate2's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from toy_decoders import directory

from mmcore.decoders.speech.text import DICTIONARY, GRAPH, LATENTS, SETTINGS
from pipelines.toys.voice import RATE_HZ


def voice_assets(root: Path) -> Path:
    """root/voice with model.onnx, config.json and dictionary.txt: the toy's halves, joined at the tensor `latents`."""
    import onnx
    from onnx.compose import merge_models

    toy, folder = directory("tiny-voice"), root / "voice"
    folder.mkdir(parents=True)
    text, vocoder = (onnx.load(str(toy / part / GRAPH)) for part in ("text_encoder", "vocoder"))
    whole = merge_models(text, vocoder, io_map=[(LATENTS, LATENTS)], prefix2="v/")
    onnx.save(whole, str(folder / GRAPH))
    ids = json.loads((toy / "text_encoder" / SETTINGS).read_text())["phoneme_id_map"]
    (folder / SETTINGS).write_text(json.dumps({"audio": {"sample_rate": RATE_HZ}, "phoneme_id_map": ids}))
    shutil.copyfile(toy / "text_encoder" / DICTIONARY, folder / DICTIONARY)
    return folder


def decoder_variables(width: int = 4, vocabulary: int = 260, layers: int = 1) -> dict[str, np.ndarray]:
    """The decoder's half of a CTranslate2 Whisper, random, float16."""
    draw = np.random.default_rng(1)

    def make(*shape: int) -> np.ndarray:
        return draw.normal(size=shape).astype(np.float16)

    embeddings = make(vocabulary, width)
    out = {"decoder/num_heads": np.array(2, np.int16), "decoder/position_encodings/encodings": make(20, width)}
    out |= {"decoder/embeddings/weight": embeddings, "decoder/projection/weight": embeddings}
    norms = ["decoder/layer_norm"]
    for i in range(layers):
        at = f"decoder/layer_{i}"
        norms += [f"{at}/{part}/layer_norm" for part in ("self_attention", "attention", "ffn")]
        fused, joined = make(3 * width), make(2 * width)
        fused[width : 2 * width] = 0
        joined[:width] = 0
        out |= {f"{at}/self_attention/linear_0/weight": make(3 * width, width), f"{at}/self_attention/linear_0/bias": fused}
        out |= {f"{at}/self_attention/linear_1/weight": make(width, width), f"{at}/self_attention/linear_1/bias": make(width)}
        out |= {f"{at}/attention/linear_0/weight": make(width, width), f"{at}/attention/linear_0/bias": make(width)}
        out |= {f"{at}/attention/linear_1/weight": make(2 * width, width), f"{at}/attention/linear_1/bias": joined}
        out |= {f"{at}/attention/linear_2/weight": make(width, width), f"{at}/attention/linear_2/bias": make(width)}
        out |= {f"{at}/ffn/linear_0/weight": make(8, width), f"{at}/ffn/linear_0/bias": make(8)}
        out |= {f"{at}/ffn/linear_1/weight": make(width, 8), f"{at}/ffn/linear_1/bias": make(width)}
    for norm in norms:
        out |= {f"{norm}/gamma": make(width), f"{norm}/beta": make(width)}
    return out
