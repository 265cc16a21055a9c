"""Reader of CTranslate2 model files (binary version 6), and the names of a Whisper model's two halves inside one.

Owns the byte layout and the renaming to transformers' names. Input: `model.bin`; output: numpy arrays. This module does not import torch.

Layout, little endian: u32 binary version, string spec name, u32 spec revision, u32 number of variables; per variable: string name,
u8 rank, u32 dimensions, u8 type, u32 number of bytes, data; then u32 number of aliases with two strings each. A string is
u16 length including the closing NUL, then the bytes.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path, self.data, self.at = path, path.read_bytes(), 0

    def unpack(self, layout: str) -> tuple[int, ...]:
        values = struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))
        return tuple(int(v) for v in values)

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            raise ValueError(f"{self.path.name} ends at byte {len(self.data)}, needed {self.at + size}: the file is truncated")
        self.at += size
        return self.data[self.at - size : self.at]

    def string(self) -> str:
        (size,) = self.unpack("H")
        return self.take(size).rstrip(b"\0").decode()


def read_model(path: Path, spec: str = "WhisperSpec") -> dict[str, np.ndarray]:
    """Variable name -> array in its stored type; aliases resolved. Raises ValueError on another version, spec or a cut file."""
    reader = _Reader(path)
    (version,) = reader.unpack("I")
    if version != 6:
        raise ValueError(f"{path.name} is CTranslate2 binary version {version}; this reader knows version 6")
    name = reader.string()
    if name != spec:
        raise ValueError(f"{path.name} holds a {name}, expected a {spec}")
    _, num_variables = reader.unpack("II")
    variables = {}
    for _ in range(num_variables):
        key, (rank,) = reader.string(), reader.unpack("B")
        shape = reader.unpack(f"{rank}I") if rank else ()
        kind, size = reader.unpack("BI")
        if kind not in TYPES:
            raise ValueError(f"{path.name}: variable {key} has unknown type {kind}")
        variables[key] = np.frombuffer(reader.take(size), dtype=np.dtype(TYPES[kind]).newbyteorder("<")).reshape(shape)
    (num_aliases,) = reader.unpack("I")
    for _ in range(num_aliases):
        alias, target = reader.string(), reader.string()
        variables[alias] = variables[target]
    if reader.at != len(reader.data):
        raise ValueError(f"{path.name}: {len(reader.data) - reader.at} bytes left after the last alias")
    return variables


def whisper_encoder(variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names of transformers' WhisperEncoder -> float32 arrays. The fused q|k|v matrix is split; the key projection has no bias."""
    left = _part(variables, "encoder")
    out: dict[str, np.ndarray] = {"embed_positions.weight": left.pop("position_encodings/encodings")}
    for conv in ("conv1", "conv2"):
        out |= {f"{conv}.{part}": left.pop(f"{conv}/{part}") for part in ("weight", "bias")}
    _norm(left, "layer_norm", out, "layer_norm")
    for layer in range(_num_layers(left)):
        ours, theirs = f"layers.{layer}", f"layer_{layer}"
        _attention(left, f"{theirs}/self_attention", out, f"{ours}.self_attn")
        _feed_forward(left, theirs, out, ours)
    return _finished(left, out, "encoder")


def whisper_decoder(variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names of transformers' WhisperDecoder -> float32 arrays. Raises ValueError when the head is not the embedding matrix, as Whisper's is."""
    left = _part(variables, "decoder")
    out = {"embed_tokens.weight": left.pop("embeddings/weight"), "embed_positions.weight": left.pop("position_encodings/encodings")}
    if not np.array_equal(left.pop("projection/weight"), out["embed_tokens.weight"]):
        raise ValueError("the decoder's head is not its embedding matrix; this is not a Whisper model")
    _norm(left, "layer_norm", out, "layer_norm")
    for layer in range(_num_layers(left)):
        ours, theirs = f"layers.{layer}", f"layer_{layer}"
        _attention(left, f"{theirs}/self_attention", out, f"{ours}.self_attn")
        _cross_attention(left, f"{theirs}/attention", out, f"{ours}.encoder_attn")
        _feed_forward(left, theirs, out, ours)
    return _finished(left, out, "decoder")


def _part(variables: dict[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    """The tensors of one half of the model; single numbers are settings and stay behind."""
    return {name.removeprefix(f"{part}/"): value for name, value in variables.items() if name.startswith(f"{part}/") and value.ndim}


def _num_layers(left: dict[str, np.ndarray]) -> int:
    return len({name.split("/")[0] for name in left if name.startswith("layer_") and not name.startswith("layer_norm")})


def _attention(left: dict[str, np.ndarray], theirs: str, out: dict[str, np.ndarray], ours: str) -> None:
    """Self-attention, whose q, k and v are one matrix."""
    _norm(left, f"{theirs}/layer_norm", out, f"{ours}_layer_norm")
    for part in ("weight", "bias"):
        query, key, value = np.split(left.pop(f"{theirs}/linear_0/{part}"), 3)
        out |= {f"{ours}.q_proj.{part}": query, f"{ours}.v_proj.{part}": value}
        _key(out, ours, part, key)
        out[f"{ours}.out_proj.{part}"] = left.pop(f"{theirs}/linear_1/{part}")


def _cross_attention(left: dict[str, np.ndarray], theirs: str, out: dict[str, np.ndarray], ours: str) -> None:
    """Attention to the encoder, whose k and v are one matrix."""
    _norm(left, f"{theirs}/layer_norm", out, f"{ours}_layer_norm")
    for part in ("weight", "bias"):
        out[f"{ours}.q_proj.{part}"] = left.pop(f"{theirs}/linear_0/{part}")
        key, value = np.split(left.pop(f"{theirs}/linear_1/{part}"), 2)
        out[f"{ours}.v_proj.{part}"] = value
        _key(out, ours, part, key)
        out[f"{ours}.out_proj.{part}"] = left.pop(f"{theirs}/linear_2/{part}")


def _key(out: dict[str, np.ndarray], ours: str, part: str, values: np.ndarray) -> None:
    if part == "weight":
        out[f"{ours}.k_proj.weight"] = values
    elif np.any(values):
        raise ValueError(f"{ours}: the key projection has a bias that is not zero; this is not a Whisper model")


def _feed_forward(left: dict[str, np.ndarray], theirs: str, out: dict[str, np.ndarray], ours: str) -> None:
    _norm(left, f"{theirs}/ffn/layer_norm", out, f"{ours}.final_layer_norm")
    for part in ("weight", "bias"):
        out[f"{ours}.fc1.{part}"] = left.pop(f"{theirs}/ffn/linear_0/{part}")
        out[f"{ours}.fc2.{part}"] = left.pop(f"{theirs}/ffn/linear_1/{part}")


def _finished(left: dict[str, np.ndarray], out: dict[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    if left:
        raise ValueError(f"variables of the {part} that no layer of ours takes: {sorted(left)}")
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in out.items()}


def _norm(source: dict[str, np.ndarray], theirs: str, out: dict[str, np.ndarray], ours: str) -> None:
    out[f"{ours}.weight"] = source.pop(f"{theirs}/gamma")
    out[f"{ours}.bias"] = source.pop(f"{theirs}/beta")
